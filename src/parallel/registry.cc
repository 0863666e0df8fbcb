#include "parallel/registry.h"

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

}  // namespace

const std::vector<CommunicatorRow>& communicators() {
  static const std::vector<CommunicatorRow> rows = {
      {"inproc", make_inproc, "threads of one process: the reference"},
      {"shm", make_shm, "processes of one host, through shared memory"},
  };
  return rows;
}

}  // namespace sluice::parallel
