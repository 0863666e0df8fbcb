// A worker's load as this gateway counts it: in one place, for every policy and endpoint.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "gateway/breaker.h"
#include "gateway/load_order.h"
#include "routing/cache_belief.h"
#include "routing/prefill_queue.h"

namespace sluice::gateway {

// Of thousands of workers one is rarely in a cache. So all that a choice asks of a worker stands in the first cache
// line and that of `prefill`, and what a lease changes besides in the two before that and the two behind.
struct alignas(64) WorkerLoad {
  // Whether it takes work now. Worker has these fields too, under the same names.
  static constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> busy_until{0};            // steady nanoseconds: the worker asked to be left alone
  std::atomic<int64_t> most_requests{kNoLimit};  // in flight: see gateway/request_limit

  std::atomic<int64_t> requests{0};  // live leases
  // Tokens that the engine held at the last poll, -1 = it has not reported, and how many more it has since then: those
  // that were sent, less those of requests that have ended, so that what is known of two workers does not drift apart
  // until the next poll. The same of prompt tokens that wait: until the first token. Both may be less than is left of
  // what was reported, which was the engine's own count.
  std::atomic<int64_t> polled_tokens{-1};
  std::atomic<int64_t> tokens_since_poll{0};
  std::atomic<double> polled_kv_usage{0};  // share of the KV pool, 0 to 1; meaningless while polled_tokens is -1
  std::atomic<uint32_t> polls{0};          // begun
  std::atomic<bool> healthy{false};
  std::atomic<bool> draining{false};
  std::atomic<bool> suspect{false};  // silent for longer than expected
  std::atomic<BreakerState> breaker{BreakerState::kClosed};
  routing::CacheBelief belief;  // its share, which choices ask, ends the first line

  std::atomic<int64_t> tokens{0};  // estimated tokens of work not yet done
  std::atomic<int64_t> prompt_since_poll{0};
  std::atomic<int64_t> asked_at{0};  // sign of life: the latest request that found it idle, steady nanoseconds
  mutable LoadSeats seats;           // says nothing of the load itself
  routing::PrefillQueue prefill;     // in estimated tokens

  // Tokens that the engine holds; meaningless while polled_tokens is -1.
  int64_t known_tokens() const {
    return std::max<int64_t>(
        0, polled_tokens.load(std::memory_order_relaxed) + tokens_since_poll.load(std::memory_order_relaxed));
  }

  // Share of the KV pool that is in use, as reported, less the part that has ended since: what came since may share
  // what the engine held, and the next report says. Meaningless while polled_tokens is -1.
  double known_kv_usage() const {
    const auto polled = static_cast<double>(polled_tokens.load(std::memory_order_relaxed));
    const auto known = static_cast<double>(known_tokens());
    return polled_kv_usage.load(std::memory_order_relaxed) * (known < polled ? known / polled : 1);
  }

  bool is_busy(TimePoint now) const {
    return busy_until.load(std::memory_order_relaxed) > now.time_since_epoch().count();
  }
  bool is_full() const {
    return requests.load(std::memory_order_relaxed) >= most_requests.load(std::memory_order_relaxed);
  }
  // Where the breaker is closed; else that one knows more.
  bool takes_work(TimePoint now) const {
    return healthy.load(std::memory_order_relaxed) && !draining.load(std::memory_order_relaxed) && !is_busy(now) &&
           !is_full();
  }

  // The rest of the report; meaningless while polled_tokens is -1.
  std::atomic<int64_t> polled_waiting_tokens{0};  // prompt tokens in the engine's queue that its cache does not hold
  std::atomic<double> polled_throughput{0};       // generated tokens per second

  // Signs of life, which gateway/liveness reads: the latest byte of any answer, steady nanoseconds.
  std::atomic<int64_t> heard_at{0};
  std::atomic<int64_t> held{0};  // requests whose client does not take what came: the worker is not waited for
  void heard(TimePoint now) { heard_at.store(now.time_since_epoch().count(), std::memory_order_relaxed); }

  // What will be asked comes from memory at once, and not line by line as it is asked for.
  void prefetch_for_choice() const {
    __builtin_prefetch(this);
    __builtin_prefetch(&prefill);
  }
  static constexpr size_t kLeaseBytes = 448;
  void prefetch_for_lease() const {
    const char* begin = reinterpret_cast<const char*>(this);
    for (size_t at = 0; at < kLeaseBytes; at += 64) {
      if (at != 64) __builtin_prefetch(begin + at, 1);  // what is learned from answers
    }
  }
};

// The loads of a fleet, next to each other, so that those of thousands take no more pages than they must. Each lives as
// long as somebody has its pointer, and all that came with it as long as one of them. One thread at a time.
class LoadSlab {
 public:
  std::shared_ptr<WorkerLoad> next();

 private:
  static constexpr size_t kHugePage = 2 << 20;
  static constexpr size_t kFirst = 8, kMost = kHugePage / sizeof(WorkerLoad);
  static std::shared_ptr<WorkerLoad> make(size_t size);

  std::shared_ptr<WorkerLoad> loads_;  // the first of `size_`
  size_t size_ = 0, used_ = 0;
};

// While what came is passed on to a client.
class HeldByClient {
 public:
  explicit HeldByClient(WorkerLoad& load) : load_(load) { load_.held.fetch_add(1, std::memory_order_relaxed); }
  ~HeldByClient() { load_.held.fetch_sub(1, std::memory_order_relaxed); }
  HeldByClient(const HeldByClient&) = delete;
  HeldByClient& operator=(const HeldByClient&) = delete;

 private:
  WorkerLoad& load_;
};

// What an answer says of the request.
struct PromptReport {
  int64_t prompt_tokens = 1;  // at least 1
  double cached_share = 0;    // of the prompt, 0 to 1
  int64_t output_tokens = 1;  // at least 1
};

// What a request is to a worker, in estimated tokens.
struct Work {
  int64_t prompt_tokens = 0;
  int64_t new_tokens = 0;
  size_t prompt_bytes = 0;   // of its text; 0: it has none
  double matched_share = 0;  // of the prompt that the worker is believed to hold, 0 to 1
  bool streams = true;       // the answer tells of its first token
  bool open = false;         // nobody has said how long the answer may be
};

// One request's claim on one worker: one request in flight, an estimate of the tokens of work still to do, and a place
// in what is known of its prefill queue.
//
// A worker's counters are changed by leases and by nothing else, so a client that vanishes, a refused connection and a
// retry all give back exactly what they took. Move-only; used by one thread at a time.
class WorkerLease {
 public:
  // `clock` outlives the lease.
  WorkerLease(std::shared_ptr<WorkerLoad> load, Work work, const Clock& clock)
      : load_(std::move(load)), work_(work), left_(work.prompt_tokens + work.new_tokens), clock_(&clock) {
    load_->prefetch_for_lease();
    const TimePoint now = clock.now();
    others_ = load_->requests.fetch_add(1, std::memory_order_seq_cst);
    if (others_ == 0) {
      load_->asked_at.store(now.time_since_epoch().count(), std::memory_order_relaxed);
    }
    load_->seats.moved();
    load_->tokens.fetch_add(left_, std::memory_order_relaxed);
    load_->tokens_since_poll.fetch_add(left_, std::memory_order_relaxed);
    load_->prompt_since_poll.fetch_add(work.prompt_tokens, std::memory_order_relaxed);
    polls_ = load_->polls.load(std::memory_order_relaxed);
    const double cached = load_->belief.share() * work.matched_share;
    const double prompt = static_cast<double>(work.prompt_tokens);
    ticket_ = load_->prefill.dispatch(now, prompt * (1 - cached), prompt,
                                      work.streams ? 0 : static_cast<double>(std::max<int64_t>(work.new_tokens, 1)),
                                      work.open);
  }
  WorkerLease(WorkerLease&& other) noexcept { swap(other); }
  WorkerLease& operator=(WorkerLease&& other) noexcept {
    swap(other);  // `other` releases what this lease held
    return *this;
  }
  ~WorkerLease() {
    if (!load_) return;  // moved from
    load_->prefetch_for_lease();
    load_->prefill.abandon(ticket_, clock_->now());
    load_->requests.fetch_sub(1, std::memory_order_seq_cst);
    load_->seats.moved();
    load_->tokens.fetch_sub(left_, std::memory_order_relaxed);
    // A report that has seen it counts its prompt and what it had generated, which is not known here.
    const bool reported = load_->polls.load(std::memory_order_relaxed) != polls_;
    load_->tokens_since_poll.fetch_sub(work_.prompt_tokens + (reported ? 0 : work_.new_tokens),
                                       std::memory_order_relaxed);
    // Of an answer that came whole, nobody knows when its prompt was done: the report does, if there was one.
    if (work_.streams || !reported) prompt_done();
  }

  // Requests that the worker had when this one came, in the order in which leases begin: of several that begin at once,
  // each sees those before it.
  int64_t others() const { return others_; }
  // It will end soon: its load is on the way from memory from now on.
  void expect_end() const { load_->prefetch_for_lease(); }
  // The first byte of a streamed answer has come: the prompt is done.
  void first_token() {
    const TimePoint now = clock_->now();
    load_->heard(now);
    load_->prefill.first_token(ticket_, now);
    forget_suspect_time();
    const int64_t done = std::min(work_.prompt_tokens, left_);
    left_ -= done;
    load_->tokens.fetch_sub(done, std::memory_order_relaxed);
    prompt_done();
  }
  // All of the answer has come; `report` if it said what it had cost.
  void answered(const std::optional<PromptReport>& report) {
    const TimePoint now = clock_->now();
    load_->heard(now);
    if (report) {
      load_->belief.tokenized(work_.prompt_bytes, static_cast<size_t>(report->prompt_tokens));
      load_->belief.reported(work_.matched_share, report->cached_share);
    }
    // One that never reported a cached token does not report them: its prompts took what they took as believed.
    const bool told = report && load_->belief.confirmed();
    const double tokens = told ? static_cast<double>(work_.prompt_tokens) * (1 - report->cached_share) : ticket_.tokens;
    load_->prefill.whole_answer(ticket_, now, tokens, report ? report->output_tokens : 1);
    if (!work_.streams) forget_suspect_time();
    load_->prefill.learn(ticket_, tokens, now);
  }

 private:
  // What a suspect took may be a freeze, which says nothing of how fast it is.
  void forget_suspect_time() {
    if (load_->suspect.load(std::memory_order_relaxed)) ticket_.took = Duration(-1);
  }
  void prompt_done() {
    if (!std::exchange(prompt_waits_, false)) return;
    load_->prompt_since_poll.fetch_sub(work_.prompt_tokens, std::memory_order_relaxed);
  }
  void swap(WorkerLease& other) {
    std::swap(load_, other.load_);
    std::swap(work_, other.work_);
    std::swap(left_, other.left_);
    std::swap(others_, other.others_);
    std::swap(prompt_waits_, other.prompt_waits_);
    std::swap(polls_, other.polls_);
    std::swap(clock_, other.clock_);
    std::swap(ticket_, other.ticket_);
  }

  std::shared_ptr<WorkerLoad> load_;  // shared: the lease may outlive the worker's place in the fleet
  Work work_;
  int64_t left_ = 0;  // tokens
  int64_t others_ = 0;
  bool prompt_waits_ = true;
  uint32_t polls_ = 0;  // that had begun at its dispatch
  const Clock* clock_ = nullptr;
  routing::PrefillQueue::Ticket ticket_;
};

}  // namespace sluice::gateway
