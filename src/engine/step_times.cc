#include "engine/step_times.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace sluice::engine {
namespace {

constexpr double kWeight = 0.25;  // of a new measurement
// Of one that says that prompts are faster, or slower, than was thought: better too little than too much.
constexpr double kFasterWeight = 0.1;
constexpr double kSlowerWeight = 0.5;
// What a number of requests takes is known if it was measured for one this near: the rest is interpolated.
constexpr double kNear = 1.25;
constexpr int64_t kMixedSteps = 64;  // after so many, contexts have grown and decoding is measured anew
constexpr double kMargin = 0.85;     // steps vary
constexpr int64_t kFirstTokens = 8;  // before anything is known of prompts

}  // namespace

void StepTimes::record(int64_t decoding, int64_t prompt_tokens, double seconds) {
  if (prompt_tokens == 0) {
    since_decode_step_ = 0;
    const auto [at, is_new] = decode_seconds_.try_emplace(decoding, seconds);
    if (!is_new) at->second += kWeight * (seconds - at->second);
    return;
  }
  ++since_decode_step_;
  const auto decode = decode_seconds(decoding);
  // Chunks without anybody beside them are large, and large chunks are cheaper by the token.
  if (decoding == 0 || !decode) return;
  const double each = std::max(0.0, seconds - *decode) / static_cast<double>(prompt_tokens);
  const double weight = each < token_seconds_ ? kFasterWeight : kSlowerWeight;
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
  const auto tokens = static_cast<uint64_t>(std::clamp(kMargin * (gap - 1) * *decode / token_seconds_, 1.0, 1e9));
  // Few different lengths: libraries prepare for each one that they meet.
  const uint64_t grain = std::max<uint64_t>(1, std::bit_floor(tokens) / 8);
  return static_cast<int64_t>(tokens - tokens % grain);
}

}  // namespace sluice::engine
