#include "engine/step_times.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace sluice::engine {
namespace {

constexpr double kWeight = 0.25;       // of a new measurement
constexpr double kFasterWeight = 0.1;  // of one that says that prompts are faster than was thought
// What a number of requests takes is known if it was measured for one this near: the rest is interpolated.
constexpr double kNear = 1.25;
constexpr int64_t kMixedSteps = 64;   // after so many, contexts have grown and decoding is measured anew
constexpr double kMargin = 0.9;       // steps vary
constexpr int64_t kFirstTokens = 16;  // before anything is known of prompts

}  // namespace

void StepTimes::record(int64_t decoding, int64_t prompt_tokens, double seconds) {
  if (prompt_tokens == 0) {
    since_decode_step_ = 0;
    const auto [at, is_new] = decode_seconds_.try_emplace(decoding, seconds);
    if (!is_new) at->second += kWeight * (seconds - at->second);
    return;
  }
  ++since_decode_step_;
  const auto decode = decoding > 0 ? decode_seconds(decoding) : 0.0;
  if (!decode) return;
  const double each = std::max(0.0, seconds - *decode) / static_cast<double>(prompt_tokens);
  const double weight = each < token_seconds_ ? kFasterWeight : kWeight;
  token_seconds_ = token_seconds_ == 0 ? each : token_seconds_ + weight * (each - token_seconds_);
}

bool StepTimes::wants_decode_step(int64_t decoding) const {
  if (since_decode_step_ >= kMixedSteps) return true;
  const auto n = static_cast<double>(decoding);
  const auto above = decode_seconds_.lower_bound(decoding);
  if (above != decode_seconds_.end() && static_cast<double>(above->first) <= n * kNear) return false;
  return above == decode_seconds_.begin() || static_cast<double>(std::prev(above)->first) * kNear < n;
}

std::optional<double> StepTimes::decode_seconds(int64_t decoding) const {
  const auto above = decode_seconds_.lower_bound(decoding);
  if (above == decode_seconds_.end()) {
    if (decode_seconds_.empty()) return std::nullopt;
    return decode_seconds_.rbegin()->second;
  }
  if (above->first == decoding) return above->second;
  // None below: no request takes no time.
  const auto below = above == decode_seconds_.begin() ? std::pair<const int64_t, double>{0, 0.0} : *std::prev(above);
  const double share = static_cast<double>(decoding - below.first) / static_cast<double>(above->first - below.first);
  return below.second + share * (above->second - below.second);
}

int64_t StepTimes::prompt_tokens(int64_t decoding, double gap) const {
  const auto decode = decode_seconds(decoding);
  if (!decode || token_seconds_ <= 0) return kFirstTokens;
  const double tokens = std::floor(kMargin * (gap - 1) * *decode / token_seconds_);
  return static_cast<int64_t>(std::clamp(tokens, 1.0, 1e9));
}

}  // namespace sluice::engine
