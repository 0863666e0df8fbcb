// The command line of `sluice explain`: that of `sluice server`, and what it is asked about.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/options.h"
#include "base/result.h"
#include "engine/explain/hardware.h"
#include "engine/options.h"

namespace sluice::engine {

struct ExplainOptions {
  bool json;
  std::string hardware;
  std::optional<int64_t> num_gpus;
  std::optional<double> gpu_memory, gpu_bandwidth, gpu_flops, link_bandwidth, link_latency;
  double efficiency;
  int64_t input_len, output_len;
  StringList concurrency;
};

struct ExplainArguments {
  EngineOptions engine;
  ExplainOptions explain;
};
// Every flag of the server is taken; those that a layout does not depend on change nothing. kBadOption.
Result<ExplainArguments> parse_explain_arguments(const std::vector<std::string>& arguments);

const OptionTable<ExplainOptions>& explain_option_table();
// For help and the docs: those, and the flags of the server that change what is explained.
const std::vector<internal::OptionSpec>& explain_option_specs();

// What --concurrency lists; by default 1, 2, 4 ... 512. kBadOption.
Result<std::vector<int64_t>> concurrency_of(const ExplainOptions& options);
// What --hardware and the flags beside it say. `ranks`: devices, where none says. Measures this machine for "cpu".
Result<Hardware> hardware_of(const ExplainOptions& options, int64_t ranks);

}  // namespace sluice::engine
