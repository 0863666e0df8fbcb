// Latency and bandwidth of collectives by size, with a process for each rank (inproc: a thread). Call times are rank
// 0's, one call after the other without work between.
//
// usage: collectives_bench [member [ranks [operation [largest bytes]]]]     default: shm 4 all_reduce 67108864
//        member      inproc, shm, gloo, or "gloo-own": gloo's own all_reduce instead of ours over its connections
//        operation   all_reduce, all_gather, reduce_scatter, barrier; with "+own" input lies in buffer()
#include <fmt/format.h>
#include <gloo/allreduce.h>
#include <gloo/broadcast.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "parallel/gloo.h"
#include "parallel/inproc.h"
#include "parallel/shm.h"

using namespace sluice;
using parallel::Communicator;
using parallel::Element;

namespace {

constexpr double kSecondsPerSize = 0.3;

[[noreturn]] void give_up(const Error& error) {
  fmt::print(stderr, "{}\n", error.message);
  std::_Exit(1);
}
template <class T>
T must(Result<T> result) {
  if (!result.ok()) give_up(result.error());
  return std::move(result).value();
}
void must(const Result<void>& result) {
  if (!result.ok()) give_up(result.error());
}

// What is measured, on one rank. `bytes` are those of the whole vector: of each rank's input in all_reduce and
// reduce_scatter, of the output in all_gather.
struct Subject {
  int rank = 0;
  std::function<void*(size_t bytes)> own_input;  // null: input is the caller's
  std::function<void(const void* in, void* out, size_t bytes)> call;
  std::function<void(int32_t* value)> from_rank_0;
};

void measure(const Subject& subject, bool barrier, size_t largest) {
  std::vector<float> in(largest / sizeof(float), 1.0f);
  std::vector<float> out(in.size());
  for (size_t bytes = 64; bytes <= largest; bytes *= bytes < 1024 ? 16 : 4) {
    std::vector<double> times;
    double spent = 0;
    for (int round = 0;; ++round) {
      const void* from = in.data();
      if (subject.own_input) {
        void* const memory = subject.own_input(bytes);
        if (round < 2) std::memcpy(memory, in.data(), bytes);
        from = memory;
      }
      const auto begin = std::chrono::steady_clock::now();
      subject.call(from, out.data(), bytes);
      const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      if (round >= 3) times.push_back(took);
      spent += took;
      // All end together: rank 0 says when.
      if (round % 16 != 15 && bytes < 1 << 20) continue;
      int32_t enough = (spent > kSecondsPerSize && times.size() >= 10) || times.size() > 20000;
      subject.from_rank_0(&enough);
      if (enough) break;
    }
    if (subject.rank == 0) {
      std::ranges::sort(times);
      const double median = times[times.size() / 2];
      fmt::print("{:>10} B  median {:>10.1f} us  p90 {:>10.1f} us  {:>7.2f} GB/s  {} calls\n", barrier ? 0 : bytes,
                 median * 1e6, times[times.size() * 9 / 10] * 1e6, static_cast<double>(bytes) / median / 1e9,
                 times.size());
      std::fflush(stdout);
    }
    if (barrier) return;
  }
}

void measure(Communicator& comm, const std::string& operation, bool own, size_t largest) {
  Subject subject{.rank = comm.rank()};
  if (own) subject.own_input = [&](size_t bytes) { return must(comm.buffer({}, bytes)); };
  subject.from_rank_0 = [&](int32_t* value) { must(comm.broadcast({}, Element::kI32, value, 1, 0)); };
  subject.call = [&](const void* in, void* out, size_t bytes) {
    const auto count = static_cast<int64_t>(bytes / sizeof(float));
    if (operation == "all_reduce") return must(comm.all_reduce({}, Element::kF32, in, out, count));
    if (operation == "all_gather") return must(comm.all_gather({}, Element::kF32, in, out, count / comm.size()));
    if (operation == "reduce_scatter") {
      return must(comm.reduce_scatter({}, Element::kF32, in, out, count / comm.size()));
    }
    must(comm.barrier());
  };
  measure(subject, operation == "barrier", largest);
  must(comm.barrier());  // nobody leaves while others wait for it
}

void add(void* to, const void* a, const void* b, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    static_cast<float*>(to)[i] = static_cast<const float*>(a)[i] + static_cast<const float*>(b)[i];
  }
}

void measure_gloo_itself(int rank, int ranks, const std::string& folder, size_t largest) {
  auto device = gloo::transport::tcp::CreateDevice(gloo::transport::tcp::attr("127.0.0.1"));
  auto context = std::make_shared<gloo::rendezvous::Context>(rank, ranks);
  gloo::rendezvous::FileStore store(folder);
  context->connectFullMesh(store, device);
  const auto from_rank_0 = [&](int32_t* value) {
    gloo::BroadcastOptions options(context);
    options.setOutput(value, 1);
    options.setRoot(0);
    gloo::broadcast(options);
  };
  measure({.rank = rank,
           .call =
               [&](const void* in, void* out, size_t bytes) {
                 gloo::AllreduceOptions options(context);
                 options.setInput(static_cast<float*>(const_cast<void*>(in)), bytes / sizeof(float));
                 options.setOutput(static_cast<float*>(out), bytes / sizeof(float));
                 options.setReduceFunction(add);
                 gloo::allreduce(options);
               },
           .from_rank_0 = from_rank_0},
          false, largest);
  int32_t end = 0;
  from_rank_0(&end);
}

// `body` in a process for each rank.
int in_processes(int ranks, const std::function<void(int)>& body) {
  std::vector<pid_t> children;
  for (int rank = 0; rank < ranks; ++rank) {
    const pid_t child = ::fork();
    if (child == 0) {
      body(rank);
      std::fflush(stdout);
      std::_Exit(0);
    }
    children.push_back(child);
  }
  int failed = 0;
  for (const pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    failed |= status != 0;
  }
  return failed;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string member = argc > 1 ? argv[1] : "shm";
  const int ranks = argc > 2 ? std::atoi(argv[2]) : 4;
  std::string operation = argc > 3 ? argv[3] : "all_reduce";
  const size_t largest = argc > 4 ? std::strtoull(argv[4], nullptr, 10) : 64 << 20;
  const bool own = operation.ends_with("+own");
  if (own) operation.resize(operation.size() - 4);
  fmt::print("{} of {} ranks over {}{}\n", operation, ranks, member, own ? ", input in buffer()" : "");
  std::fflush(stdout);
  if (member == "inproc") {
    auto group = parallel::make_inproc_group(ranks);
    std::vector<std::thread> threads;
    for (auto& comm : group) threads.emplace_back([&] { measure(*comm, operation, own, largest); });
    for (auto& thread : threads) thread.join();
    return 0;
  }
  if (member == "shm") {
    const auto segment = must(parallel::ShmSegment::create(ranks));
    return in_processes(
        ranks, [&](int rank) { measure(*must(parallel::join_shm(segment, rank, ranks)), operation, own, largest); });
  }
  if (member == "gloo") {
    const auto server = must(parallel::RendezvousServer::serve("127.0.0.1:0", ranks));
    return in_processes(ranks, [&](int rank) {
      const auto comm = must(parallel::join_gloo({.who = {.rank = rank, .size = ranks, .host = "127.0.0.1"},
                                                  .rendezvous = server->endpoint(),
                                                  .address = "127.0.0.1"}));
      measure(*comm, operation, own, largest);
    });
  }
  if (member == "gloo-own") {
    const auto folder = std::filesystem::temp_directory_path() / fmt::format("collectives_bench.{}", ::getpid());
    std::filesystem::create_directories(folder);
    const int failed =
        in_processes(ranks, [&](int rank) { measure_gloo_itself(rank, ranks, folder.string(), largest); });
    std::filesystem::remove_all(folder);
    return failed;
  }
  fmt::print(stderr, "no member {}\n", member);
  return 2;
}
