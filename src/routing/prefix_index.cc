#include "routing/prefix_index.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "routing/common_prefix.h"
#include "routing/epoch.h"
#include "routing/prefix_tree.h"

namespace sluice::routing {
namespace {

// Texts of so many bytes are worth more than the upkeep of an owner; one that has much else besides the text is not
// kept for it.
constexpr size_t kKept = 4096;
constexpr size_t kMostBesides = 2;  // times the text

// Claims that wait, one after another in memory of a fixed size, of which pages are taken when they are first used;
// long texts stay where they are, and count as well. One thread at a time changes it; any thread may look at the latest
// meanwhile, under an EpochGuard.
class PendingInserts {
 public:
  static size_t room_for_text(size_t capacity) { return capacity - sizeof(Head); }

  explicit PendingInserts(size_t capacity) : capacity_(capacity), data_(new char[capacity]) {}

  struct Claim {
    std::string_view text;
    Holder holder;
    uint64_t limit = 0;         // of the worker's text, in bytes; of one that is withdrawn the number of the claim
    bool is_withdrawn = false;  // what an earlier one has claimed
    PrefixPlace place{};
  };

  // False if there is no room. `owner`: of the text, or null.
  bool push(const Claim& claim, const std::shared_ptr<const std::string>& owner) {
    Head head{claim.limit,       claim.place, nullptr, claim.holder, static_cast<uint32_t>(claim.text.size()),
              claim.is_withdrawn};
    const size_t room = capacity_ - bytes();
    if (room < sizeof(head) + claim.text.size()) return false;
    const bool keeps = owner != nullptr && claim.text.size() >= kKept &&
                       owner->capacity() <= std::min(claim.text.size() * kMostBesides, room - sizeof(head));
    if (keeps) {
      head.kept = claim.text.data();
      kept_.push_back(owner);
      kept_bytes_ += owner->capacity();
    }
    std::memcpy(&data_[end_], &head, sizeof(head));
    if (!keeps) std::memcpy(&data_[end_ + sizeof(head)], claim.text.data(), claim.text.size());
    const size_t count = count_.load(std::memory_order_relaxed);
    // What a reader finds here is written wholly, whichever claim it is by now.
    latest_[count % latest_.size()].store(end_, std::memory_order_release);
    count_.store(count + 1, std::memory_order_release);
    end_ += sizeof(head) + (keeps ? 0 : claim.text.size());
    return true;
  }
  template <class Visit>
  void for_each(Visit visit) const {
    for (size_t at = 0; at < end_;) at += visit_at(at, visit);
  }
  // The claims that came last, newest first; at most kLatest, or `most`.
  static constexpr size_t kLatest = 64;
  template <class Visit>
  void for_latest(Visit visit, size_t most = kLatest) const {
    // Sequentially consistent, as the guard's announcement before it is: see EpochGuard.
    const size_t count = count_.load(std::memory_order_seq_cst);
    for (size_t i = 0; i < std::min({count, latest_.size(), most}); ++i) {
      visit_at(latest_[(count - 1 - i) % latest_.size()].load(std::memory_order_acquire), visit);
    }
  }
  // Nothing may be pushed before the readers of now have left; then the owners may be let go as well.
  void clear() {
    count_.store(0, std::memory_order_seq_cst);
    end_ = 0;
  }
  void let_go() {
    kept_.clear();
    kept_bytes_ = 0;
  }

  bool empty() const { return count() == 0; }
  size_t count() const { return count_.load(std::memory_order_relaxed); }
  size_t bytes() const { return end_ + kept_bytes_; }
  bool keeps_any() const { return !kept_.empty(); }
  bool half_full() const { return bytes() > capacity_ / 2; }

 private:
  struct Head {
    size_t limit;
    PrefixPlace place;
    const char* kept;  // the text; null: it follows
    Holder holder;
    uint32_t text_bytes;
    bool is_withdrawn;
  };
  // Returns how many bytes the claim takes.
  template <class Visit>
  size_t visit_at(size_t at, Visit& visit) const {
    Head head;
    std::memcpy(&head, &data_[at], sizeof(head));
    const char* const text = head.kept != nullptr ? head.kept : &data_[at + sizeof(head)];
    visit(Claim{{text, head.text_bytes}, head.holder, head.limit, head.is_withdrawn, head.place});
    return sizeof(head) + (head.kept != nullptr ? 0 : head.text_bytes);
  }

  const size_t capacity_;
  const std::unique_ptr<char[]> data_;
  size_t end_ = 0;  // of what is written
  std::vector<std::shared_ptr<const std::string>> kept_;
  size_t kept_bytes_ = 0;
  std::atomic<size_t> count_{0};
  std::array<std::atomic<size_t>, kLatest> latest_{};  // where they begin
};

// Claims that come within this time of the first one, or of the last ones that were applied, are applied together, or
// so many if they come sooner: one or two wake-ups of the index thread for all of them, where two for each request cost
// more than the claims. Meanwhile look-ups find them where they wait, and no more of them than they look at.
constexpr auto kGathering = std::chrono::milliseconds(20);
constexpr size_t kTogether = 32;

// Of what is withdrawn: look-ups still find it meanwhile. Where many fail at once they do not wake the thread each.
constexpr auto kWithdrawing = std::chrono::milliseconds(1);

// Until readers of the other buffer are asked for again.
constexpr auto kReaders = std::chrono::microseconds(200);

// What may wait, and once more what may be applied, of the budget.
size_t queue_share(size_t budget_bytes) { return std::min<size_t>(budget_bytes / 32, 16 << 20); }

// What withdrawals have left to the worker because claims of other texts of it went on from there. If those are
// withdrawn as well it is nobody's: what they found held before them was the claim that had gone. Of the latest some.
// One thread.
class Leftovers {
 public:
  // The claim `number` of the worker found `kept` bytes held: of those, what it keeps when it is withdrawn.
  size_t kept_of(std::string_view text, Holder holder, uint64_t number, size_t kept) const {
    // Each is shorter than the one before.
    for (const Leftover* found = find(text, holder, number, kept); found != nullptr;) {
      kept = found->kept;
      found = find(text, holder, number, kept);
    }
    return kept;
  }
  // A withdrawal, itself the claim `number` of the queue, had to leave `text` and was to leave `kept` bytes of it.
  void add(std::string_view text, Holder holder, uint64_t number, size_t kept) {
    latest_[next_] = {.hash = hash_of(text), .number = number, .holder = holder, .bytes = text.size(), .kept = kept};
    next_ = (next_ + 1) % latest_.size();
  }

 private:
  struct Leftover {
    uint64_t hash = 0;
    uint64_t number = 0;
    Holder holder;
    size_t bytes = 0, kept = 0;
  };
  static uint64_t hash_of(std::string_view text) { return XXH3_64bits(text.data(), text.size()); }
  // The one of exactly what was found held; claims that came after the withdrawal found others' to be held.
  const Leftover* find(std::string_view text, Holder holder, uint64_t number, size_t bytes) const {
    if (bytes == 0 || bytes > text.size()) return nullptr;
    std::optional<uint64_t> hash;
    for (const Leftover& each : latest_) {
      if (each.bytes != bytes || each.number < number || each.holder.worker != holder.worker ||
          each.holder.generation != holder.generation) {
        continue;
      }
      if (!hash) hash = hash_of(text.substr(0, bytes));
      if (each.hash == *hash) return &each;
    }
    return nullptr;
  }

  std::array<Leftover, 256> latest_;
  size_t next_ = 0;
};

// Ticks are hundredths of a second since the index began: coarse, and enough for an order of use.
uint32_t ticks_of(Duration duration) { return static_cast<uint32_t>(duration / std::chrono::milliseconds(10)); }

}  // namespace

void PrefixMatch::add(uint32_t worker, size_t bytes) {
  if (bytes == 0 || (bytes <= matched_bytes && std::ranges::find(workers(), worker) != workers().end())) return;
  const auto insert = [this](Part part) {
    size_t at = num_parts;
    while (at > 0 && parts[at - 1].bytes < part.bytes) --at;
    if (at == kMaxParts) return;
    if (num_parts < kMaxParts) ++num_parts;
    for (size_t i = num_parts - 1; i > at; --i) parts[i] = parts[i - 1];
    parts[at] = part;
  };
  if (const auto known = std::ranges::find(partly(), worker, &Part::worker); known != partly().end()) {
    if (known->bytes >= bytes) return;
    std::copy(known + 1, partly().end(), parts.begin() + (known - partly().begin()));
    --num_parts;
  }
  if (bytes < matched_bytes) {
    insert({worker, static_cast<uint32_t>(bytes)});
    return;
  }
  if (bytes > matched_bytes) {
    for (const uint32_t holder : workers()) {
      if (holder != worker) insert({holder, static_cast<uint32_t>(matched_bytes)});
    }
    matched_bytes = bytes;
    num_holders = 0;
  }
  if (num_holders < kMaxHolders) holders[num_holders++] = worker;
}

void PrefixMatch::leave_out(size_t bytes) {
  left_out += bytes;
  total_bytes -= bytes;
  matched_bytes -= std::min(bytes, matched_bytes);
  if (matched_bytes == 0) num_holders = 0;
  while (num_parts > 0 && parts[num_parts - 1].bytes <= bytes) --num_parts;
  for (size_t i = 0; i < num_parts; ++i) parts[i].bytes -= static_cast<uint32_t>(bytes);
}

class PrefixIndex::Impl {
 public:
  explicit Impl(const PrefixIndexOptions& options)
      : options_(options),
        max_text_(std::min(PendingInserts::room_for_text(queue_share(options.budget_bytes)),
                           options.max_bytes_per_worker / 4)),
        // What waits and what is being applied have their share set aside, so that all together stays within the
        // budget.
        tree_(options.budget_bytes - 2 * queue_share(options.budget_bytes), options.max_bytes_per_worker),
        pending_{PendingInserts(queue_share(options.budget_bytes)), PendingInserts(queue_share(options.budget_bytes))},
        thread_([this] { run(); }) {}

  ~Impl() {
    {
      std::lock_guard lock(mu_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  // `found`: null if nothing that came since matters.
  std::optional<uint64_t> insert(std::string_view text, uint32_t worker, size_t limit, const KnownText& known,
                                 const PrefixMatch* found) {
    const Holder holder{worker, tree_.generations().of(worker)};
    const PendingInserts::Claim claim{text.substr(0, max_text_), holder, limit, false, known.place};
    const auto number = enqueue(claim, known.owner, found);
    if (number == 0 && !text.empty()) dropped_inserts_.fetch_add(1, std::memory_order_relaxed);
    return number;
  }

  void withdraw(std::string_view text, uint32_t worker, uint64_t claim) {
    if (claim == 0) return;
    const Holder holder{worker, tree_.generations().of(worker)};
    const auto number = enqueue({text.substr(0, max_text_), holder, claim, /*is_withdrawn=*/true}, nullptr, nullptr);
    if (number == 0 && !text.empty()) dropped_inserts_.fetch_add(1, std::memory_order_relaxed);
  }

  // Its number, which counts up; 0 if there is no room, none if `found` is outdated.
  std::optional<uint64_t> enqueue(const PendingInserts::Claim& claim, const std::shared_ptr<const std::string>& owner,
                                  const PrefixMatch* found) {
    if (claim.text.empty()) return 0;
    bool wake = false;
    uint64_t number = 0;
    {
      std::lock_guard lock(mu_);
      if (found != nullptr && outdated(*found, claim)) return std::nullopt;
      const bool was_empty = queue().empty();
      const bool was_hasty = hurry() || any_withdrawn_;
      if (!queue().push(claim, owner)) return 0;
      number = queued_.load(std::memory_order_relaxed) + 1;
      queued_.store(number, std::memory_order_release);
      // Look-ups do not see that one which waits is withdrawn.
      any_withdrawn_ = any_withdrawn_ || claim.is_withdrawn;
      any_waits_.store(true, std::memory_order_relaxed);
      wake = (was_empty && asleep_) || ((hurry() || any_withdrawn_) && !was_hasty);
    }
    if (wake) wake_.notify_one();
    return number;
  }

  void drop_worker(uint32_t worker) {
    const uint32_t life = tree_.generations().bump(worker);
    {
      std::lock_guard lock(mu_);
      stale_ = true;
      // Before its lives look alike to the tree.
      if (life % (Generations::kApart / 2) == 0) ++sweeps_wanted_;
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
    const uint64_t target = queued_.load(std::memory_order_relaxed);
    if (applied_ >= target) return;
    ++flushes_;
    wake_.notify_one();
    done_.wait(lock, [&] { return applied_ >= target; });
    --flushes_;
  }

  void report(size_t most, std::function<void(PrefixIndexReport)> done) {
    {
      std::lock_guard lock(mu_);
      asked_.emplace_back(most, std::move(done));
    }
    wake_.notify_one();
  }

  PrefixMatch match(std::string_view text) const {
    for (;;) {
      const uint64_t batches = batches_.load(std::memory_order_acquire);
      const PrefixMatch found = match_once(text);
      // What was in neither place may have gone from one to the other meanwhile.
      if (batches == batches_.load(std::memory_order_acquire)) return found;
    }
  }

  PrefixMatch match_once(std::string_view text) const {
    const uint64_t seen = queued_.load(std::memory_order_acquire);
    PrefixMatch found = tree_.match(text);
    found.seen = seen;
    if (found.matched_bytes == text.size() || !any_waits_.load(std::memory_order_relaxed)) return found;
    // Claims of the last milliseconds are not in the tree yet, and a burst of equal prompts is over by then.
    const EpochGuard guard;
    const auto consider = [&](const PendingInserts::Claim& claim) {
      if (claim.is_withdrawn || claim.holder.generation != tree_.generations().of(claim.holder.worker)) return;
      found.add(claim.holder.worker, whole_characters(text, shared(text, found.place, claim)));
    };
    for (const PendingInserts& pending : pending_) pending.for_latest(consider);
    return found;
  }

  // Bytes that a claim has in common with a text that was found at `place`.
  static size_t shared(std::string_view text, const PrefixPlace& place, const PendingInserts::Claim& claim) {
    // What both were found to go through is the same in both.
    const size_t same = claim.place.is(place) && claim.place.bytes <= claim.text.size() ? claim.place.bytes : 0;
    return same + common_prefix(text.substr(same), claim.text.substr(same));
  }

  PrefixIndexStats stats() const {
    size_t waiting = 0;
    {
      std::lock_guard lock(mu_);
      waiting = queue().bytes() + batch_bytes_;
    }
    return {.bytes = tree_.bytes() + waiting,
            .nodes = tree_.nodes(),
            .inserts = inserts_.load(std::memory_order_relaxed),
            .dropped_inserts = dropped_inserts_.load(std::memory_order_relaxed),
            .withdrawn_inserts = withdrawn_inserts_.load(std::memory_order_relaxed),
            .evictions_budget = tree_.evictions_budget(),
            .evictions_size = tree_.evictions_size(),
            .evictions_worker = tree_.evictions_worker(),
            .evictions_age = tree_.evictions_age()};
  }

 private:
  // Under the lock.
  PendingInserts& queue() { return pending_[active_]; }
  const PendingInserts& queue() const { return pending_[active_]; }
  // Under the lock: see insert_if_latest(). What came since is nearly always nothing, or differs early.
  bool outdated(const PrefixMatch& found, const PendingInserts::Claim& mine) const {
    const uint64_t since = queued_.load(std::memory_order_relaxed) - found.seen;
    if (since > std::min(queue().count(), PendingInserts::kLatest)) return true;
    const size_t eighth = (mine.text.size() - std::min(mine.text.size(), found.left_out)) / 8;
    const size_t much = found.left_out + found.matched_bytes + std::max<size_t>(1, eighth);
    bool more = false;
    const auto consider = [&](const PendingInserts::Claim& claim) {
      more = more || (!claim.is_withdrawn && shared(mine.text, found.place, claim) >= much);
    };
    queue().for_latest(consider, since);
    return more;
  }
  // Under the lock: what is queued should not wait for more.
  bool hurry() const {
    return stop_ || flushes_ > 0 || sweeps_wanted_ > sweeps_done_ || queue().half_full() || !asked_.empty() ||
           queue().count() >= kTogether;
  }

  // Under the lock.
  void sleep_until_due(std::unique_lock<std::mutex>& lock) {
    const auto due = [&] { return stop_ || !queue().empty() || sweeps_wanted_ > sweeps_done_ || !asked_.empty(); };
    asleep_ = true;
    // Without claims that are stale or age there is nothing to do until somebody inserts: no timer ticks while idle.
    if (stale_ || (options_.max_age > Duration::zero() && first_use_ != PrefixTree::kNever)) {
      wake_.wait_until(lock, next_round_, due);
    } else {
      wake_.wait(lock, [&] { return due() || stale_; });
    }
    asleep_ = false;
  }
  // Under the lock, on the index thread. Whether it is time for a round, and there is something for it to take out:
  // a walk over the whole tree is worth it only then.
  bool round_due(uint32_t oldest) {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_round_) return false;
    next_round_ = now + options_.sweep_interval;
    return stale_ || first_use_ < oldest;
  }
  // Claims that were last used before that tick are too old.
  uint32_t oldest_at(uint32_t tick) const {
    const uint32_t age = ticks_of(options_.max_age);
    return age == 0 || age > tick ? 0 : tick - age;
  }
  void gather(std::unique_lock<std::mutex>& lock) {
    wake_.wait_for(lock, kGathering, [&] { return hurry() || any_withdrawn_; });
    if (any_withdrawn_) wake_.wait_for(lock, kWithdrawing, [&] { return hurry(); });
  }

  // Index thread. `number`: of the claim, or of the withdrawal of one.
  void apply(const PendingInserts::Claim& claim, uint64_t number, uint32_t tick) {
    // The worker restarted while the claim waited: it is void already.
    if (claim.holder.generation != tree_.generations().of(claim.holder.worker)) return;
    if (claim.is_withdrawn) {
      const Applied& of = latest_[claim.limit % latest_.size()];
      // One of a life that is over is void already, and the same text may have come back since.
      if (of.number != claim.limit || of.generation != claim.holder.generation) return;
      const size_t kept = leftovers_.kept_of(claim.text, claim.holder, of.number, of.held);
      const size_t left = tree_.withdraw(claim.text, claim.holder, kept);
      if (left > kept) leftovers_.add(claim.text.substr(0, left), claim.holder, number, kept);
      withdrawn_inserts_.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    size_t held = 0;
    const bool done = tree_.insert(claim.text, claim.holder, tick, claim.limit, &held, claim.place);
    if (done) latest_[number % latest_.size()] = {number, held, claim.holder.generation};
    first_use_ = std::min(first_use_, tick);
    (done ? inserts_ : dropped_inserts_).fetch_add(1, std::memory_order_relaxed);
  }

  void run() {
    const TimePoint start = options_.clock->now();
    std::unique_lock lock(mu_);
    for (;;) {
      // Of requests that go on coming none has to wake this thread until enough of them are here.
      gather(lock);
      if (queue().empty()) {
        sleep_until_due(lock);
        if (!queue().empty()) gather(lock);
      }
      wait_for_readers(lock);
      if (stop_) return;
      PendingInserts& batch = queue();
      active_ = 1 - active_;
      batch_bytes_ = batch.bytes();
      any_withdrawn_ = false;
      const uint64_t sweeps = sweeps_wanted_;
      const uint32_t tick = ticks_of(options_.clock->now() - start);
      const uint32_t oldest = oldest_at(tick);
      const bool sweep_now = round_due(oldest) || sweeps > sweeps_done_;
      if (sweep_now) stale_ = false;
      const auto asked = std::exchange(asked_, {});
      uint64_t number = applied_;
      lock.unlock();

      Few few;
      const auto apply_few = [&] {
        if (few.size > 1) tree_.expect(std::span(few.expected).first(few.size));
        for (size_t i = 0; i < few.size; ++i) apply(few.claims[i], ++number, tick);
        few.size = 0;
      };
      batch.for_each([&](const PendingInserts::Claim& claim) {
        few.claims[few.size] = claim;
        few.expected[few.size] = {claim.text, claim.place.bytes};
        if (++few.size == few.claims.size()) apply_few();
      });
      apply_few();
      if (sweep_now) first_use_ = tree_.sweep(oldest);
      for (const auto& [most, done] : asked) done(tree_.report(most));
      const size_t applied = batch.count();

      lock.lock();
      batches_.fetch_add(1, std::memory_order_release);
      batch.clear();
      cleared_at_ = internal::global_epoch.fetch_add(1, std::memory_order_seq_cst);
      any_waits_.store(!queue().empty(), std::memory_order_relaxed);
      applied_ += applied;
      sweeps_done_ = std::max(sweeps_done_, sweeps);
      done_.notify_all();
      if (batch.keeps_any()) {
        wait_for_readers(lock);
        lock.unlock();
        batch.let_go();
        lock.lock();
      }
      batch_bytes_ = 0;
    }
  }
  // Those who may be looking at the buffer that was cleared last.
  void wait_for_readers(std::unique_lock<std::mutex>& lock) {
    while (!stop_ && internal::oldest_reader() <= cleared_at_) wake_.wait_for(lock, kReaders);
  }

  // Claims that are applied one after the other.
  struct Few {
    std::array<PendingInserts::Claim, PrefixTree::kExpected> claims;
    std::array<PrefixTree::Expected, PrefixTree::kExpected> expected;
    size_t size = 0;
  };

  const PrefixIndexOptions options_;
  const size_t max_text_;
  PrefixTree tree_;
  std::atomic<uint64_t> inserts_{0};
  std::atomic<uint64_t> dropped_inserts_{0};
  std::atomic<uint64_t> withdrawn_inserts_{0};
  // Index thread: what the workers held of the texts that they claimed last, before that.
  struct Applied {
    uint64_t number = 0;
    size_t held = 0;  // bytes
    uint32_t generation = 0;
  };
  static constexpr size_t kApplied = 8192;
  std::vector<Applied> latest_ = std::vector<Applied>(kApplied);
  Leftovers leftovers_;
  // Of all claims in the tree none was last used before that tick; also of the index thread.
  uint32_t first_use_ = PrefixTree::kNever;
  std::chrono::steady_clock::time_point next_round_ = std::chrono::steady_clock::now();
  std::atomic<bool> any_waits_{false};  // a claim is in the queue, or being applied
  std::atomic<uint64_t> batches_{0};    // that are applied: counted when they are in the tree and still in their buffer
  std::atomic<uint64_t> queued_{0};     // the number of the latest claim; changes under the lock

  // Guards all below; held for a few instructions, or while a text is compared with those that came a moment ago.
  mutable std::mutex mu_;
  std::condition_variable wake_;
  std::condition_variable done_;
  // The queue, and what is being applied, without the lock, or was: that one is not filled again before those who
  // looked at it have left.
  std::array<PendingInserts, 2> pending_;
  size_t active_ = 0;        // the queue
  uint64_t cleared_at_ = 0;  // epoch
  size_t batch_bytes_ = 0;
  bool any_withdrawn_ = false;  // of the queue
  uint64_t applied_ = 0;
  int flushes_ = 0;  // callers that wait in flush()
  std::vector<std::pair<size_t, std::function<void(PrefixIndexReport)>>> asked_;
  uint64_t sweeps_wanted_ = 0;
  uint64_t sweeps_done_ = 0;
  bool asleep_ = false;  // the thread, until it is woken
  bool stale_ = false;   // claims of dropped workers may be in the tree
  bool stop_ = false;

  std::thread thread_;
};

PrefixIndex::PrefixIndex(PrefixIndexOptions options) : impl_(std::make_unique<Impl>(options)) {}
PrefixIndex::~PrefixIndex() = default;
PrefixMatch PrefixIndex::match(std::string_view text) const { return impl_->match(text); }
uint64_t PrefixIndex::insert(std::string_view text, uint32_t worker, size_t limit, const KnownText& known) {
  return *impl_->insert(text, worker, limit, known, nullptr);
}
std::optional<uint64_t> PrefixIndex::insert_if_latest(std::string_view text, uint32_t worker, const PrefixMatch& found,
                                                      size_t limit, const KnownText& known) {
  return impl_->insert(text, worker, limit, known, &found);
}
void PrefixIndex::withdraw(std::string_view text, uint32_t worker, uint64_t claim) {
  impl_->withdraw(text, worker, claim);
}
void PrefixIndex::drop_worker(uint32_t worker) { impl_->drop_worker(worker); }
void PrefixIndex::sweep() { impl_->sweep(); }
void PrefixIndex::flush() { impl_->flush(); }
PrefixIndexStats PrefixIndex::stats() const { return impl_->stats(); }
void PrefixIndex::report(size_t most, std::function<void(PrefixIndexReport)> done) {
  impl_->report(most, std::move(done));
}

}  // namespace sluice::routing
