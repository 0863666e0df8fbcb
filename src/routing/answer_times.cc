#include "routing/answer_times.h"

#include <algorithm>

namespace sluice::routing {
namespace {

constexpr Duration kPeriod = std::chrono::minutes(10);
constexpr double kFollow = 0.05;  // weight of an answer in the moving averages
// Late by so much of what answers take alone is nothing to steer by: predictions are not better than that, and a
// crowd in them would drive requests away from what is cached for them.
constexpr double kNoise = 0.1;
constexpr double kLeast = 1e-9;  // seconds

}  // namespace

double AnswerTimes::time_per_token(const Answer& answer) {
  return seconds(answer.took) / static_cast<double>(answer.output_tokens);
}

// What a prompt costs whatever its length counts as decoding: of answers that never overlap nothing tells the two
// apart, and taken for the prompt's it would be believed to hold up others.
double AnswerTimes::decode_time(const Answer& answer, const PrefillCost& cost) {
  const double rest = seconds(answer.took) - cost.per_token * answer.tokens;
  return std::max(rest, kLeast) / static_cast<double>(answer.output_tokens);
}

double AnswerTimes::decode_time(const PrefillCost& cost) const {
  const bool older = time_per_token(quickest_.before) < time_per_token(quickest_.now);
  return decode_time(older ? quickest_.before : quickest_.now, cost);
}

// Seconds that it would have taken.
double AnswerTimes::alone(const Answer& answer, const PrefillCost& cost) const {
  return cost.per_token * answer.tokens + decode_time(cost) * static_cast<double>(answer.output_tokens);
}

double AnswerTimes::side_by_side(const Answer& answer, const PrefillCost& cost) const {
  const double took = std::max(seconds(answer.took), kLeast);
  return answer.at_once * std::min(1.0, alone(answer, cost) / took);
}

void AnswerTimes::add(const Answer& answer, TimePoint now, const PrefillCost& cost) {
  if (!any_ || now - period_began_ > kPeriod) {
    quickest_ = {answer, any_ ? quickest_.now : answer};
    widest_ = {answer, any_ ? widest_.now : answer};
    period_began_ = now;
    any_ = true;
  }
  if (time_per_token(answer) < time_per_token(quickest_.now)) quickest_.now = answer;
  if (side_by_side(answer, cost) > side_by_side(widest_.now, cost)) widest_.now = answer;
  const double its = alone(answer, cost);
  beyond_ += kFollow * (seconds(answer.took - answer.waited) - its - beyond_);
  alone_ += kFollow * (its - alone_);
  at_once_ += kFollow * (answer.at_once - at_once_);
}

// On the line through what was seen of late, from where nobody has to wait.
double AnswerTimes::crowd(double at_once, const PrefillCost& cost) const {
  const double beyond = beyond_ - kNoise * alone_;
  if (!any_ || beyond <= 0) return 0;
  const double most = std::max(side_by_side(widest_.now, cost), side_by_side(widest_.before, cost));
  return beyond * std::max(at_once - most, 0.0) / std::max(at_once_ - most, 1.0);
}

}  // namespace sluice::routing
