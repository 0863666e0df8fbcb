// The first pages of a ShmSegment: what only members of the family look into.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "parallel/shm_segment.h"

namespace sluice::parallel {

// How the ranks of a group meet. The last to arrive begins the next round and wakes the others.
struct alignas(64) ShmMeeting {
  // Bit 0: the world has failed. Above it: rounds that are over. What sleepers sleep on.
  std::atomic<uint32_t> round;
  std::atomic<uint32_t> arrived;  // of the round under way
  std::atomic<uint32_t> sleepers;
};

struct ShmSegment::Head {
  static constexpr size_t kGroups = 256;
  static constexpr size_t kReasonBytes = 2000;

  uint64_t magic;
  uint64_t layout;  // so that two builds never mix
  int32_t ranks;

  std::atomic<uint32_t> failed;  // 0, kWriting, kFailed
  uint32_t code;                 // the rest is valid with kFailed
  uint32_t reason_bytes;
  std::array<char, kReasonBytes> reason;

  alignas(64) std::atomic<uint64_t> next_free;  // offset
  std::atomic<uint32_t> next_group;
  std::array<ShmMeeting, kGroups> meetings;

  // Followed by a SignOfLife, a Pulse and a flag "joined" for each rank.
  static constexpr uint32_t kWriting = 1;
  static constexpr uint32_t kFailed = 2;

  SignOfLife* signs() { return reinterpret_cast<SignOfLife*>(this + 1); }
  Pulse* pulses() { return reinterpret_cast<Pulse*>(signs() + ranks); }
  std::atomic<uint32_t>* joined() { return reinterpret_cast<std::atomic<uint32_t>*>(pulses() + ranks); }
  static size_t bytes(int ranks) {
    return sizeof(Head) +
           static_cast<size_t>(ranks) * (sizeof(SignOfLife) + sizeof(Pulse) + sizeof(std::atomic<uint32_t>));
  }
};
static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(ShmSegment::Head) % alignof(SignOfLife) == 0 &&
              sizeof(SignOfLife) % alignof(Pulse) == 0);

// Sleeps while the word has this value, until woken or for `bound`. May return early.
void futex_wait(std::atomic<uint32_t>& word, uint32_t value, Duration bound);
// Wakes all.
void futex_wake(std::atomic<uint32_t>& word);

}  // namespace sluice::parallel
