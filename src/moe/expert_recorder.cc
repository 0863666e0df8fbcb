#include "moe/expert_recorder.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <numeric>

#include "base/check.h"

namespace sluice::moe {

using nlohmann::json;

Result<RecordMode> record_mode(std::string_view name) {
  if (name == "stat" || name == "stat_approx") return RecordMode::kStat;
  if (name == "per_pass") return RecordMode::kPerPass;
  if (name == "per_token") return RecordMode::kPerToken;
  return Error{ErrorCode::kBadOption, fmt::format("--expert-distribution-recorder-mode {}: stat, stat_approx, per_pass "
                                                  "and per_token are known",
                                                  name)};
}

ExpertRecorder::ExpertRecorder(Options options, Experts experts)
    : options_(options), experts_(std::move(experts)), listed_(experts_.own) {
  if (!experts_.move) return;
  for (auto& of_layer : listed_) {
    of_layer.resize(static_cast<size_t>(experts_.logical));
    std::iota(of_layer.begin(), of_layer.end(), 0);
  }
}

void ExpertRecorder::start(std::vector<int64_t> loads) {
  recording_ = true;
  before_ = std::move(loads);
  forget();
}

void ExpertRecorder::forget() {
  steps_.clear();
  forgotten_ = 0;
  counts_ = choices_ = 0;
}

void ExpertRecorder::drop_oldest() {
  counts_ -= std::ssize(steps_.front().counts);
  choices_ -= std::ssize(steps_.front().choices);
  if (forgotten_ > 0) --forgotten_;
  steps_.pop_front();
}

void ExpertRecorder::forget_oldest_tokens() {
  Step& oldest = steps_[forgotten_++];
  choices_ -= std::ssize(oldest.choices);
  oldest.ids = oldest.positions = oldest.choices = std::vector<int32_t>();
}

void ExpertRecorder::add(int64_t step, std::vector<int64_t> loads, const Tokens& tokens) {
  if (!recording_) return;
  SLUICE_CHECK(loads.size() == before_.size(), "loads of {} experts after those of {}", loads.size(), before_.size());
  Step added{.number = step, .counts = counts_of(loads)};
  before_ = std::move(loads);
  if (options_.mode == RecordMode::kPerToken) {
    added.ids.assign(tokens.ids.begin(), tokens.ids.end());
    added.positions.assign(tokens.positions.begin(), tokens.positions.end());
    added.choices.assign(tokens.experts.begin(), tokens.experts.end());
    added.top_k = tokens.top_k;
  }
  counts_ += std::ssize(added.counts);
  choices_ += std::ssize(added.choices);
  steps_.push_back(std::move(added));
  while (options_.steps >= 0 && std::ssize(steps_) > options_.steps) drop_oldest();
  while (counts_ > options_.most_counts && steps_.size() > 1) drop_oldest();
  while (choices_ > options_.most_choices) forget_oldest_tokens();
}

std::vector<int64_t> ExpertRecorder::counts_of(const std::vector<int64_t>& loads) const {
  std::vector<int64_t> counts;
  size_t at = 0;
  for (size_t layer = 0; layer < experts_.own.size(); ++layer) {
    const size_t first = counts.size();
    counts.resize(first + listed_[layer].size());
    for (size_t i = 0; i < experts_.own[layer].size(); ++i, ++at) {
      counts[first + (experts_.move ? static_cast<size_t>(experts_.own[layer][i]) : i)] += loads[at] - before_[at];
    }
  }
  return counts;
}

json ExpertRecorder::by_layer(const std::vector<int64_t>& counts) const {
  json layers = json::array();
  auto at = counts.begin();
  for (const auto& listed : listed_) {
    layers.push_back(std::vector<int64_t>(at, at + std::ssize(listed)));
    at += std::ssize(listed);
  }
  return layers;
}

json ExpertRecorder::tokens_of(const Step& step) const {
  json layers = json::array();
  const int64_t n = std::ssize(step.ids);
  auto at = step.choices.begin();
  for (size_t layer = 0; layer < experts_.layers.size(); ++layer) {
    json tokens = json::array();
    for (int64_t i = 0; i < n; ++i, at += step.top_k) tokens.push_back(std::vector<int32_t>(at, at + step.top_k));
    layers.push_back(std::move(tokens));
  }
  return {{"input_ids", step.ids}, {"positions", step.positions}, {"topk_ids_of_layer", std::move(layers)}};
}

json ExpertRecorder::take() {
  constexpr std::string_view kModes[] = {"stat", "per_pass", "per_token"};
  json out{{"mode", kModes[static_cast<size_t>(options_.mode)]},
           {"tp_size", experts_.tp_size},
           {"model_layers", experts_.model_layers},
           {"logical", experts_.logical},
           {"layers", experts_.layers},
           {"own", listed_},
           {"reports", experts_.reports}};
  size_t counted = 0;
  for (const auto& listed : listed_) counted += listed.size();
  std::vector<int64_t> total(counted);  // all zero before the first start
  json steps = json::array();
  for (const Step& step : steps_) {
    json one{{"step", step.number}};
    std::vector<int64_t> rank;  // tokens of each layer that came to this rank
    auto at = step.counts.begin();
    for (const auto& listed : listed_) {
      rank.push_back(std::accumulate(at, at + std::ssize(listed), int64_t{0}));
      at += std::ssize(listed);
    }
    one["tokens"] = std::move(rank);
    if (options_.mode == RecordMode::kPerPass) one["counts"] = by_layer(step.counts);
    if (options_.mode == RecordMode::kPerToken) {
      json tokens = tokens_of(step);
      for (auto& [name, values] : tokens.items()) one[name] = std::move(values);
    }
    for (size_t i = 0; i < total.size(); ++i) total[i] += step.counts[i];
    steps.push_back(std::move(one));
  }
  out["counts"] = by_layer(total);
  out["steps"] = std::move(steps);
  forget();
  return out;
}

}  // namespace sluice::moe
