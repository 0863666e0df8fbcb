#include "parallel/registry.h"

#include "parallel/inproc.h"

namespace sluice::parallel {
namespace {

Result<std::vector<std::unique_ptr<Communicator>>> make_inproc(int size, const GroupOptions& options) {
  return make_inproc_group(size, options);
}

}  // namespace

const std::vector<CommunicatorRow>& communicators() {
  static const std::vector<CommunicatorRow> rows = {
      {"inproc", make_inproc, "threads of one process: the reference"},
  };
  return rows;
}

}  // namespace sluice::parallel
