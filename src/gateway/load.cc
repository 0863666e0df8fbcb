#include "gateway/load.h"

#include <sys/mman.h>

#include <new>

namespace sluice::gateway {

// The first lines of two loads, and so on, are of different sets of a cache: those of thousands have room there.
static_assert(sizeof(WorkerLoad) / 64 % 2 == 1, "as many lines as are an odd number");

std::shared_ptr<WorkerLoad> LoadSlab::next() {
  if (used_ == size_) {
    size_ = std::min(size_ == 0 ? kFirst : 8 * size_, kMost);
    loads_ = make(size_);
    used_ = 0;
  }
  return {loads_, loads_.get() + used_++};
}

std::shared_ptr<WorkerLoad> LoadSlab::make(size_t size) {
  const bool large = size == kMost;
  const std::align_val_t alignment{large ? kHugePage : alignof(WorkerLoad)};
  const size_t bytes = large ? kHugePage : size * sizeof(WorkerLoad);
  void* const memory = ::operator new(bytes, alignment);
  if (large) (void)::madvise(memory, bytes, MADV_HUGEPAGE);  // choices go all over it
  auto* const loads = static_cast<WorkerLoad*>(memory);
  std::uninitialized_default_construct_n(loads, size);
  return {loads, [size, alignment](WorkerLoad* begin) {
            std::destroy_n(begin, size);
            ::operator delete(begin, alignment);
          }};
}

}  // namespace sluice::gateway
