#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace sluice::engine {
namespace {

constexpr double kGreedyBelow = 1e-6;
constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr size_t kLanes = 8;

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// e^x for x <= 0, within 2 units in the last place or so; 0 below -87. Written so that the compiler turns a loop over
// it into SIMD, which it cannot do with std::exp. e^x = 2^n * e^r with |r| <= ln(2)/2; the polynomial is that of Cephes
// expf.
inline float exp_nonpositive(float x) {
  const float clamped = x > -87.0f ? x : -87.0f;
  const auto n = static_cast<int32_t>(clamped * 1.44269504088896341f - 0.5f);  // truncation rounds, x being <= 0
  const auto whole = static_cast<float>(n);
  const float r = (clamped - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float scaled = p * std::bit_cast<float>((n + 127) << 23);
  return x > -87.0f ? scaled : 0.0f;
}

// Largest value; NaN counts as absent.
float max_of(std::span<const float> row) {
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, kNever);
  size_t i = 0;
  for (; i + kLanes <= row.size(); i += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) lanes[l] = row[i + l] > lanes[l] ? row[i + l] : lanes[l];
  }
  for (; i < row.size(); ++i) lanes[0] = row[i] > lanes[0] ? row[i] : lanes[0];
  return *std::max_element(lanes, lanes + kLanes);
}

// Sum of e^((x - max) * scale). In float over blocks, in double over the blocks; the order of additions is fixed.
double sum_exp(std::span<const float> row, float max, float scale) {
  constexpr size_t kBlock = 1024;
  double total = 0;
  for (size_t from = 0; from < row.size(); from += kBlock) {
    const size_t to = std::min(row.size(), from + kBlock);
    float lanes[kLanes] = {};
    size_t i = from;
    for (; i + kLanes <= to; i += kLanes) {
      for (size_t l = 0; l < kLanes; ++l) lanes[l] += exp_nonpositive((row[i + l] - max) * scale);
    }
    for (; i < to; ++i) lanes[0] += exp_nonpositive((row[i] - max) * scale);
    for (const float lane : lanes) total += static_cast<double>(lane);
  }
  return total;
}

int32_t first_at(std::span<const float> row, float value) {
  const auto at = std::find(row.begin(), row.end(), value);
  return at == row.end() ? 0 : static_cast<int32_t>(at - row.begin());
}

}  // namespace

double random_unit(uint64_t seed, uint64_t position) {
  const uint64_t bits = mix(mix(seed + 0x9e3779b97f4a7c15) + (position + 1) * 0x9e3779b97f4a7c15);
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

bool has_penalties(const SamplingParams& params) {
  return params.frequency_penalty != 0 || params.presence_penalty != 0 || params.repetition_penalty != 1;
}

std::span<const float> Sampler::adjusted(const SampleInput& input) {
  const SamplingParams& params = *input.params;
  const bool penalise = input.counts && !input.counts->empty() && has_penalties(params);
  if (!penalise && params.logit_bias.empty() && input.forbidden.empty() && input.allowed.empty()) return input.logits;
  row_.assign(input.logits.begin(), input.logits.end());
  const auto inside = [&](int32_t token) { return token >= 0 && static_cast<size_t>(token) < row_.size(); };
  if (penalise) {
    const auto frequency = static_cast<float>(params.frequency_penalty);
    const auto presence = static_cast<float>(params.presence_penalty);
    const auto repetition = static_cast<float>(params.repetition_penalty);
    for (const auto& [token, count] : *input.counts) {
      if (!inside(token)) continue;
      float& logit = row_[static_cast<size_t>(token)];
      logit -= frequency * static_cast<float>(count) + presence;
      if (repetition > 0) logit = logit > 0 ? logit / repetition : logit * repetition;
    }
  }
  for (const auto& [token, bias] : params.logit_bias) {
    if (inside(token)) row_[static_cast<size_t>(token)] += static_cast<float>(bias);
  }
  for (size_t w = 0; w < input.allowed.size(); ++w) {
    // Mostly words of zeros, where a grammar is narrow.
    for (uint32_t missing = ~input.allowed[w]; missing != 0; missing &= missing - 1) {
      const size_t token = w * 32 + static_cast<size_t>(std::countr_zero(missing));
      if (token < row_.size()) row_[token] = kNever;
    }
  }
  for (const int32_t token : input.forbidden) {
    if (inside(token)) row_[static_cast<size_t>(token)] = kNever;
  }
  return row_;
}

void Sampler::gather(std::span<const float> logits, float threshold) {
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] >= threshold) candidates_.push_back({logits[i], static_cast<int32_t>(i)});
  }
}

int32_t Sampler::draw_from_all(std::span<const float> logits, float max, float inverse_temperature, double unit) {
  double left = unit * sum_exp(logits, max, inverse_temperature);
  int32_t last = first_at(logits, max);
  for (size_t i = 0; i < logits.size(); ++i) {
    const float weight = exp_nonpositive((logits[i] - max) * inverse_temperature);
    if (!(weight > 0)) continue;
    last = static_cast<int32_t>(i);
    left -= static_cast<double>(weight);
    if (left < 0) break;
  }
  return last;  // rounding may leave a crumb past the end: then the last token that can come
}

int32_t Sampler::sample(const SampleInput& input) {
  const SamplingParams& params = *input.params;
  const std::span<const float> logits = adjusted(input);
  const float max = max_of(logits);
  // Written so that a NaN temperature is greedy, too.
  if (!(params.temperature >= kGreedyBelow) || params.top_k == 1 || !std::isfinite(max)) return first_at(logits, max);

  const auto inverse_temperature = static_cast<float>(1.0 / params.temperature);
  const double unit = random_unit(input.seed, input.position);
  const bool by_rank = params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size();
  const bool by_mass = params.top_p < 1.0;
  const bool by_ratio = params.min_p > 0.0;
  if (!by_rank && !by_mass && !by_ratio) return draw_from_all(logits, max, inverse_temperature, unit);

  const float floor =
      by_ratio ? max + static_cast<float>(params.temperature * std::log(std::min(params.min_p, 1.0))) : kNever;
  const double enough = by_mass ? params.top_p * sum_exp(logits, max, inverse_temperature) : 0;
  const size_t rank = by_rank ? static_cast<size_t>(params.top_k) : logits.size();
  const auto weight = [&](const Candidate& c) {
    return static_cast<double>(exp_nonpositive((c.logit - max) * inverse_temperature));
  };
  const auto temperature = static_cast<float>(params.temperature);
  for (const float span : {6.0f, 12.0f, std::numeric_limits<float>::infinity()}) {
    const float threshold = std::max(floor, max - span * temperature);
    gather(logits, threshold);
    if (threshold == floor || candidates_.size() >= rank) break;
    if (!by_mass) continue;
    double mass = 0;
    for (const auto& c : candidates_) mass += weight(c);
    if (mass > enough) break;
  }
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  if (candidates_.size() > rank) {
    std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(rank), candidates_.end(),
                     before);
    candidates_.resize(rank);
  }
  std::sort(candidates_.begin(), candidates_.end(), before);
  size_t kept = candidates_.size();
  double total = 0;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    if (by_mass && i > 0 && total >= enough) {
      kept = i;
      break;
    }
    total += weight(candidates_[i]);
  }
  double left = unit * total;
  for (size_t i = 0; i < kept; ++i) {
    left -= weight(candidates_[i]);
    if (left < 0) return candidates_[i].token;
  }
  return candidates_[kept - 1].token;
}

PositionLogprobs Sampler::logprobs(std::span<const float> logits, int32_t chosen, int64_t top,
                                   std::span<const int32_t> requested) {
  const float max = max_of(logits);
  const double log_sum = static_cast<double>(max) + std::log(sum_exp(logits, max, 1.0f));
  const auto of = [&](int32_t token) {
    const auto i = static_cast<size_t>(token);
    const double value = token >= 0 && i < logits.size() ? static_cast<double>(logits[i]) - log_sum : kNever;
    return TokenLogprob{static_cast<float>(value), token};
  };
  PositionLogprobs out;
  out.chosen = of(chosen);
  for (const int32_t token : requested) out.requested.push_back(of(token));
  if (top <= 0) return out;

  // A heap of the best so far, its worst on top: nearly every logit fails one comparison.
  const auto want = static_cast<size_t>(std::min<int64_t>(top, static_cast<int64_t>(logits.size())));
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    // No number is never among the best: nothing is greater than it.
    const Candidate c{std::isnan(logits[i]) ? kNever : logits[i], static_cast<int32_t>(i)};
    if (candidates_.size() == want) {
      if (!(c.logit > candidates_.front().logit)) continue;
      std::pop_heap(candidates_.begin(), candidates_.end(), before);
      candidates_.back() = c;
    } else {
      candidates_.push_back(c);
    }
    std::push_heap(candidates_.begin(), candidates_.end(), before);
  }
  std::sort(candidates_.begin(), candidates_.end(), before);
  for (const auto& c : candidates_) out.top.push_back(of(c.token));
  return out;
}

}  // namespace sluice::engine
