// Which life of each worker is the current one.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace sluice::routing {

// The current generation of each worker, readable without a lock; worker numbers are dense and never reused.
class Generations {
 public:
  ~Generations();
  uint32_t of(uint32_t worker) const;
  void bump(uint32_t worker);

 private:
  static constexpr uint32_t kChunk = 1024;
  static constexpr uint32_t kChunks = 4096;
  using Chunk = std::array<std::atomic<uint32_t>, kChunk>;

  std::array<std::atomic<Chunk*>, kChunks> chunks_{};
};

}  // namespace sluice::routing
