#include "engine/expert_report.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "moe/eplb.h"

namespace sluice::engine {
namespace {

using nlohmann::json;
// By step, then by layer: tokens of each rank.
using StepTokens = std::map<int64_t, std::vector<std::vector<int64_t>>>;

void add_counts(const json& record, ExpertReport& report) {
  const auto layers = record.at("layers").get<std::vector<size_t>>();
  report.logical_count.resize(record.at("model_layers").get<size_t>(),
                              std::vector<int64_t>(record.at("logical").get<size_t>()));
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto own = record.at("own").at(i).get<std::vector<size_t>>();
    const auto counts = record.at("counts").at(i).get<std::vector<int64_t>>();
    for (size_t e = 0; e < own.size(); ++e) report.logical_count.at(layers[i]).at(own[e]) += counts.at(e);
  }
}

// Returns the tokens of all steps.
int64_t add_steps(const json& record, StepTokens& steps) {
  int64_t sum = 0;
  for (const json& step : record.at("steps")) {
    auto& layers = steps[step.at("step").get<int64_t>()];
    const auto tokens = step.at("tokens").get<std::vector<int64_t>>();
    layers.resize(tokens.size());
    for (size_t layer = 0; layer < tokens.size(); ++layer) {
      layers[layer].push_back(tokens[layer]);
      sum += tokens[layer];
    }
  }
  return sum;
}

Result<void> write(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text << '\n';
  file.close();
  if (file) return {};
  return Error{ErrorCode::kUnavailable, fmt::format("{} cannot be written: {}", path, std::strerror(errno))};
}

}  // namespace

Result<ExpertReport> merge_expert_records(const std::map<int64_t, std::string>& records) {
  ExpertReport report;
  try {
    std::map<int64_t, StepTokens> instances;
    std::map<int64_t, size_t> reporters;
    for (const auto& [rank, text] : records) {
      const json record = json::parse(text);
      report.mode = record.at("mode").get<std::string>();
      if (!record.at("reports").get<bool>()) continue;
      const int64_t instance = rank / record.at("tp_size").get<int64_t>();
      ++reporters[instance];
      add_counts(record, report);
      report.rank_tokens[rank] = add_steps(record, instances[instance]);
    }
    double sum = 0;
    int64_t layers = 0;
    for (const auto& [instance, steps] : instances) {
      for (const auto& [number, of_step] : steps) {
        // Of a longer buffer on some ranks, or none of one that started anew.
        if (of_step.empty() || of_step[0].size() != reporters[instance]) continue;
        ++report.steps;
        for (const auto& ranks : of_step) {
          sum += moe::balancedness(ranks);
          ++layers;
        }
      }
    }
    if (layers > 0) report.balancedness = sum / static_cast<double>(layers);
  } catch (const json::exception& e) {
    return Error{ErrorCode::kProtocol, fmt::format("a rank's record of its experts: {}", e.what())};
  } catch (const std::out_of_range& e) {
    return Error{ErrorCode::kProtocol, fmt::format("a rank's record of its experts: {}", e.what())};
  }
  return report;
}

Result<std::vector<std::string>> write_expert_records(const ExpertReport& report,
                                                      const std::map<int64_t, std::string>& records,
                                                      const std::string& prefix) {
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(prefix).parent_path(), ignored);
  std::vector<std::string> paths{prefix + ".json"};
  json sums{{"mode", report.mode},
            {"steps", report.steps},
            {"average_utilization_rate_over_window", report.balancedness},
            {"logical_count", report.logical_count},
            {"rank_tokens", json::object()}};
  for (const auto& [rank, tokens] : report.rank_tokens) sums["rank_tokens"][std::to_string(rank)] = tokens;
  SLUICE_TRY_VOID(write(paths[0], sums.dump()));
  if (report.mode == "stat") return paths;
  for (const auto& [rank, text] : records) {
    paths.push_back(fmt::format("{}_{}.json", prefix, rank));
    SLUICE_TRY_VOID(write(paths.back(), text));
  }
  return paths;
}

}  // namespace sluice::engine
