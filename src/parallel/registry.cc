#include "parallel/registry.h"

#include <thread>

#include "parallel/gloo.h"
#include "parallel/inproc.h"
#include "parallel/shm.h"

namespace sluice::parallel {
namespace {

Result<std::vector<std::unique_ptr<Communicator>>> make_inproc(int size, const GroupOptions& options) {
  return make_inproc_group(size, options);
}

Result<std::vector<std::unique_ptr<Communicator>>> make_shm(int size, const GroupOptions& options) {
  SLUICE_TRY(const auto segment, ShmSegment::create(size));
  std::vector<std::unique_ptr<Communicator>> made;
  for (int rank = 0; rank < size; ++rank) {
    SLUICE_TRY(auto joined, join_shm(segment, rank, size, options));
    made.push_back(std::move(joined));
  }
  return made;
}

Result<std::vector<std::unique_ptr<Communicator>>> make_gloo(int size, const GroupOptions& options) {
  SLUICE_TRY(const auto server, RendezvousServer::serve("127.0.0.1:0", size));
  std::vector<std::unique_ptr<Communicator>> made(static_cast<size_t>(size));
  std::vector<Result<void>> results(made.size());
  std::vector<std::thread> threads;  // each waits for all others
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      auto joined = join_gloo({.who = {.rank = rank, .size = size, .host = "127.0.0.1"},
                               .rendezvous = server->endpoint(),
                               .address = "127.0.0.1"},
                              options);
      const auto at = static_cast<size_t>(rank);
      if (joined.ok()) {
        made[at] = std::move(*joined);
      } else {
        results[at] = joined.error();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) SLUICE_TRY_VOID(result);
  return made;
}

}  // namespace

const std::vector<CommunicatorRow>& communicators() {
  static const std::vector<CommunicatorRow> rows = {
      {"inproc", make_inproc, "threads of one process: the reference"},
      {"shm", make_shm, "processes of one host, through shared memory"},
      {"gloo", make_gloo, "processes on several hosts, over TCP"},
  };
  return rows;
}

}  // namespace sluice::parallel
