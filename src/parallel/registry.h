// The family of communicators. Each member passes parallel/communicator_conformance_test.cc by having a row here.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "parallel/communicator.h"

namespace sluice::parallel {

struct CommunicatorRow {
  std::string_view name;
  // All ranks of a group in this process, each for a thread of its own: for tests and measurements.
  Result<std::vector<std::unique_ptr<Communicator>>> (*make_group)(int size, const GroupOptions& options);
  std::string_view help;
};
const std::vector<CommunicatorRow>& communicators();

}  // namespace sluice::parallel
