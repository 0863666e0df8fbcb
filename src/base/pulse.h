// A process's signs of life, in memory that the process which watches it can see: a count that grows with every piece
// of work, and where the work is. So a slow step and one that hangs are told apart, without messages and without a
// thread of its own.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace sluice {

struct Pulse {
  enum class Phase : uint8_t {
    kOutside,  // what may take as long as it takes: loading weights, writing files
    kBetweenSteps,
    kStep,
  };
  struct Place {
    Phase phase = Phase::kOutside;
    uint32_t step = 0;
    int layer = -1;  // -1: none, or the head
    bool operator==(const Place&) const = default;
  };

  // Each thread has a line of its own, so that a beat costs a store into its cache.
  struct alignas(64) Beats {
    std::atomic<uint64_t> count{0};
  };
  std::array<Beats, 16> beats;
  std::atomic<uint64_t> place{0};

  // Any thread of any process.
  uint64_t count() const {
    uint64_t sum = 0;
    for (const Beats& each : beats) sum += each.count.load(std::memory_order_relaxed);
    return sum;
  }
  Place where() const {
    const uint64_t word = place.load(std::memory_order_relaxed);
    return {static_cast<Phase>(word & 0xff), static_cast<uint32_t>(word >> 32),
            static_cast<int>(word >> 8 & 0xffff) - 1};
  }
  void set(const Place& at) {
    place.store(uint64_t{at.step} << 32 | static_cast<uint64_t>(std::clamp(at.layer + 1, 0, 0xffff)) << 8 |
                    static_cast<uint64_t>(at.phase),
                std::memory_order_relaxed);
  }

  // This process's own: at first one that nobody sees.
  static Pulse& own() { return *own_; }
  // Before there are threads that beat. `shared` stays.
  static void publish_at(Pulse& shared) { own_ = &shared; }

 private:
  static Pulse unseen_;
  static Pulse* own_;
};
inline Pulse Pulse::unseen_;
inline Pulse* Pulse::own_ = &Pulse::unseen_;

// A piece of work is done, by `thread` of those that work together.
inline void beat(int thread) {
  auto& count = Pulse::own().beats[static_cast<size_t>(thread) % 16].count;
  count.store(count.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

// While it lives, what happens may take as long as it takes.
class OutsideSteps {
 public:
  OutsideSteps() : before_(Pulse::own().where()) { Pulse::own().set({.step = before_.step}); }
  ~OutsideSteps() { Pulse::own().set(before_); }
  OutsideSteps(const OutsideSteps&) = delete;
  OutsideSteps& operator=(const OutsideSteps&) = delete;

 private:
  const Pulse::Place before_;
};

}  // namespace sluice
