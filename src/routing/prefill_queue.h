// What is known, from outside, of the prompts that one worker has to compute: how long a new one would wait, and how
// long it would take itself. Prefill is taken for a serial queue, first come first served, whose service time is a + b
// * (tokens that the worker's cache does not hold). a and b are learned from when first tokens come; so is how far the
// queue really is, which corrects what was predicted.
//
// First tokens of streams tell how fast the queue moves, so the fit is their mean: with all that comes between
// (decoding, a batch that is full), or a queue that moves slower than believed would seem empty. An answer that comes
// whole tells of its first token only afterwards, less the time of decoding (routing/answer_times), which varies: what
// is seen then is hardly less than the service time and may be much more, so the fit leans to the lower side.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>

#include "base/clock.h"
#include "routing/answer_times.h"
#include "routing/service_spread.h"

namespace sluice::routing {

// Any thread; readers take no lock.
class PrefillQueue {
 public:
  // What a request holds of the queue from its dispatch on.
  struct Ticket {
    double tokens = 0;  // to compute, as believed
    double prompt = 0;  // tokens of the whole prompt, cached or not
    double most = 0;    // what the prompt counts in backlog(), in tokens
    double decode = 0;  // tokens that come before anything is seen: of an answer that comes whole
    bool open = false;  // and nobody knows how many
    TimePoint sent{};
    Duration service{0};  // as predicted
    Duration finish{0};   // on the queue's own time: see shift_
    bool waits = false;   // its first token has not come
    uint32_t scale = 0;   // num_rescales_ at the dispatch
    Duration waited{0};   // as predicted: for the prompts before it
    Duration crowd{0};    // as predicted: beyond that, for so many at once
    double at_once = 0;   // that wait, itself among them
    Duration took{-1};    // service time as seen; negative = not seen
    double above = 1;     // weight of what was seen where it is more than expected
  };

  // Time until the prefill of a request that is sent now would begin, and how much longer its answer takes because of
  // all the others.
  Duration wait(TimePoint now) const {
    const int64_t left = free_at_.load(std::memory_order_relaxed) - now.time_since_epoch().count();
    return Duration((left > 0 ? left : 0) + crowd_.load(std::memory_order_relaxed));
  }
  // Of answers that come whole: seconds that it decodes a token, as they say; 0 while too few do.
  float decode_time() const { return decode_time_.load(std::memory_order_relaxed); }
  // What wait() leaves out where a queue has stood ever since answers were seen, so that the quickest of them had
  // waited too and that was taken for decoding. What others need for a token, `decode_time`, tells the two apart; but a
  // worker that is slower by itself is left alone as long as its queue is empty now and then. None where nobody tells:
  // 0.
  Duration hidden_wait(float decode_time) const {
    if (decode_time <= 0 || !saturated_.load(std::memory_order_relaxed)) return Duration(0);
    return bounded((this->decode_time() - decode_time) * decode_tokens_.load(std::memory_order_relaxed));
  }
  // Never more than kMost, whatever was learned and however long the prompt is.
  Duration service(double tokens) const { return bounded(cost().of(tokens)); }
  static constexpr double kMost = 1e6;  // seconds; sums of such times are far from the end of a Duration

  // Before the first answer: that of a small engine.
  static constexpr PrefillCost kUnknown{.per_request = 0, .per_token = 1.0 / 8000};
  PrefillCost cost() const {
    return {per_request_.load(std::memory_order_relaxed), per_token_.load(std::memory_order_relaxed)};
  }
  // True when answers have told enough of the cost.
  bool known() const { return known_.load(std::memory_order_relaxed); }

  Ticket dispatch(TimePoint now, double tokens) { return dispatch(now, tokens, tokens, 0); }
  // `decode`: expected length of an answer that comes whole, 0 for a streamed one; `open`: it may be any other.
  Ticket dispatch(TimePoint now, double tokens, double prompt, double decode, bool open = false);
  // The first byte of a streamed answer.
  void first_token(Ticket& ticket, TimePoint now);
  // All of an answer that was not streamed: `tokens` were computed of its prompt; `output_tokens` > 0.
  void whole_answer(Ticket& ticket, TimePoint now, double tokens, int64_t output_tokens);
  // It ended without an answer: what it had left to do is not done.
  void abandon(Ticket& ticket, TimePoint now);
  // Learns from a ticket whose first token has come: `tokens` were computed for it.
  void learn(const Ticket& ticket, double tokens, TimePoint now);
  // What a worker may be silent for at most, in two parts.
  struct Backlog {
    // All prompts that wait here, one after the other, if nothing of them is cached and each takes what hardly any
    // takes (routing/service_spread).
    Duration prompts{0};
    bool whole = false;  // answers that come whole are awaited
    // Twice the decoding of one of those. None where the length of one is open, or no whole answer was ever seen.
    std::optional<Duration> decoding = Duration(0);
  };
  // None while no first token was ever seen.
  std::optional<Backlog> backlog() const;
  // A new process: nothing waits there. What was learned of its speed stays.
  void restart();

 private:
  // The fit has changed by much: what was left until end_ was stretched, and with it the times of the tickets.
  struct Rescale {
    Duration at{0};  // on the queue's own time
    double ratio = 1;
  };

  void confirm(Ticket& ticket, TimePoint now, TimePoint first_token, bool streamed);
  void fit(double tokens, double took, double above, TimePoint now);
  void publish();
  double all_that_wait() const;  // seconds, one after the other
  void look_for_hidden_queue(double its_seconds, TimePoint now);
  void leave(Ticket& ticket);
  static Duration stretched(Duration end, const Rescale& by);
  std::optional<Duration> finish(const Ticket& ticket) const;  // as it is predicted by now; none: it is too long ago
  static Duration bounded(double its_seconds) { return from_seconds(std::clamp(its_seconds, 0.0, kMost)); }
  Duration crowd(double at_once) const { return bounded(answers_.crowd(at_once)); }

  // What a choice reads is in the first cache line, what a dispatch changes in the first three.
  alignas(64) std::atomic<int64_t> free_at_{0};  // nanoseconds of the steady clock: when the last prompt is done
  std::atomic<int64_t> crowd_{0};                // nanoseconds: what one more would wait because of so many
  std::atomic<double> per_request_{kUnknown.per_request};  // seconds
  std::atomic<double> per_token_{kUnknown.per_token};
  std::atomic<bool> known_{false};
  std::atomic<bool> saturated_{false};                    // it computes prompts without a break
  std::atomic<float> decode_time_{0}, decode_tokens_{0};  // AnswerTimes::Decoding

  mutable std::mutex mutex_;  // guards what follows
  // The queue's own time runs with the clock but is shifted against it: a prompt that is `d` late makes all behind it
  // late by the same, which one addition to shift_ says.
  Duration shift_{0};
  Duration end_{0};  // of the last prompt, on the queue's own time
  int64_t waiting_ = 0;
  double waiting_most_ = 0;    // Ticket::most of those that wait
  double waiting_tokens_ = 0;  // Ticket::tokens of those
  double waiting_decode_ = 0;  // Ticket::decode of those
  int32_t waiting_whole_ = 0, waiting_open_ = 0;
  MostService most_;  // of spread_, when a prompt was sent last
  uint32_t num_rescales_ = 0;
  AnswerTimes answers_;  // those that came whole
  TimePoint looked_at_{};
  float busy_ = 0;                // seconds that their prompts took, since then
  int32_t answers_to_look_ = 0;   // until that is judged
  TimePoint last_first_token_{};  // the latest that was seen
  // Weighted sums over what was seen, older ones less: 1, tokens, tokens^2, seconds, seconds * tokens.
  double n_ = 0, t_ = 0, tt_ = 0, s_ = 0, st_ = 0;
  // So many tokens take as long as a request takes whatever its length, when lengths last told that.
  double tokens_per_request_ = 0;
  ServiceSpread spread_;
  std::array<Rescale, 8> rescales_;  // the latest of num_rescales_: the i-th is at i % size
};

}  // namespace sluice::routing
