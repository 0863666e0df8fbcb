// Lines of an engine's /metrics page, in Prometheus' text format.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace sluice::gateway {

// One sample as it is written; parts of the line that it was read from.
struct ExpositionSample {
  std::string_view name;
  std::string_view labels;  // between the braces, without a last comma; empty = none
  std::string_view value;   // and a time, if there is one
};
// None: the line is no sample.
std::optional<ExpositionSample> read_sample(std::string_view line);

// Takes a metric's name off the front; empty if there is none.
std::string_view take_metric_name(std::string_view& text);
std::string_view trimmed(std::string_view text);

// The value of a sample's label as it is written, escapes included; none without that label.
std::optional<std::string_view> label_in(std::string_view labels, std::string_view name);
// Of a sample's value; none if that is no number, or none that a load can be (negative, infinite, NaN).
std::optional<double> amount_in(std::string_view value);

}  // namespace sluice::gateway
