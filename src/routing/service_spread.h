// How far the times of a worker's prompts are from what was predicted of them: what a prompt hardly ever takes, as a
// multiple of its prediction. A prompt counts by its seconds, so that many short ones, of which little more than noise
// is seen, do not speak for the long ones that a worker may be silent for. What was seen counts for ten to twenty
// minutes, and so does how long the longest prompt was: beyond that nothing is known of how the time grows.
#pragma once

#include <algorithm>

#include "base/clock.h"

namespace sluice::routing {

// What a prompt hardly ever takes where nothing of it is cached, as a multiple of what is predicted. A value.
struct MostService {
  static constexpr float kUnknown = 2;

  // Of prompts that are no longer than what was computed: 1 to kUnknown.
  float known = kUnknown;
  // The most that was computed at once lately, and the longest prompt that was answered, cached or not; tokens.
  float computed = 0, longest = 0;

  // kUnknown of one longer than `computed`, and of one longer than `longest` the same times how much longer it is, for
  // attention grows with the square.
  double of(double prompt) const;
};

// Not thread-safe.
class ServiceSpread {
 public:
  // A prompt of so many tokens was answered, of which the worker may have had all in its cache.
  void answered(double prompt, TimePoint now);
  // So many tokens, which were predicted to take so many seconds, took so many.
  void computed(double tokens, double predicted, double took, TimePoint now);
  // MostService::known is three deviations above the mean, and more by 1/n for what n have not shown.
  MostService most(TimePoint now);

 private:
  struct Period {
    double longest = 0, computed = 0;  // tokens
    // Weighted by what was predicted, w: sums of w, w^2, w * ratio, w * ratio^2.
    double w = 0, ww = 0, r = 0, rr = 0;
  };
  void pass_to(TimePoint now);

  TimePoint began_{};
  Period now_, before_;
};

}  // namespace sluice::routing
