#include "routing/answer_times.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace sluice::routing {
namespace {

constexpr Duration kPeriod = std::chrono::minutes(10);
constexpr double kFollow = 0.05;  // weight of an answer in the moving averages
// Late by so much of what answers take alone is nothing to steer by: predictions are not better than that, and a
// crowd in them would drive requests away from what is cached for them.
constexpr double kNoise = 0.3;
constexpr double kWindow = 6, kFirstLook = 1.5;  // times what an answer takes alone
constexpr double kLeast = 1e-9;                  // seconds

}  // namespace

// The first token comes with the prompt: an answer of one tells nothing of decoding.
double AnswerTimes::time_per_token(const Answer& answer) {
  if (answer.output_tokens < 2) return std::numeric_limits<double>::max();
  return seconds(answer.took) / static_cast<double>(answer.output_tokens - 1);
}

// What a prompt costs whatever its length counts as decoding: of answers that never overlap nothing tells the two
// apart, and taken for the prompt's it would be believed to hold up others.
double AnswerTimes::decode_time(const Answer& answer, const PrefillCost& cost) {
  if (answer.output_tokens < 2) return 0;
  const double rest = seconds(answer.took) - cost.per_token * answer.tokens;
  return std::max(rest, kLeast) / static_cast<double>(answer.output_tokens - 1);
}

AnswerTimes::Decoding AnswerTimes::quickest(const PrefillCost& cost) const {
  const bool older = time_per_token(quickest_before_) < time_per_token(quickest_);
  const Answer& answer = older ? quickest_before_ : quickest_;
  return {.per_token = decode_time(answer, cost), .tokens = static_cast<double>(answer.output_tokens - 1)};
}

double AnswerTimes::decoding(double output_tokens, const PrefillCost& cost) const {
  return quickest(cost).per_token * std::max(output_tokens - 1, 0.0);
}

// Seconds that it would have taken.
double AnswerTimes::alone(const Answer& answer, const PrefillCost& cost) const {
  return cost.per_token * answer.tokens + decoding(static_cast<double>(answer.output_tokens), cost);
}

void AnswerTimes::add(const Answer& answer, TimePoint now, const PrefillCost& cost) {
  if (!any_ || now - period_began_ > kPeriod) {
    quickest_before_ = any_ ? quickest_ : answer;
    quickest_ = answer;
    most_before_ = std::exchange(most_, 0);
    period_began_ = now;
  }
  if (!any_) window_began_ = now;
  any_ = true;
  if (time_per_token(answer) < time_per_token(quickest_)) quickest_ = answer;
  const double its = alone(answer, cost);
  beyond_ += kFollow * (seconds(answer.took - answer.waited) - its - beyond_);
  alone_ += kFollow * (its - alone_);
  at_once_ += kFollow * (answer.at_once - at_once_);
  done_ += its;
  longest_ = std::max(longest_, its);
  // Answers may come in heaps, as those of a batch that began together do, so a window is longer than several of them.
  // One of them is mostly of the time before a window that is shorter than it.
  const double passed = seconds(now - window_began_);
  if (passed > kFirstLook * longest_) first_look_ = done_ / passed;
  if (passed < kWindow * longest_) return;
  most_ = std::max(most_, done_ / passed);
  done_ = longest_ = 0;
  window_began_ = now;
}

// On the line through what was seen of late, from where nobody has to wait.
double AnswerTimes::crowd(double at_once) const {
  const double beyond = beyond_ - kNoise * alone_;
  const double seen = std::max(most_, most_before_);
  const double so_far = seen > 0 ? seen : first_look_;
  if (so_far == 0 || beyond <= 0) return 0;
  const double most = std::max(so_far, 1.0);  // windows count idle time too, and one alone waits for nobody
  return beyond * std::max(at_once - most, 0.0) / std::max(at_once_ - most, 1.0);
}

}  // namespace sluice::routing
