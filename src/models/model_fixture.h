// What the tests of models share: fixtures, steps of a runner, and how far two results may be apart.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "models/config.h"
#include "models/runner.h"

namespace sluice::models {

inline std::string folder_of(const std::string& fixture) { return std::string(SLUICE_FIXTURES_DIR) + "/" + fixture; }

// One sequence's tokens for one step.
struct Piece {
  int32_t row = 0;           // of the slot table
  std::vector<int32_t> ids;  // new tokens
  int32_t cached = 0;        // tokens before them
};

// What a step gave, of every new token.
struct Output {
  std::vector<float> logits;  // [tokens, vocab]
  Routing routing;

  size_t tokens() const { return routing.margins.size() / static_cast<size_t>(std::max<int64_t>(1, routing.layers)); }
  // The experts of one token in one layer, whatever their order.
  std::vector<int32_t> experts(size_t layer, size_t token) const {
    const auto k = static_cast<size_t>(routing.top_k);
    const auto at = routing.experts.begin() + static_cast<int64_t>((layer * tokens() + token) * k);
    std::vector<int32_t> chosen(at, at + routing.top_k);
    std::sort(chosen.begin(), chosen.end());
    return chosen;
  }
  float margin(size_t layer, size_t token) const { return routing.margins[layer * tokens() + token]; }
};

// Tokens [first, end) of one step.
inline Output part_of(const Output& whole, size_t first, size_t end) {
  const size_t vocab = 512, k = static_cast<size_t>(whole.routing.top_k);
  Output part{{whole.logits.begin() + static_cast<int64_t>(first * vocab),
               whole.logits.begin() + static_cast<int64_t>(end * vocab)},
              {.layers = whole.routing.layers, .top_k = whole.routing.top_k}};
  for (size_t layer = 0; layer < static_cast<size_t>(whole.routing.layers); ++layer) {
    const size_t row = layer * whole.tokens();
    const auto experts = whole.routing.experts.begin();
    const auto margins = whole.routing.margins.begin();
    part.routing.experts.insert(part.routing.experts.end(), experts + static_cast<int64_t>((row + first) * k),
                                experts + static_cast<int64_t>((row + end) * k));
    part.routing.margins.insert(part.routing.margins.end(), margins + static_cast<int64_t>(row + first),
                                margins + static_cast<int64_t>(row + end));
  }
  return part;
}

inline constexpr int32_t kWidth = 256;

// Sequence `row` lives in scattered slots, so that a wrong use of the table shows.
inline int32_t slot_of(int32_t row, int32_t position) { return 1 + (position * 7 + row * kWidth) % (8 * kWidth - 1); }

// The arrays of a step whose logits are wanted of every token.
class StepArrays {
 public:
  explicit StepArrays(const std::vector<Piece>& pieces) {
    for (const Piece& piece : pieces) {
      for (size_t i = 0; i < piece.ids.size(); ++i) {
        const auto position = piece.cached + static_cast<int32_t>(i);
        ids_.push_back(piece.ids[i]);
        positions_.push_back(position);
        slots_.push_back(slot_of(piece.row, position));
      }
      starts_.push_back(static_cast<int32_t>(ids_.size()));
      lens_.push_back(piece.cached + static_cast<int32_t>(piece.ids.size()));
      rows_.push_back(piece.row);
    }
    wanted_.resize(ids_.size());
    std::iota(wanted_.begin(), wanted_.end(), 0);
  }
  // Valid as long as this.
  StepBatch view() const {
    return {.token_ids = ids_,
            .positions = positions_,
            .kv_slots = slots_,
            .query_start = starts_,
            .seq_lens = lens_,
            .table_rows = rows_,
            .logit_rows = wanted_};
  }

 private:
  std::vector<int32_t> ids_, positions_, slots_, starts_{0}, lens_, rows_, wanted_;
};

class Steps {
 public:
  explicit Steps(Runner& runner) : runner_(runner) {
    const auto allocated = runner.allocate_kv({.slots = 8 * kWidth, .table_rows = 8, .table_width = kWidth});
    EXPECT_TRUE(allocated.ok());
    for (int32_t row = 0; row < 8; ++row) {
      for (int32_t p = 0; p < kWidth; ++p) runner.slot_table()[static_cast<size_t>(row * kWidth + p)] = slot_of(row, p);
    }
  }

  // With `forced`, tokens go to its experts whatever the routers choose.
  Output run(const std::vector<Piece>& pieces, const Routing& forced = {}) {
    runner_.force_routing(forced);
    return run(StepArrays(pieces).view());
  }
  Output run(const StepBatch& batch) {
    const auto logits = runner_.forward(batch);
    EXPECT_TRUE(logits.ok()) << logits.error().message;
    if (!logits.ok()) return {};
    return {{logits->begin(), logits->end()}, runner_.last_routing()};
  }

 private:
  Runner& runner_;
};

// How far results of a fixture in some arithmetic may be apart.
class Closeness {
 public:
  Closeness(const std::string& fixture, const std::string& dtype) : dtype_(dtype) {
    std::ifstream file(folder_of(fixture) + "/config.json");
    config_ = config_from_json(nlohmann::json::parse(file), nullptr).value();
  }

  // How far a value of this spread may be from the reference. The hidden state is normed before the head, so a logit is
  // a sum of `hidden` products whose size the spread of the logits shows; each layer adds a rounding of its inputs
  // (2^-9 relative for bf16, 2^-24 for f32, and a few times that for sums of up to 192 products) in so many places,
  // which add like independent errors: spread * roundings * sqrt(layers) * u, and a factor of 8 for the largest of some
  // thousand values. Two runs that are compared with each other both have those errors.
  float tolerance(double spread = 1, int runs = 1) const {
    const double unit = dtype_ == "bfloat16" ? 0x1p-9 : 16 * 0x1p-24;
    return static_cast<float>(8 * spread * roundings() * std::sqrt(3.0 * runs) * unit);
  }
  float tolerance(const std::vector<float>& reference, int runs = 1) const {
    double squares = 0;
    for (const float value : reference) squares += static_cast<double>(value) * value;
    return tolerance(std::sqrt(squares / static_cast<double>(reference.size())), runs);
  }
  // Errors of an output in units of sqrt(layers) roundings. There are about ten places, and in bf16 attention of
  // many rows rounds queries and weights; latent attention rounds the compressed, the plain and the absorbed queries,
  // the latents that are summed and the weights of the sums, and has a second path of keys; FP8 weights are rounded as
  // well where they are widened to bf16, in six matrices. What is rounded in queries and keys moves scores that
  // DeepSeek's YaRN multiplies.
  double roundings() const {
    return config_.rope.score_scale * std::sqrt(10.0 + (config_.mla ? 6 : 2) + (config_.fp8 ? 6 : 0));
  }
  // Router logits have a spread of about 1, and a score moves by at most a quarter of what its logit does.
  float near_tie_of_routers(int runs) const { return tolerance(1, runs) / 4; }

  // `want` was forced to take the experts of `got`, which its routers may not have chosen only where they are near a
  // tie.
  void expect_same(const Output& got, const Output& want, int runs = 1) const {
    const size_t vocab = 512, tokens = want.logits.size() / vocab;
    const float allowed = tolerance(want.logits, runs);
    for (size_t token = 0; token < tokens; ++token) {
      for (size_t layer = 0; layer < static_cast<size_t>(want.routing.layers); ++layer) {
        if (got.experts(layer, token) == want.experts(layer, token)) continue;
        EXPECT_LT(want.margin(layer, token), near_tie_of_routers(runs)) << "layer " << layer << " token " << token;
      }
      float worst = 0;
      for (size_t i = 0; i < vocab; ++i) {
        worst = std::max(worst, std::abs(got.logits[(token)*vocab + i] - want.logits[token * vocab + i]));
      }
      EXPECT_LT(worst, allowed) << "token " << token;
    }
  }

 private:
  std::string dtype_;
  ModelConfig config_;
};

}  // namespace sluice::models
