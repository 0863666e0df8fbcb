// What the experts of one rank were given, step by step, while a recording goes on. The front
// puts the ranks' records together (engine/expert_report.h).
#pragma once

#include <cstdint>
#include <deque>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace sluice::moe {

enum class RecordMode : uint8_t {
  kStat,      // sums over the steps
  kPerPass,   // each step by itself
  kPerToken,  // the experts of each token
};
// --expert-distribution-recorder-mode; stat_approx is stat, since counts are exact however tokens get to their experts.
Result<RecordMode> record_mode(std::string_view name);

// Used by the rank's thread.
class ExpertRecorder {
 public:
  struct Options {
    RecordMode mode = RecordMode::kStat;
    int64_t steps = 1000;  // the latest so many are kept; -1 = all
    // Bounds whatever `steps` is. Of counts: the oldest steps make room, on all ranks the same.
    int64_t most_counts = int64_t{1} << 24;
    // Of the experts of tokens, which a dump writes one by one while the other ranks wait: the oldest steps give up
    // their tokens, and keep their counts.
    int64_t most_choices = int64_t{1} << 21;
  };
  // The experts of this rank.
  struct Experts {
    int64_t tp_size = 1;  // ranks of the instance
    int64_t model_layers = 0;
    int64_t logical = 0;                    // experts of a layer, copies counted once
    std::vector<int64_t> layers;            // of the model, those with experts
    std::vector<std::vector<int32_t>> own;  // [layers] logical numbers of this rank's
    bool move = false;                      // relocate() will be called: counts are of all experts, not of the own
    bool reports = true;                    // false: another rank has the same and counts the same tokens
  };
  // Of one step, where each token is recorded.
  struct Tokens {
    std::span<const int32_t> ids, positions;  // [n]
    std::span<const int32_t> experts;         // [layers, n, top_k] logical
    int64_t top_k = 0;
  };
  ExpertRecorder(Options options, Experts experts);

  // `loads` [layers * own] are tokens that each expert got since the rank's start.
  void start(std::vector<int64_t> loads);
  // This rank's experts of the index-th layer with experts are others from the next step on.
  void relocate(size_t layer, std::vector<int32_t> own) { experts_.own[layer] = std::move(own); }
  void stop() { recording_ = false; }
  bool recording() const { return recording_; }
  RecordMode mode() const { return options_.mode; }
  // Steps are numbered alike on all ranks of an instance.
  void add(int64_t step, std::vector<int64_t> loads, const Tokens& tokens);
  // What was recorded, which is forgotten; a recording goes on.
  nlohmann::json take();

 private:
  struct Step {
    int64_t number = 0;
    std::vector<int64_t> counts;                   // [layers * listed]
    std::vector<int32_t> ids, positions, choices;  // kPerToken
    int64_t top_k = 0;
  };
  std::vector<int64_t> counts_of(const std::vector<int64_t>& loads) const;
  nlohmann::json by_layer(const std::vector<int64_t>& counts) const;
  nlohmann::json tokens_of(const Step& step) const;
  void forget();
  void drop_oldest();
  void forget_oldest_tokens();

  const Options options_;
  Experts experts_;
  std::vector<std::vector<int32_t>> listed_;  // [layers] logical numbers of the experts that are counted
  bool recording_ = false;
  std::vector<int64_t> before_;  // loads after the last step
  std::deque<Step> steps_;
  size_t forgotten_ = 0;              // so many of the oldest have no tokens any more
  int64_t counts_ = 0, choices_ = 0;  // of all steps
};

}  // namespace sluice::moe
