#include "routing/prefill_queue.h"

#include <algorithm>
#include <utility>

namespace sluice::routing {
namespace {

constexpr double kMemory = 0.98;         // what a sample still counts when the next one comes
constexpr double kAboveFit = 0.2;        // weight of a sample that took longer than the fit says
constexpr double kTrustWhole = 0.3;      // decoding times vary: a whole answer corrects only a part of what it shows
constexpr double kRescale = 1.25;        // a change of the fit by this factor makes older predictions worthless
constexpr int64_t kDecodeWindow = 32;    // answers
constexpr double kLeastPerToken = 1e-9;  // seconds
constexpr double kMostBacklog = 1e6;     // seconds

Duration own_time(TimePoint now, Duration shift) { return now.time_since_epoch() - shift; }

}  // namespace

void PrefillQueue::publish() {
  // Without anybody under way there is no queue, whatever was predicted.
  free_at_.store(waiting_ == 0 ? 0 : (end_ + shift_).count(), std::memory_order_relaxed);
}

PrefillQueue::Ticket PrefillQueue::dispatch(TimePoint now, double tokens, double prompt, double decode) {
  std::lock_guard lock(mutex_);
  const Duration here = own_time(now, shift_);
  const Duration start = waiting_ == 0 ? here : std::max(here, end_);
  Ticket ticket{
      .tokens = tokens, .prompt = prompt, .sent = now, .service = service(tokens), .waits = true, .scale = scale_};
  ticket.most = longest_prompt_ > 0 ? prompt * std::max(1.0, prompt / longest_prompt_) : prompt;
  end_ = ticket.finish = start + ticket.service;
  ++waiting_;
  waiting_most_ += ticket.most;
  ticket.decode = decode;
  waiting_decode_ += decode;
  waiting_whole_ += decode > 0 ? 1 : 0;
  publish();
  return ticket;
}

void PrefillQueue::leave(Ticket& ticket) {
  ticket.waits = false;
  waiting_whole_ -= ticket.decode > 0 ? 1 : 0;
  // What rounding left does not outlive the last one.
  waiting_decode_ = waiting_whole_ == 0 ? 0 : waiting_decode_ - ticket.decode;
  waiting_most_ = --waiting_ == 0 ? 0 : waiting_most_ - ticket.most;
}

std::optional<Duration> PrefillQueue::backlog() const {
  std::lock_guard lock(mutex_);
  if (n_ == 0 || (waiting_whole_ > 0 && decode_seen_ == 0)) return std::nullopt;
  const double decode = waiting_whole_ == 0 ? 0 : waiting_decode_ / static_cast<double>(waiting_whole_);
  const double all = static_cast<double>(waiting_) * per_request_.load(std::memory_order_relaxed) +
                     per_token_.load(std::memory_order_relaxed) * waiting_most_ + decode * seconds(decode_time());
  return from_seconds(std::min(all, kMostBacklog));
}

void PrefillQueue::confirm(Ticket& ticket, TimePoint now, TimePoint first_token, double trust) {
  leave(ticket);
  longest_prompt_ = std::max(longest_prompt_, ticket.prompt);
  const TimePoint began = std::max(ticket.sent, last_first_token_);
  if (first_token > began) ticket.took = first_token - began;
  last_first_token_ = std::max(last_first_token_, std::min(first_token, now));
  if (n_ == 0 && ticket.took > Duration(0)) fit(ticket.tokens, seconds(ticket.took), now);  // better than nothing
  if (ticket.scale == scale_) {
    const Duration late = own_time(first_token, shift_) - ticket.finish;
    shift_ += from_seconds(seconds(late) * trust);
  }
  publish();
}

Duration PrefillQueue::decode_time() const {
  return decode_before_ == Duration(0) ? decode_now_ : std::min(decode_before_, decode_now_);
}

void PrefillQueue::first_token(Ticket& ticket, TimePoint now) {
  if (!ticket.waits) return;
  std::lock_guard lock(mutex_);
  confirm(ticket, now, now, 1);
}

void PrefillQueue::whole_answer(Ticket& ticket, TimePoint now, int64_t output_tokens) {
  if (!ticket.waits) return;
  std::lock_guard lock(mutex_);
  const Duration rest = std::max(now - ticket.sent - ticket.service, Duration(1)) / output_tokens;
  if (decode_seen_++ % kDecodeWindow == 0) decode_before_ = std::exchange(decode_now_, rest);
  decode_now_ = std::min(decode_now_, rest);
  confirm(ticket, now, now - decode_time() * output_tokens, kTrustWhole);
}

void PrefillQueue::abandon(Ticket& ticket, TimePoint now) {
  if (!ticket.waits) return;
  std::lock_guard lock(mutex_);
  leave(ticket);
  const Duration left = std::clamp(ticket.finish - own_time(now, shift_), Duration(0), ticket.service);
  if (ticket.finish == end_) {
    end_ -= left;  // nobody is behind it
  } else {
    shift_ -= left;
  }
  publish();
}

void PrefillQueue::learn(const Ticket& ticket, double tokens, TimePoint now) {
  if (ticket.took == Duration(0)) return;
  std::lock_guard lock(mutex_);
  fit(tokens, seconds(ticket.took), now);
  publish();
}

void PrefillQueue::fit(double tokens, double took, TimePoint now) {
  const double before = seconds(service(tokens));
  const double weight = n_ > 0 && took > before ? kAboveFit : 1;
  n_ = n_ * kMemory + weight;
  t_ = t_ * kMemory + weight * tokens;
  tt_ = tt_ * kMemory + weight * tokens * tokens;
  s_ = s_ * kMemory + weight * took;
  st_ = st_ * kMemory + weight * took * tokens;
  // Least squares of took = a + b * tokens, both not negative. Where all prompts are alike only their sum is known: all
  // of it goes to the tokens.
  const double spread = n_ * tt_ - t_ * t_;
  double a = 0, b = t_ > 0 ? s_ / t_ : 0;
  if (spread > 1e-3 * n_ * tt_) {
    const double slope = (n_ * st_ - t_ * s_) / spread;
    const double base = (s_ - slope * t_) / n_;
    if (slope <= 0) {
      a = s_ / n_;
      b = 0;
    } else if (base > 0) {
      a = base;
      b = slope;
    } else if (tt_ > 0) {
      b = st_ / tt_;
    }
  }
  per_request_.store(a, std::memory_order_relaxed);
  per_token_.store(std::max(b, kLeastPerToken), std::memory_order_relaxed);
  const double ratio = seconds(service(tokens)) / std::max(before, kLeastPerToken);
  if (ratio > kRescale || ratio < 1 / kRescale) {
    const Duration here = own_time(now, shift_);
    if (end_ > here) end_ = here + from_seconds(seconds(end_ - here) * ratio);
    ++scale_;
  }
}

void PrefillQueue::restart() {
  std::lock_guard lock(mutex_);
  shift_ = end_ = Duration(0);
  free_at_.store(0, std::memory_order_relaxed);
}

}  // namespace sluice::routing
