#include "routing/prefix_index.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "routing/prefix_tree.h"

namespace sluice::routing {
namespace {

struct PendingInsert {
  std::string text;
  Holder holder;
};

// Claims that come within this time of the first one are applied together: one wake-up of the index thread for all of
// them. A request that comes so soon after another with its prefix is a matter of luck anyway.
constexpr auto kGathering = std::chrono::milliseconds(2);

// Ticks are hundredths of a second since the index began: coarse, and enough for an order of use.
uint32_t tick_since(std::chrono::steady_clock::time_point start) {
  return static_cast<uint32_t>((std::chrono::steady_clock::now() - start) / std::chrono::milliseconds(10));
}

}  // namespace

class PrefixIndex::Impl {
 public:
  explicit Impl(const PrefixIndexOptions& options)
      : options_(options),
        // The queue's share is set aside, so that tree and queue together stay within the budget.
        queue_bytes_limit_(options.budget_bytes / 16),
        tree_(options.budget_bytes - queue_bytes_limit_, options.max_bytes_per_worker),
        thread_([this] { run(); }) {}

  ~Impl() {
    {
      std::lock_guard lock(mu_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  void insert(std::string_view text, uint32_t worker) {
    if (text.empty()) return;
    text = text.substr(0, std::min(options_.budget_bytes, options_.max_bytes_per_worker) / 4);
    const size_t cost = text.size() + sizeof(PendingInsert) + 32;
    const Holder holder{worker, tree_.generations().of(worker)};
    PendingInsert pending{std::string(text), holder};
    bool wake = false;
    {
      std::lock_guard lock(mu_);
      // One oversized text may wait alone; everything else shares the limit.
      if (queue_bytes_ != 0 && queue_bytes_ + cost > queue_bytes_limit_) {
        dropped_inserts_.fetch_add(1, std::memory_order_relaxed);
        return;
      }
      const bool was_hasty = hurry();
      wake = queue_.empty();
      queue_.push_back(std::move(pending));
      queue_bytes_ += cost;
      ++queued_;
      wake = wake || (hurry() && !was_hasty);
    }
    if (wake) wake_.notify_one();
  }

  void drop_worker(uint32_t worker) {
    tree_.generations().bump(worker);
    {
      std::lock_guard lock(mu_);
      stale_ = true;
    }
    wake_.notify_one();
  }

  void sweep() {
    std::unique_lock lock(mu_);
    const uint64_t ticket = ++sweeps_wanted_;
    wake_.notify_one();
    done_.wait(lock, [&] { return sweeps_done_ >= ticket; });
  }

  void flush() {
    std::unique_lock lock(mu_);
    const uint64_t target = queued_;
    if (applied_ >= target) return;
    ++flushes_;
    wake_.notify_one();
    done_.wait(lock, [&] { return applied_ >= target; });
    --flushes_;
  }

  PrefixMatch match(std::string_view text) const { return tree_.match(text); }

  PrefixIndexStats stats() const {
    size_t waiting = 0;
    {
      std::lock_guard lock(mu_);
      waiting = queue_bytes_;
    }
    return {.bytes = tree_.bytes() + waiting,
            .nodes = tree_.nodes(),
            .inserts = inserts_.load(std::memory_order_relaxed),
            .dropped_inserts = dropped_inserts_.load(std::memory_order_relaxed),
            .evictions_budget = tree_.evictions_budget(),
            .evictions_size = tree_.evictions_size(),
            .evictions_worker = tree_.evictions_worker()};
  }

 private:
  // Under the lock: what is queued should not wait for more.
  bool hurry() const {
    return stop_ || flushes_ > 0 || sweeps_wanted_ > sweeps_done_ || queue_bytes_ > queue_bytes_limit_ / 2;
  }

  void run() {
    const auto start = std::chrono::steady_clock::now();
    std::vector<PendingInsert> batch;
    std::unique_lock lock(mu_);
    for (;;) {
      const auto due = [&] { return stop_ || !queue_.empty() || sweeps_wanted_ > sweeps_done_; };
      // Without stale claims there is nothing to do until somebody inserts: no timer ticks while idle.
      bool sweep_now = false;
      if (stale_) {
        sweep_now = !wake_.wait_for(lock, options_.sweep_interval, due);
      } else {
        wake_.wait(lock, [&] { return due() || stale_; });
      }
      if (!queue_.empty()) wake_.wait_for(lock, kGathering, [&] { return hurry(); });
      if (stop_) return;
      batch.swap(queue_);
      const uint64_t sweeps = sweeps_wanted_;
      sweep_now = sweep_now || sweeps > sweeps_done_;
      if (sweep_now) stale_ = false;
      lock.unlock();

      const uint32_t tick = tick_since(start);
      size_t batch_bytes = 0;
      for (const PendingInsert& pending : batch) {
        batch_bytes += pending.text.size() + sizeof(PendingInsert) + 32;
        // The worker restarted while the claim waited: it is void already.
        if (pending.holder.generation != tree_.generations().of(pending.holder.worker)) continue;
        const bool done = tree_.insert(pending.text, pending.holder, tick);
        (done ? inserts_ : dropped_inserts_).fetch_add(1, std::memory_order_relaxed);
      }
      if (sweep_now) tree_.sweep();
      const size_t applied = batch.size();
      batch.clear();

      lock.lock();
      queue_bytes_ -= batch_bytes;
      applied_ += applied;
      sweeps_done_ = std::max(sweeps_done_, sweeps);
      done_.notify_all();
    }
  }

  const PrefixIndexOptions options_;
  const size_t queue_bytes_limit_;
  PrefixTree tree_;
  std::atomic<uint64_t> inserts_{0};
  std::atomic<uint64_t> dropped_inserts_{0};

  mutable std::mutex mu_;  // guards all below; held for a few instructions only
  std::condition_variable wake_;
  std::condition_variable done_;
  std::vector<PendingInsert> queue_;
  size_t queue_bytes_ = 0;  // of the queue and of the batch being applied
  uint64_t queued_ = 0;
  uint64_t applied_ = 0;
  int flushes_ = 0;  // callers that wait in flush()
  uint64_t sweeps_wanted_ = 0;
  uint64_t sweeps_done_ = 0;
  bool stale_ = false;  // claims of dropped workers may be in the tree
  bool stop_ = false;

  std::thread thread_;
};

PrefixIndex::PrefixIndex(PrefixIndexOptions options) : impl_(std::make_unique<Impl>(options)) {}
PrefixIndex::~PrefixIndex() = default;
PrefixMatch PrefixIndex::match(std::string_view text) const { return impl_->match(text); }
void PrefixIndex::insert(std::string_view text, uint32_t worker) { impl_->insert(text, worker); }
void PrefixIndex::drop_worker(uint32_t worker) { impl_->drop_worker(worker); }
void PrefixIndex::sweep() { impl_->sweep(); }
void PrefixIndex::flush() { impl_->flush(); }
PrefixIndexStats PrefixIndex::stats() const { return impl_->stats(); }

}  // namespace sluice::routing
