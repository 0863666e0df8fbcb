// Signs of life: where each rank of a world is and when it was last heard of, in words that others may read at any
// time, across processes too.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/result.h"

namespace sluice::parallel {

// The phases of a step (docs/design/parallel.md). Those from kAttention to kScatter are of a layer.
enum class Phase : uint8_t {
  kNone,
  kLoad,
  kReceive,
  kPlan,
  kExchange,
  kControl,
  kEmbed,
  kAttention,
  kGather,
  kDispatch,
  kExperts,
  kCombine,
  kScatter,
  kHead,
  kSample,
  kPublish,
  kRebalance,  // between steps
};
std::string_view to_string(Phase phase);

struct Progress {
  uint32_t step = 0;
  Phase phase = Phase::kNone;
  int layer = -1;  // -1 = in none
  bool operator==(const Progress&) const = default;
};
// "step 40, layer 3, dispatch"; empty for a rank that never said.
std::string to_string(const Progress& progress);

// Of one rank. In shared memory.
class alignas(64) SignOfLife {
 public:
  // A call, or joining.
  void seen(TimePoint now) { when_.store(now.time_since_epoch().count(), std::memory_order_relaxed); }
  void seen(TimePoint now, const Progress& progress);
  // What another rank has noticed of this one, which may tell of itself at the same time: the later of both stays. A
  // rank has joined only when it says so.
  void noticed(TimePoint now);

  // For whom it waits in calls, by the name in the world; -1 = for nobody. Two threads of a rank may be in calls at
  // once. Members that hear of each other only by messages do not say it.
  using WaitsFor = std::array<int, 2>;
  WaitsFor waits_for() const {
    return {waits_for_[0].load(std::memory_order_relaxed) - 1, waits_for_[1].load(std::memory_order_relaxed) - 1};
  }
  // One call that waits, while it does.
  class Waiting {
   public:
    explicit Waiting(SignOfLife& sign) : sign_(sign) {}
    ~Waiting() {
      if (place_ != nullptr) place_->store(0, std::memory_order_relaxed);
    }
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;
    void is_for(int rank);

   private:
    SignOfLife& sign_;
    std::atomic<int32_t>* place_ = nullptr;
  };

  bool joined() const { return when_.load(std::memory_order_relaxed) != 0; }
  TimePoint when() const { return TimePoint(Duration(when_.load(std::memory_order_relaxed))); }
  Progress where() const;

 private:
  std::atomic<int64_t> when_{0};
  std::atomic<uint64_t> where_{0};
  std::array<std::atomic<int32_t>, 2> waits_for_{};  // the rank + 1: shared memory begins as zeros
};
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free);

// Of one wait: who is missing and since when we wait.
struct Wait {
  std::string_view group;
  std::string_view call;  // "all_reduce #12 (...)"
  int waiting = 0;        // the rank that waits, and all others, by their names in the world
  std::span<const int> missing;
  TimePoint since{};
  Duration lost{};  // of that, time in which it could not look (LostTime); no limit includes it
};

// Time that passes for a rank that waits and does not run, though its sleep is over: a machine with too much to do, a
// frozen container, a virtual machine that stands still. Most likely the others did not run either, so their silence
// means nothing. Used by one thread, which looks at the others now and then.
class LostTime {
 public:
  explicit LostTime(const Clock& clock = real_clock()) : clock_(clock), last_(clock.now()) {}

  // At each look, `asked` being how long it was to sleep since the last one, or the beginning. What was lost since
  // then.
  Duration look(Duration asked);
  void begin_anew() { last_ = clock_.now(); }

 private:
  const Clock& clock_;
  TimePoint last_;
};

// How long the wait may still go on before the silence of one of the missing ranks is too long; kTimeout, naming
// them all, if it is, and whom they wait for themselves: a rank that hangs is missed by others than those it keeps.
Result<Duration> time_left(const Wait& wait, std::span<const SignOfLife> signs, TimePoint now, Duration silence_limit,
                           Duration join_limit);

}  // namespace sluice::parallel
