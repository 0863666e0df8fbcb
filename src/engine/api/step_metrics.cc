#include "engine/api/step_metrics.h"

#include <initializer_list>
#include <iterator>
#include <string>
#include <string_view>

namespace sluice::engine {
namespace {

using obs::Kind;

constexpr std::string_view kOutcomes = "sglang:prefill_delayer_outcomes_total";
constexpr std::string_view kTokens = "sglang:dp_cooperation_realtime_tokens_total";
// The runtime's older name and its newer one.
constexpr std::string_view kSeconds[] = {"sglang:dp_cooperation_gpu_execution_seconds_total",
                                         "sglang:dp_cooperation_forward_execution_seconds_total"};
constexpr const char* kModes[] = {"prefill_compute", "prefill_cache", "decode"};
constexpr const char* kCategories[] = {"extend", "decode", "mixed"};

// Labels of each DelayOutcome; the runtime's words, but for no_decode, where nobody decodes.
struct OutcomeRow {
  const char *estimation, *allow, *reason;
};
constexpr OutcomeRow kOutcomeRows[] = {{"mixed", "false", "delay"},     {"all", "true", "no_wait"},
                                       {"all", "true", "wait_success"}, {"mixed", "true", "token_watermark"},
                                       {"mixed", "true", "no_decode"},  {"mixed", "true", "wait_timeout"}};
static_assert(std::size(kOutcomeRows) == std::size(PrefillDelays{}.outcomes));

obs::LabelValues plus(obs::LabelValues labels, std::initializer_list<std::string> more) {
  labels.insert(labels.end(), more);
  return labels;
}

double grown(double now, double& before) {
  const double by = now >= before ? now - before : now;
  before = now;
  return by;
}

}  // namespace

struct StepMetrics::Last {
  double outcomes[std::size(kOutcomeRows)] = {};
  double tokens[DpCooperation::kMostGroups + 1][3] = {};
  double seconds[DpCooperation::kMostGroups + 1][3] = {};
};

StepMetrics::StepMetrics(obs::Metrics& metrics, const RankLabels& labels, const RankMetricsOptions& options)
    : metrics_(metrics), options_(options), last_(labels.ranks()) {
  std::vector<obs::Family> families;
  const auto add = [&](std::string_view name, std::string_view help, std::initializer_list<std::string_view> more) {
    families.push_back({.name = name, .help = help, .kind = Kind::kCounter, .labels = labels.names()});
    families.back().labels.insert(families.back().labels.end(), more);
  };
  if (options.prefill_delayer) {
    add(kOutcomes, "What became of prompts that could begin in a step.",
        {"input_estimation", "output_allow", "output_reason", "actual_execution"});
  }
  if (options.cooperation) {
    add(kTokens, "Tokens as they are processed, by kind of work and attention groups that prefill in the step.",
        {"mode", "num_prefill_ranks"});
    for (const auto name : kSeconds) {
      add(name, "Time of forward passes, by what they compute and attention groups that prefill in the step.",
          {"category", "num_prefill_ranks"});
    }
  }
  metrics_.declare(families);
}
StepMetrics::~StepMetrics() = default;

void StepMetrics::begin_anew(size_t i) { last_[i] = {}; }

void StepMetrics::count_up(size_t i, const obs::LabelValues& with, const LoadSnapshot& load) {
  Last& last = last_[i];
  for (size_t o = 0; options_.prefill_delayer && o < std::size(kOutcomeRows); ++o) {
    const OutcomeRow& row = kOutcomeRows[o];
    metrics_.counter(kOutcomes, plus(with, {row.estimation, row.allow, row.reason, row.allow}))
        .add(grown(static_cast<double>(load.prefill_delays.outcomes[o]), last.outcomes[o]));
  }
  if (!options_.cooperation) return;
  for (size_t groups = 0; groups <= DpCooperation::kMostGroups; ++groups) {
    for (size_t m = 0; m < std::size(kModes); ++m) {
      const double tokens = grown(static_cast<double>(load.cooperation.tokens[groups][m]), last.tokens[groups][m]);
      const double seconds = grown(load.cooperation.seconds[groups][m], last.seconds[groups][m]);
      const std::string number = std::to_string(groups);
      // Only what has happened: most numbers of groups never come.
      if (tokens > 0) metrics_.counter(kTokens, plus(with, {kModes[m], number})).add(tokens);
      if (seconds <= 0) continue;
      for (const auto name : kSeconds) metrics_.counter(name, plus(with, {kCategories[m], number})).add(seconds);
    }
  }
}

}  // namespace sluice::engine
