// Latency and bandwidth of collectives by size, with a process for each rank (inproc: a thread). Call times are rank
// 0's, one call after the other without work between.
//
// usage: collectives_bench [member [ranks [operation]]]     default: shm 4 all_reduce
//        operations: all_reduce, all_gather, reduce_scatter, barrier; with "+own" input lies in buffer()
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "parallel/inproc.h"
#include "parallel/shm.h"

using namespace sluice;
using parallel::Communicator;
using parallel::Element;

namespace {

constexpr size_t kLargest = 64 << 20;
constexpr double kSecondsPerSize = 0.3;

template <class T>
T must(Result<T> result) {
  if (!result.ok()) {
    fmt::print(stderr, "{}\n", result.error().message);
    std::exit(1);
  }
  return std::move(result).value();
}
void must(const Result<void>& result) {
  if (result.ok()) return;
  fmt::print(stderr, "{}\n", result.error().message);
  std::exit(1);
}

struct Operation {
  std::string name;
  bool own = false;

  // `bytes` are those of the whole vector: of each rank's input in all_reduce and reduce_scatter, of the output in
  // all_gather.
  void call(Communicator& comm, const void* in, void* out, size_t bytes) const {
    const auto count = static_cast<int64_t>(bytes / sizeof(float));
    if (name == "all_reduce") return must(comm.all_reduce({}, Element::kF32, in, out, count));
    if (name == "all_gather") return must(comm.all_gather({}, Element::kF32, in, out, count / comm.size()));
    if (name == "reduce_scatter") return must(comm.reduce_scatter({}, Element::kF32, in, out, count / comm.size()));
    return must(comm.barrier());
  }
};

void measure(Communicator& comm, const Operation& operation) {
  std::vector<float> in(kLargest / sizeof(float), 1.0f);
  std::vector<float> out(kLargest / sizeof(float));
  const bool barrier = operation.name == "barrier";
  for (size_t bytes = 64; bytes <= kLargest; bytes *= bytes < 1024 ? 16 : 4) {
    std::vector<double> times;
    double spent = 0;
    for (int round = 0;; ++round) {
      const void* from = in.data();
      if (operation.own) {
        void* const memory = must(comm.buffer({}, bytes));
        if (round < 2) std::memcpy(memory, in.data(), bytes);
        from = memory;
      }
      const auto begin = std::chrono::steady_clock::now();
      operation.call(comm, from, out.data(), bytes);
      const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      if (round >= 3) times.push_back(took);
      spent += took;
      // All end together: rank 0 says when.
      if (round % 16 != 15 && bytes < 1 << 20) continue;
      int32_t enough = (spent > kSecondsPerSize && times.size() >= 10) || times.size() > 20000;
      must(comm.broadcast({}, Element::kI32, &enough, 1, 0));
      if (enough) break;
    }
    if (barrier && comm.rank() != 0) return;
    if (comm.rank() != 0) continue;
    std::ranges::sort(times);
    const double median = times[times.size() / 2];
    fmt::print("{:>10} B  median {:>10.1f} us  p90 {:>10.1f} us  {:>7.2f} GB/s  {} calls\n", barrier ? 0 : bytes,
               median * 1e6, times[times.size() * 9 / 10] * 1e6, static_cast<double>(bytes) / median / 1e9,
               times.size());
    std::fflush(stdout);
    if (barrier) return;
  }
}

// `body` in a process for each rank.
void in_processes(int ranks, const std::function<void(int)>& body) {
  std::vector<pid_t> children;
  for (int rank = 0; rank < ranks; ++rank) {
    const pid_t child = ::fork();
    if (child == 0) {
      body(rank);
      std::fflush(stdout);
      ::_exit(0);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) ::waitpid(child, nullptr, 0);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string member = argc > 1 ? argv[1] : "shm";
  const int ranks = argc > 2 ? std::atoi(argv[2]) : 4;
  Operation operation{argc > 3 ? argv[3] : "all_reduce"};
  if (const size_t plus = operation.name.find("+own"); plus != std::string::npos) {
    operation.own = true;
    operation.name.resize(plus);
  }
  fmt::print("{} of {} ranks over {}{}\n", operation.name, ranks, member, operation.own ? ", input in buffer()" : "");
  std::fflush(stdout);
  if (member == "inproc") {
    auto group = parallel::make_inproc_group(ranks);
    std::vector<std::thread> threads;
    for (auto& comm : group) threads.emplace_back([&] { measure(*comm, operation); });
    for (auto& thread : threads) thread.join();
  } else if (member == "shm") {
    const auto segment = must(parallel::ShmSegment::create(ranks));
    in_processes(ranks, [&](int rank) { measure(*must(parallel::join_shm(segment, rank, ranks)), operation); });
  } else {
    fmt::print(stderr, "no member {}\n", member);
    return 2;
  }
}
