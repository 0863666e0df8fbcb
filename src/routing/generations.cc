#include "routing/generations.h"

#include <memory>

#include "base/check.h"

namespace sluice::routing {

Generations::~Generations() {
  for (auto& chunk : chunks_) delete chunk.load(std::memory_order_relaxed);
}

void Generations::check(uint32_t worker) {
  SLUICE_CHECK(worker < kWorkerMask, "worker number {} is beyond the {} that an index can tell apart", worker,
               kWorkerMask);
}

uint32_t Generations::bump(uint32_t worker) {
  check(worker);
  auto& slot = chunks_[worker / kChunk];
  Chunk* chunk = slot.load(std::memory_order_acquire);
  if (chunk == nullptr) {
    auto fresh = std::make_unique<Chunk>();
    if (slot.compare_exchange_strong(chunk, fresh.get(), std::memory_order_acq_rel)) chunk = fresh.release();
  }
  return (*chunk)[worker % kChunk].fetch_add(1, std::memory_order_acq_rel) + 1;
}

}  // namespace sluice::routing
