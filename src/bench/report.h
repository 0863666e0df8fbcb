// How a run is shown: the table at its end and the line of JSON in the output file. Labels, layout and keys are those
// of SGLang's bench_serving, so that what reads its output reads ours; what is ours comes after.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench/metrics.h"
#include "bench/options.h"

namespace sluice::bench {

struct Report {
  BenchOptions options;
  Summary summary;
  std::optional<double> accept_length;  // of speculative decoding, as the server reports it
  std::string server_info;              // JSON, or empty if the server did not answer
};

// Ends with a newline. A figure that was not measured is "n/a".
std::string table_of(const Report& report);
// A figure that was not measured is null.
nlohmann::ordered_json json_of(const Report& report);
// The additional members of --output-details, one value per request in the order of the data set.
void add_details(nlohmann::ordered_json& out, const std::vector<Outcome>& outcomes);

}  // namespace sluice::bench
