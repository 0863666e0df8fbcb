#include "net/next_allocator/next_allocator.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<int64_t> made{0}, taken_back{0};

}  // namespace

namespace sluice::net {

int64_t blocks_made_by_next() { return made; }
int64_t blocks_taken_back_by_next() { return taken_back; }

}  // namespace sluice::net

void* operator new(std::size_t bytes) {
  void* const block = std::malloc(bytes);
  if (block == nullptr) throw std::bad_alloc();
  ++made;
  return block;
}
void operator delete(void* block) noexcept {
  if (block == nullptr) return;
  ++taken_back;
  std::free(block);
}
void operator delete(void* block, std::size_t) noexcept { operator delete(block); }
