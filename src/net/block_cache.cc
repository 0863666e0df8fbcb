#include "net/block_cache.h"

#include <dlfcn.h>
#include <malloc.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLUICE_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SLUICE_SANITIZED
#endif
#endif

#if !defined(SLUICE_SANITIZED)

namespace sluice::net {
namespace {

// Sizes are those of the C library's blocks, without its own 8 bytes of each: 24, 40 and so on; above 1 KiB an eighth
// of that apart.
constexpr size_t kLeast = 24, kStep = 16, kFine = 64;
constexpr size_t kFineMost = kLeast + (kFine - 1) * kStep;
constexpr size_t kCoarseStep = 128, kCoarse = 24;
constexpr size_t kMost = kFineMost + kCoarse * kCoarseStep;
constexpr size_t kClasses = kFine + kCoarse;
constexpr size_t kKeptBytes = 64 << 10;  // of each size
constexpr size_t kKeptBlocks = 512;

// The smallest that holds so many bytes, at most kMost.
constexpr size_t class_for(size_t bytes) {
  if (bytes <= kLeast) return 0;
  if (bytes <= kFineMost) return (bytes - kLeast + kStep - 1) / kStep;
  return kFine + (bytes - kFineMost + kCoarseStep - 1) / kCoarseStep - 1;
}
constexpr size_t bytes_of(size_t size_class) {
  return size_class < kFine ? kLeast + size_class * kStep : kFineMost + (size_class - kFine + 1) * kCoarseStep;
}
// The largest that a block of so many bytes, from kLeast to kMost, can be.
constexpr size_t class_of(size_t bytes) {
  if (bytes < kFineMost + kCoarseStep) return bytes >= kFineMost ? kFine - 1 : (bytes - kLeast) / kStep;
  return kFine + (bytes - kFineMost) / kCoarseStep - 1;
}
static_assert(class_for(kMost) == kClasses - 1 && bytes_of(kClasses - 1) == kMost && class_of(kMost) == kClasses - 1);
static_assert([] {
  for (size_t i = 0; i < kClasses; ++i) {
    const size_t bytes = bytes_of(i);
    const bool fits = class_for(bytes) == i && class_of(bytes) == i && (i == 0 || class_for(bytes_of(i - 1) + 1) == i);
    if (!fits || (i > 0 && class_of(bytes - 1) != i - 1)) return false;
  }
  return true;
}());

struct Block {
  Block* next;
};
struct Shelf {
  Block* first = nullptr;
  uint32_t room = 0;  // for so many more
};

// No destructor: threads delete things to their very end.
struct Cache {
  bool keeps = false;
  std::array<Shelf, kClasses> shelves{};
};
constinit thread_local Cache cache;

constexpr uint32_t room_of(size_t size_class) {
  return static_cast<uint32_t>(std::min(kKeptBlocks, kKeptBytes / bytes_of(size_class)));
}

// Made and taken back by whoever would be asked without this: the C++ library, or what is preloaded before it, which
// may hold that what it makes as one thing is not given back as another.
void* make(size_t bytes) {
  static const auto next = reinterpret_cast<void* (*)(size_t)>(::dlsym(RTLD_NEXT, "_Znwm"));
  return next(bytes);
}
void take_back(void* block) noexcept {
  static const auto next = reinterpret_cast<void (*)(void*)>(::dlsym(RTLD_NEXT, "_ZdlPv"));
  next(block);
}

struct End {
  ~End() {
    cache.keeps = false;
    for (Shelf& shelf : cache.shelves) {
      while (Block* const block = shelf.first) {
        shelf.first = block->next;
        take_back(block);
      }
    }
  }
};

// A block that holds as much as those of that class, to keep; false if there is no room.
inline bool keep(void* given, size_t size_class) {
  Shelf& shelf = cache.shelves[size_class];
  if (shelf.room == 0) return false;
  --shelf.room;
  auto* const block = static_cast<Block*>(given);
  block->next = shelf.first;
  shelf.first = block;
  return true;
}

}  // namespace

void keep_freed_blocks() {
  if (cache.keeps) return;
  thread_local End end;
  cache.keeps = true;
  for (size_t i = 0; i < kClasses; ++i) cache.shelves[i].room = room_of(i);
}

size_t kept_block_bytes() {
  size_t bytes = 0;
  for (size_t i = 0; i < kClasses && cache.keeps; ++i) bytes += (room_of(i) - cache.shelves[i].room) * bytes_of(i);
  return bytes;
}

}  // namespace sluice::net

void* operator new(size_t bytes) {
  using namespace sluice::net;
  if (bytes > kMost) return make(bytes);
  // On every thread of the size of its class: it may be deleted on one that keeps it for others of that class.
  const size_t size_class = class_for(bytes);
  Shelf& shelf = cache.shelves[size_class];
  Block* const block = shelf.first;
  if (block == nullptr) return make(bytes_of(size_class));
  shelf.first = block->next;
  ++shelf.room;
  return block;
}

void operator delete(void* given) noexcept {
  using namespace sluice::net;
  if (cache.keeps && given != nullptr) {
    const size_t bytes = ::malloc_usable_size(given);
    if (bytes >= kLeast && bytes <= kMost && keep(given, class_of(bytes))) return;
  }
  take_back(given);
}

void operator delete(void* given, size_t bytes) noexcept {
  using namespace sluice::net;
  if (bytes > kFineMost) return operator delete(given);
  if (cache.keeps && given != nullptr && keep(given, class_for(bytes))) return;
  take_back(given);
}

#else

namespace sluice::net {

void keep_freed_blocks() {}
size_t kept_block_bytes() { return 0; }

}  // namespace sluice::net

#endif
