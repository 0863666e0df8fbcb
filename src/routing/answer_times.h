// What the answers that come whole tell of one worker, beyond their prompts: how long it decodes a token, and how much
// longer everything takes when it has more requests than it works on at once. Nothing is seen of such a request before
// its end, so the places where it may have waited are told apart by what others took.
//
// Decoding is judged by the quickest answer of ten to twenty minutes: a worker that always has a queue shows in its
// last answers what they waited as if it were decoding. The number that it works on at once follows from Little's law:
// what it gets done in a second, in seconds that the same takes alone; the most of that counts.
#pragma once

#include <cstdint>

#include "base/clock.h"

namespace sluice::routing {

// Seconds that a worker computes a prompt.
struct PrefillCost {
  double per_request = 0;
  double per_token = 0;
  double of(double tokens) const { return per_request + per_token * tokens; }
};

// Not thread-safe. Costs are what is known of the worker now; what was seen before is judged by them anew.
class AnswerTimes {
 public:
  struct Answer {
    Duration took{0};   // from the dispatch to the end
    double tokens = 0;  // that were computed of its prompt
    int64_t output_tokens = 1;
    double at_once = 1;  // requests that waited or decoded at its dispatch, itself among them
    Duration waited{0};  // for the prompts before it, as predicted
  };

  void add(const Answer& answer, TimePoint now, const PrefillCost& cost);
  bool empty() const { return !any_; }
  // Seconds from the first token to the last. 0 until an answer had two.
  double decoding(double output_tokens, const PrefillCost& cost) const;
  // Seconds for a token, and the tokens after the first, of the answer that this is known from. 0 until one had two.
  struct Decoding {
    double per_token = 0, tokens = 0;
  };
  Decoding quickest(const PrefillCost& cost) const;
  // Seconds that an answer takes longer, beyond all predictions, where there are so many at once. 0 until answers have
  // been late by much, and for no more than were seen side by side without.
  double crowd(double at_once) const;

 private:
  static double time_per_token(const Answer& answer);
  static double decode_time(const Answer& answer, const PrefillCost& cost);
  double alone(const Answer& answer, const PrefillCost& cost) const;

  // What crowd() reads comes first. Moving averages: seconds that answers took beyond the prediction, and seconds that
  // they would take alone.
  double beyond_ = 0, alone_ = 0;
  double most_ = 0, most_before_ = 0;  // side by side, over a window, of the current and of the last period
  double first_look_ = 0;              // before the first window has passed
  double at_once_ = 0;                 // moving average of Answer::at_once
  bool any_ = false;
  // Each of the current and of the last period.
  TimePoint period_began_{};
  Answer quickest_, quickest_before_;  // the least time for a token, its prompt included: hardly a matter of belief
  // Seconds that the answers of the window would have taken alone, and the longest of them.
  TimePoint window_began_{};
  double done_ = 0, longest_ = 0;
};

}  // namespace sluice::routing
