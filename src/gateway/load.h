// A worker's load as this gateway counts it: in one place, for every policy and endpoint.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

namespace sluice::gateway {

struct WorkerLoad {
  std::atomic<int64_t> requests{0};  // live leases
  std::atomic<int64_t> tokens{0};    // estimated tokens of work not yet done
  // Tokens that the engine held at the last poll, -1 = it has not reported, and tokens dispatched to it since then.
  std::atomic<int64_t> polled_tokens{-1};
  std::atomic<int64_t> dispatched_since_poll{0};
  std::atomic<int64_t> prompt_since_poll{0};  // of which prompt
  // The rest of the report; meaningless while polled_tokens is -1.
  std::atomic<int64_t> polled_waiting_tokens{0};  // prompt tokens in the engine's queue that its cache does not hold
  std::atomic<double> polled_kv_usage{0};         // share of the KV pool, 0 to 1
  std::atomic<double> polled_throughput{0};       // generated tokens per second
};

// One request's claim on one worker: one request in flight and an estimate of the tokens of work still to do.
//
// A worker's counters are changed by leases and by nothing else, so a client that vanishes, a refused connection and a
// retry all give back exactly what they took. Move-only; used by one thread at a time.
class WorkerLease {
 public:
  WorkerLease(std::shared_ptr<WorkerLoad> load, int64_t prompt_tokens, int64_t new_tokens = 0)
      : load_(std::move(load)), tokens_(prompt_tokens + new_tokens) {
    load_->requests.fetch_add(1, std::memory_order_relaxed);
    load_->tokens.fetch_add(tokens_, std::memory_order_relaxed);
    load_->dispatched_since_poll.fetch_add(tokens_, std::memory_order_relaxed);
    load_->prompt_since_poll.fetch_add(prompt_tokens, std::memory_order_relaxed);
  }
  WorkerLease(WorkerLease&& other) noexcept : load_(std::move(other.load_)), tokens_(std::exchange(other.tokens_, 0)) {}
  WorkerLease& operator=(WorkerLease&& other) noexcept {
    std::swap(load_, other.load_);  // `other` releases what this lease held
    std::swap(tokens_, other.tokens_);
    return *this;
  }
  ~WorkerLease() {
    if (!load_) return;  // moved from
    load_->requests.fetch_sub(1, std::memory_order_relaxed);
    load_->tokens.fetch_sub(tokens_, std::memory_order_relaxed);
  }

  // `tokens` of the work are done. An estimate that was too low stops at zero.
  void progress(int64_t tokens) {
    const int64_t done = std::min(tokens, tokens_);
    tokens_ -= done;
    load_->tokens.fetch_sub(done, std::memory_order_relaxed);
  }

 private:
  std::shared_ptr<WorkerLoad> load_;  // shared: the lease may outlive the worker's place in the fleet
  int64_t tokens_;
};

}  // namespace sluice::gateway
