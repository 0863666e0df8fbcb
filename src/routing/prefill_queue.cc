#include "routing/prefill_queue.h"

#include <algorithm>
#include <utility>

namespace sluice::routing {
namespace {

constexpr double kMemory = 0.98;         // what a sample still counts when the next one comes
constexpr double kAboveFit = 0.2;        // weight of a sample that took longer than the fit says
constexpr double kTrustWhole = 0.3;      // decoding times vary: a whole answer corrects only a part of what it shows
constexpr double kRescale = 1.25;        // a change of the fit by this factor stretches older predictions
constexpr double kLeastPerToken = 1e-9;  // seconds
// Where the lengths of prompts spread by less than this share of their mean square (14 % of the mean), noise tells more
// of the slope than they do.
constexpr double kTellsApart = 0.02;
constexpr double kMostPerRequest = 1e6;  // tokens
// The first answer that comes whole is all prefill, as far as anybody can see; after so many, some will have told them
// apart.
constexpr double kKnownAfter = 8;
constexpr double kDecodeSlack = 2;
// Prompts that took this share of the time in which so many answers came left no time between them: the fit leans to
// the lower side. And so many have to come before a worker's decoding is compared with another's: where a cold start
// is all that was seen, nothing tells it from long prompts.
constexpr double kSaturated = 0.9;
constexpr int32_t kAnswersOfLook = 64;

Duration own_time(TimePoint now, Duration shift) { return now.time_since_epoch() - shift; }

}  // namespace

void PrefillQueue::publish() {
  // Without anybody under way there is no queue, whatever was predicted, and its time begins anew: corrections do not
  // add up for ever.
  if (waiting_ == 0) {
    shift_ = end_ = Duration(0);
    saturated_.store(false, std::memory_order_relaxed);
  }
  free_at_.store(waiting_ == 0 ? 0 : (end_ + shift_).count(), std::memory_order_relaxed);
  crowd_.store(crowd(static_cast<double>(waiting_ + 1)).count(), std::memory_order_relaxed);
}

PrefillQueue::Ticket PrefillQueue::dispatch(TimePoint now, double tokens, double prompt, double decode, bool open) {
  std::lock_guard lock(mutex_);
  const Duration here = own_time(now, shift_);
  const Duration start = waiting_ == 0 ? here : std::max(here, end_);
  Ticket ticket{.tokens = tokens,
                .prompt = prompt,
                .sent = now,
                .service = service(tokens),
                .waits = true,
                .scale = num_rescales_};
  most_ = spread_.most(now);
  ticket.most = prompt * most_.of(prompt);
  ticket.waited = start - here;
  end_ = ticket.finish = std::min(start + ticket.service, here + bounded(kMost));
  ticket.at_once = static_cast<double>(++waiting_);
  ticket.crowd = crowd(ticket.at_once);
  waiting_most_ += ticket.most;
  waiting_tokens_ += tokens;
  ticket.decode = decode;
  waiting_decode_ += decode;
  ticket.open = open && decode > 0;
  waiting_whole_ += decode > 0 ? 1 : 0;
  waiting_open_ += ticket.open ? 1 : 0;
  publish();
  return ticket;
}

void PrefillQueue::leave(Ticket& ticket) {
  ticket.waits = false;
  waiting_whole_ -= ticket.decode > 0 ? 1 : 0;
  waiting_open_ -= ticket.open ? 1 : 0;
  // What rounding left does not outlive the last one.
  waiting_decode_ = waiting_whole_ == 0 ? 0 : waiting_decode_ - ticket.decode;
  --waiting_;
  waiting_most_ = waiting_ == 0 ? 0 : waiting_most_ - ticket.most;
  waiting_tokens_ = waiting_ == 0 ? 0 : waiting_tokens_ - ticket.tokens;
}

Duration PrefillQueue::stretched(Duration end, const Rescale& by) {
  return end > by.at ? by.at + bounded(seconds(end - by.at) * by.ratio) : end;
}

std::optional<Duration> PrefillQueue::finish(const Ticket& ticket) const {
  if (num_rescales_ - ticket.scale > rescales_.size()) return std::nullopt;
  Duration its = ticket.finish;
  for (uint32_t i = ticket.scale; i != num_rescales_; ++i) its = stretched(its, rescales_[i % rescales_.size()]);
  return its;
}

std::optional<PrefillQueue::Backlog> PrefillQueue::backlog() const {
  std::lock_guard lock(mutex_);
  if (n_ == 0) return std::nullopt;
  const PrefillCost its = cost();
  const double prompts = static_cast<double>(waiting_) * its.per_request * most_.known + its.per_token * waiting_most_;
  Backlog backlog{.prompts = bounded(prompts), .whole = waiting_whole_ > 0};
  if (!backlog.whole) return backlog;
  backlog.decoding.reset();
  if (waiting_open_ > 0 || answers_.empty()) return backlog;
  // That of the quickest answer, and of the length that they may have.
  const double decoding = answers_.decoding(waiting_decode_ / static_cast<double>(waiting_whole_), its);
  backlog.decoding = bounded(kDecodeSlack * decoding);
  return backlog;
}

void PrefillQueue::confirm(Ticket& ticket, TimePoint now, TimePoint first_token, bool streamed) {
  leave(ticket);
  spread_.answered(ticket.prompt, now);
  const TimePoint began = std::max(ticket.sent, last_first_token_);
  // Several first tokens of one step: the first has taken the time of all, and the sum is right.
  if (first_token > began || streamed) ticket.took = std::max(first_token - began, Duration(0));
  ticket.above = streamed ? 1 : kAboveFit;
  last_first_token_ = std::max(last_first_token_, std::min(first_token, now));
  // Better than nothing.
  if (n_ == 0 && ticket.took >= Duration(0)) fit(ticket.tokens, seconds(ticket.took), ticket.above, now);
  if (waiting_whole_ == 0) {
    end_ = own_time(now, shift_) + bounded(all_that_wait());  // those that are left are all known to wait
  } else if (const auto expected = finish(ticket)) {
    const Duration late = own_time(first_token, shift_) - *expected;
    shift_ += from_seconds(seconds(late) * (streamed ? 1 : kTrustWhole));
  }
  publish();
}

void PrefillQueue::first_token(Ticket& ticket, TimePoint now) {
  if (!ticket.waits) return;
  std::lock_guard lock(mutex_);
  confirm(ticket, now, now, true);
}

void PrefillQueue::whole_answer(Ticket& ticket, TimePoint now, double tokens, int64_t output_tokens) {
  if (!ticket.waits) return;
  std::lock_guard lock(mutex_);
  answers_.add({.took = now - ticket.sent,
                .tokens = tokens,
                .output_tokens = output_tokens,
                .at_once = ticket.at_once,
                .waited = ticket.waited},
               now, cost());
  look_for_hidden_queue(seconds(service(tokens)), now);
  const Duration decoding = bounded(answers_.decoding(static_cast<double>(output_tokens), cost()));
  confirm(ticket, now, now - decoding - ticket.crowd, false);
}

void PrefillQueue::look_for_hidden_queue(double its_seconds, TimePoint now) {
  busy_ += static_cast<float>(its_seconds);
  if (--answers_to_look_ > 0) return;
  saturated_.store(busy_ >= kSaturated * seconds(now - looked_at_), std::memory_order_relaxed);
  if (looked_at_ != TimePoint()) {
    const AnswerTimes::Decoding quickest = answers_.quickest(cost());
    decode_time_.store(static_cast<float>(quickest.per_token), std::memory_order_relaxed);
    decode_tokens_.store(static_cast<float>(quickest.tokens), std::memory_order_relaxed);
  }
  busy_ = 0;
  answers_to_look_ = kAnswersOfLook;
  looked_at_ = now;
}

void PrefillQueue::abandon(Ticket& ticket, TimePoint now) {
  if (!ticket.waits) return;
  std::lock_guard lock(mutex_);
  leave(ticket);
  const Duration expected = finish(ticket).value_or(ticket.finish);
  const Duration left = std::clamp(expected - own_time(now, shift_), Duration(0), ticket.service);
  if (expected == end_) {
    end_ -= left;  // nobody is behind it
  } else {
    shift_ -= left;
  }
  publish();
}

void PrefillQueue::learn(const Ticket& ticket, double tokens, TimePoint now) {
  if (ticket.took < Duration(0)) return;
  std::lock_guard lock(mutex_);
  // Of one sample alone every fit is right, and what whole answers took is a guess.
  if (n_ > 1 && ticket.above == 1) {
    spread_.computed(tokens, seconds(service(tokens)), seconds(ticket.took), now);
  }
  fit(tokens, seconds(ticket.took), ticket.above, now);
  publish();
}

void PrefillQueue::fit(double tokens, double took, double above, TimePoint now) {
  const double before = seconds(service(tokens));
  const double weight = n_ > 0 && took > before ? above : 1;
  n_ = n_ * kMemory + weight;
  t_ = t_ * kMemory + weight * tokens;
  tt_ = tt_ * kMemory + weight * tokens * tokens;
  s_ = s_ * kMemory + weight * took;
  st_ = st_ * kMemory + weight * took * tokens;
  // Least squares of took = a + b * tokens, both not negative. Where all prompts are alike only their sum is known: it
  // is divided as it was when they last differed, and before that all of it goes to the tokens. A cache that holds what
  // comes leaves short rests that are alike, for as long as it does; what a prompt would cost elsewhere must be known
  // all the while.
  const double spread = n_ * tt_ - t_ * t_;
  const double as_tokens = n_ * tokens_per_request_ + t_;
  double a = 0, b = 0;
  if (spread > kTellsApart * n_ * tt_) {
    const double slope = (n_ * st_ - t_ * s_) / spread;
    const double base = (s_ - slope * t_) / n_;
    if (slope <= 0) {
      a = s_ / n_;
    } else {
      b = base > 0 ? slope : st_ / tt_;
      a = std::max(base, 0.0);
      tokens_per_request_ = std::min(a / b, kMostPerRequest);
    }
  } else if (as_tokens > 0) {
    b = s_ / as_tokens;
    a = b * tokens_per_request_;
  }
  if (above == 1 || n_ >= kKnownAfter) known_.store(true, std::memory_order_relaxed);
  const double all_before = std::max(all_that_wait(), kLeastPerToken);
  per_request_.store(a, std::memory_order_relaxed);
  per_token_.store(std::max(b, kLeastPerToken), std::memory_order_relaxed);
  const double ratio = all_that_wait() / all_before;
  if (waiting_ > 0 && (ratio > kRescale || ratio < 1 / kRescale)) {
    const Rescale rescale{.at = own_time(now, shift_), .ratio = ratio};
    end_ = stretched(end_, rescale);
    rescales_[num_rescales_++ % rescales_.size()] = rescale;
  }
}

double PrefillQueue::all_that_wait() const {
  const PrefillCost its = cost();
  return static_cast<double>(waiting_) * its.per_request + waiting_tokens_ * its.per_token;
}

void PrefillQueue::restart() {
  std::lock_guard lock(mutex_);
  shift_ = end_ = Duration(0);
  free_at_.store(0, std::memory_order_relaxed);
  crowd_.store(0, std::memory_order_relaxed);
  saturated_.store(false, std::memory_order_relaxed);
}

}  // namespace sluice::routing
