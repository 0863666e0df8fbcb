#include "routing/service_spread.h"

#include <cmath>

namespace sluice::routing {
namespace {

constexpr Duration kPeriod = std::chrono::minutes(10);
constexpr double kDeviations = 3;
constexpr double kAlike = 1.25;  // times as long is as long: a part of each prompt may be cached
constexpr double kLeast = 1e-6;  // seconds: less is no prediction

}  // namespace

void ServiceSpread::pass_to(TimePoint now) {
  if (now - began_ <= kPeriod) return;
  before_ = now - began_ <= 2 * kPeriod ? now_ : Period{};
  now_ = {};
  began_ = now;
}

void ServiceSpread::answered(double prompt, TimePoint now) {
  pass_to(now);
  now_.longest = std::max(now_.longest, prompt);
}

void ServiceSpread::computed(double tokens, double predicted, double took, TimePoint now) {
  if (predicted < kLeast) return;
  pass_to(now);
  const double ratio = took / predicted;
  now_.w += predicted;
  now_.ww += predicted * predicted;
  now_.r += predicted * ratio;
  now_.rr += predicted * ratio * ratio;
  now_.computed = std::max(now_.computed, tokens);
}

MostService ServiceSpread::most(TimePoint now) {
  pass_to(now);
  MostService all;
  all.longest = static_cast<float>(std::max(now_.longest, before_.longest));
  all.computed = static_cast<float>(std::max(now_.computed, before_.computed));
  const double w = now_.w + before_.w;
  if (w == 0) return all;
  const double n = w * w / (now_.ww + before_.ww);  // equal ones that would say as much
  const double mean = (now_.r + before_.r) / w;
  const double variance = std::max((now_.rr + before_.rr) / w - mean * mean, 0.0);
  const double most = mean + kDeviations * std::sqrt(variance) + 1 / n;
  all.known = static_cast<float>(std::clamp<double>(most, 1, MostService::kUnknown));
  return all;
}

double MostService::of(double prompt) const {
  if (prompt <= kAlike * computed) return std::min<double>(kUnknown, known * std::max(1.0, prompt / computed));
  return longest > 0 ? kUnknown * std::max(1.0, prompt / longest) : kUnknown;
}

}  // namespace sluice::routing
