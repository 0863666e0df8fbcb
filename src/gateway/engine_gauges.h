// The load of an engine as its /metrics page has it, for engines that have no document for it (vLLM, and SGLang with
// --enable-metrics alone).
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string_view>

namespace sluice::gateway {

// {"loads":[{"dp_rank","num_running_reqs",...}]} as /v1/loads has it, with what the page says of each rank and nothing
// else. The families are sglang:*, which may be written sglang_*, and vllm:*; of several series of a rank (its
// tensor-parallel ranks) the largest counts. Null if the page does not say how full the KV pool is: it is not an
// engine's then.
nlohmann::ordered_json loads_of_gauges(std::string_view exposition);

}  // namespace sluice::gateway
