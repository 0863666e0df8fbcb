// What a policy chooses from. Few workers are a list of those that may be used. Of many there is an order by load
// instead, and whether one may be used is asked when it comes up: so a choice among 10,000 costs what one among 64
// does.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <utility>

#include "base/rng.h"
#include "gateway/load_order.h"
#include "routing/hash_ring.h"
#include "routing/prefix_index.h"

namespace sluice::gateway {

// Whether a member of a view of many may be used for this request.
class Gate {
 public:
  enum class Pass : uint8_t {
    kYes,
    kTried,  // not for this request
    kRests,  // not now
  };
  virtual ~Gate() = default;
  virtual Pass of(uint32_t place) const = 0;
  // It will be asked for soon, and perhaps chosen.
  virtual void expect(uint32_t /*place*/) const {}
};

// Draws for the choices that come, made one choice early: of thousands of workers one is rarely in a cache, and then
// its memory has come by the time that it is weighed. Of one thread.
class DrawsAhead {
 public:
  // Returns one that was drawn before of the same order, and puts `fresh` in its place; `fresh` where none is waiting.
  // What waits of another order is forgotten: places of few workers would be drawn too often of many.
  uint32_t exchange(uint32_t fresh, const LoadOrder& order) {
    if (std::exchange(drawn_of_, &order) != &order) waiting_.fill(LoadOrder::kNobody);
    const uint32_t drawn = std::exchange(waiting_[next_], fresh);
    next_ = (next_ + 1) % waiting_.size();
    return drawn == LoadOrder::kNobody ? fresh : drawn;
  }

 private:
  std::array<uint32_t, 2> waiting_ = {LoadOrder::kNobody, LoadOrder::kNobody};
  const LoadOrder* drawn_of_ = nullptr;  // to compare with; it may be gone
  size_t next_ = 0;
};

// A value; what it is made of outlives it. Candidates that it gives out may be used, and outlive it.
class FleetView {
 public:
  // Exactly those that may be used, by ascending number, which is the order of registration. `ring` has all workers of
  // the fleet, usable or not; needed where the policy says needs_ring().
  explicit FleetView(std::span<const Candidate> usable, const routing::HashRing* ring = nullptr)
      : members_(usable), ring_(ring) {}
  // Those of `members` that `gate` lets through, for policies without needs_all(). `order` is of the same members; one
  // that rests is taken out of it. `ahead`: those of the thread, whatever fleet they were of; null: nothing is drawn
  // early.
  FleetView(std::span<const Candidate> members, LoadOrder& order, const Gate& gate, const routing::HashRing* ring,
            DrawsAhead* ahead = nullptr)
      : members_(members), order_(&order), gate_(&gate), ring_(ring), ahead_(ahead) {}

  bool is_many() const { return order_ != nullptr; }
  // All, by ascending number; not of many.
  std::span<const Candidate> usable() const {
    SLUICE_CHECK(order_ == nullptr, "a policy without needs_all() asked for all of {} workers", members_.size());
    return members_;
  }
  const routing::HashRing* ring() const { return ring_; }

  // They will be asked for: of many their memory is on the way from now on.
  void expect(std::span<const uint32_t> workers) const;
  // Null if the worker may not be used.
  const Candidate* find(uint32_t worker) const;

  // Of many these may come back empty although somebody may be used, when most draws meet workers that rest: whoever
  // made the view then makes one of exactly those that may be used.

  // Each equally likely.
  const Candidate* any(Rng& rng) const;
  struct Pair {
    const Candidate* first = nullptr;
    const Candidate* second = nullptr;  // another one; null if there is none
  };
  // Each pair equally likely.
  Pair any_two(Rng& rng) const;
  // Whose turn it is.
  const Candidate* in_turn(std::atomic<uint64_t>& turn) const;
  struct Spread {
    const Candidate* lightest = nullptr;  // fewest live requests; of equals each equally likely
    int64_t least = 0, most = 0;          // live requests
  };
  Spread spread(Rng& rng) const;

  // Those whose cost is worth knowing, of many: those that hold some of the prefix, some with few requests and some
  // that are drawn; one may be there twice. Whether holders may be used is not asked yet: that would cost as much as
  // the rest of the choice, and matters for the one that is chosen.
  struct Listed {
    const Candidate* candidate;
    double held;    // share of the prefix
    bool admitted;  // it may be used; else admit() says
  };
  // Of more holders so many are drawn: the least of that many is hardly dearer than the least of all.
  static constexpr size_t kHolders = 16;
  static constexpr size_t kLightest = 6, kDrawn = 2;
  static constexpr size_t kShortList = kHolders + routing::PrefixMatch::kMaxParts + kLightest + kDrawn;
  size_t short_list(const routing::PrefixMatch& prefix, std::span<Listed, kShortList> list, Rng& rng) const;
  bool admit(Listed& listed) const;

 private:
  static constexpr int kDraws = 64;
  const Candidate* admitted(uint32_t place) const;
  // What is on the way from memory for it: all that a lease asks, or as much as a choice does.
  enum class Draw { kToChoose, kToWeigh };
  // One of many; LoadOrder::kNobody if there is none.
  uint32_t draw(Rng& rng, Draw what_for = Draw::kToChoose) const;

  std::span<const Candidate> members_;
  LoadOrder* order_ = nullptr;
  const Gate* gate_ = nullptr;
  const routing::HashRing* ring_;
  DrawsAhead* ahead_ = nullptr;
};

// The place of that number among `members`, by ascending number; their size if it is not there.
size_t place_of(std::span<const Candidate> members, uint32_t worker);

}  // namespace sluice::gateway
