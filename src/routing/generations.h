// Which life of each worker is the current one.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace sluice::routing {

// The current generation of each worker, readable without a lock; worker numbers are dense and never reused.
class Generations {
 public:
  // A worker's number, in a word whose other bits a claim has for the end of the generation. The last number is
  // nobody's.
  static constexpr uint32_t kWorkerBits = 22;
  static constexpr uint32_t kWorkerMask = (1u << kWorkerBits) - 1;
  // So many generations later a claim would count again, if it were still there.
  static constexpr uint32_t kApart = 1u << (32 - kWorkerBits);
  // Dies where the number is larger than that.
  static void check(uint32_t worker);

  ~Generations();
  uint32_t of(uint32_t worker) const {
    if (worker / kChunk >= kChunks) return 0;
    const Chunk* chunk = chunks_[worker / kChunk].load(std::memory_order_acquire);
    return chunk == nullptr ? 0 : (*chunk)[worker % kChunk].load(std::memory_order_acquire);
  }
  // Returns the new one.
  uint32_t bump(uint32_t worker);

 private:
  static constexpr uint32_t kChunk = 1024;
  static constexpr uint32_t kChunks = (kWorkerMask + 1) / kChunk;
  using Chunk = std::array<std::atomic<uint32_t>, kChunk>;

  std::array<std::atomic<Chunk*>, kChunks> chunks_{};
};

}  // namespace sluice::routing
