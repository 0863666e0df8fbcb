#include "routing/prefix_index.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

#include "routing/prefix_tree.h"

namespace sluice::routing {
namespace {

// Claims that wait, one after another in memory of a fixed size, of which pages are taken when they are first used.
class PendingInserts {
 public:
  static size_t room_for_text(size_t capacity) { return capacity - sizeof(Head); }

  explicit PendingInserts(size_t capacity) : capacity_(capacity), data_(new char[capacity]) {}

  // False if there is no room.
  bool push(std::string_view text, Holder holder, size_t limit) {
    const Head head{limit, holder, static_cast<uint32_t>(text.size())};
    if (capacity_ - bytes_ < sizeof(head) + text.size()) return false;
    std::memcpy(&data_[bytes_], &head, sizeof(head));
    std::memcpy(&data_[bytes_ + sizeof(head)], text.data(), text.size());
    bytes_ += sizeof(head) + text.size();
    ++count_;
    return true;
  }
  template <class Visit>
  void for_each(Visit visit) const {
    for (size_t at = 0; at < bytes_;) {
      Head head;
      std::memcpy(&head, &data_[at], sizeof(head));
      visit(std::string_view(&data_[at + sizeof(head)], head.text_bytes), head.holder, head.limit);
      at += sizeof(head) + head.text_bytes;
    }
  }
  void clear() { bytes_ = count_ = 0; }

  bool empty() const { return count_ == 0; }
  size_t count() const { return count_; }
  size_t bytes() const { return bytes_; }
  bool half_full() const { return bytes_ > capacity_ / 2; }

 private:
  struct Head {
    size_t limit;
    Holder holder;
    uint32_t text_bytes;
  };
  size_t capacity_;
  std::unique_ptr<char[]> data_;
  size_t bytes_ = 0;
  size_t count_ = 0;
};

// Claims that come within this time of the first one are applied together: one wake-up of the index thread for all of
// them. A request that comes so soon after another with its prefix is a matter of luck anyway.
constexpr auto kGathering = std::chrono::milliseconds(2);

// What may wait, and once more what may be applied, of the budget.
size_t queue_share(size_t budget_bytes) { return std::min<size_t>(budget_bytes / 32, 16 << 20); }

// Ticks are hundredths of a second since the index began: coarse, and enough for an order of use.
uint32_t tick_since(std::chrono::steady_clock::time_point start) {
  return static_cast<uint32_t>((std::chrono::steady_clock::now() - start) / std::chrono::milliseconds(10));
}

}  // namespace

class PrefixIndex::Impl {
 public:
  explicit Impl(const PrefixIndexOptions& options)
      : options_(options),
        max_text_(std::min(PendingInserts::room_for_text(queue_share(options.budget_bytes)),
                           options.max_bytes_per_worker / 4)),
        // What waits and what is being applied have their share set aside, so that all together stays within the
        // budget.
        tree_(options.budget_bytes - 2 * queue_share(options.budget_bytes), options.max_bytes_per_worker),
        queue_(queue_share(options.budget_bytes)),
        batch_(queue_share(options.budget_bytes)),
        thread_([this] { run(); }) {}

  ~Impl() {
    {
      std::lock_guard lock(mu_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  void insert(std::string_view text, uint32_t worker, size_t limit) {
    if (text.empty()) return;
    text = text.substr(0, max_text_);
    const Holder holder{worker, tree_.generations().of(worker)};
    bool wake = false;
    {
      std::lock_guard lock(mu_);
      const bool was_empty = queue_.empty();
      const bool was_hasty = hurry();
      if (!queue_.push(text, holder, limit)) {
        dropped_inserts_.fetch_add(1, std::memory_order_relaxed);
        return;
      }
      ++queued_;
      wake = was_empty || (hurry() && !was_hasty);
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
      waiting = queue_.bytes() + batch_bytes_;
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
  bool hurry() const { return stop_ || flushes_ > 0 || sweeps_wanted_ > sweeps_done_ || queue_.half_full(); }

  void run() {
    const auto start = std::chrono::steady_clock::now();
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
      std::swap(queue_, batch_);
      batch_bytes_ = batch_.bytes();
      const uint64_t sweeps = sweeps_wanted_;
      sweep_now = sweep_now || sweeps > sweeps_done_;
      if (sweep_now) stale_ = false;
      lock.unlock();

      const uint32_t tick = tick_since(start);
      batch_.for_each([&](std::string_view text, Holder holder, size_t limit) {
        // The worker restarted while the claim waited: it is void already.
        if (holder.generation != tree_.generations().of(holder.worker)) return;
        const bool done = tree_.insert(text, holder, tick, limit);
        (done ? inserts_ : dropped_inserts_).fetch_add(1, std::memory_order_relaxed);
      });
      if (sweep_now) tree_.sweep();
      const size_t applied = batch_.count();
      batch_.clear();

      lock.lock();
      batch_bytes_ = 0;
      applied_ += applied;
      sweeps_done_ = std::max(sweeps_done_, sweeps);
      done_.notify_all();
    }
  }

  const PrefixIndexOptions options_;
  const size_t max_text_;
  PrefixTree tree_;
  std::atomic<uint64_t> inserts_{0};
  std::atomic<uint64_t> dropped_inserts_{0};

  mutable std::mutex mu_;  // guards all below; held for a few instructions only
  std::condition_variable wake_;
  std::condition_variable done_;
  PendingInserts queue_;
  size_t batch_bytes_ = 0;
  uint64_t queued_ = 0;
  uint64_t applied_ = 0;
  int flushes_ = 0;  // callers that wait in flush()
  uint64_t sweeps_wanted_ = 0;
  uint64_t sweeps_done_ = 0;
  bool stale_ = false;  // claims of dropped workers may be in the tree
  bool stop_ = false;

  PendingInserts batch_;  // being applied: the index thread's, but for swapping it with the queue
  std::thread thread_;
};

PrefixIndex::PrefixIndex(PrefixIndexOptions options) : impl_(std::make_unique<Impl>(options)) {}
PrefixIndex::~PrefixIndex() = default;
PrefixMatch PrefixIndex::match(std::string_view text) const { return impl_->match(text); }
void PrefixIndex::insert(std::string_view text, uint32_t worker, size_t limit) { impl_->insert(text, worker, limit); }
void PrefixIndex::drop_worker(uint32_t worker) { impl_->drop_worker(worker); }
void PrefixIndex::sweep() { impl_->sweep(); }
void PrefixIndex::flush() { impl_->flush(); }
PrefixIndexStats PrefixIndex::stats() const { return impl_->stats(); }

}  // namespace sluice::routing
