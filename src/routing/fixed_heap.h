// A heap that cannot grow: everything it will ever hand out is one range of addresses, whose pages are taken from the
// system when they are first used. So what stands in it can neither pass its budget nor fragment the heap of the
// process, however long it runs, and 32 bits name a block.
//
// Free blocks are kept by size and merged with free neighbours at once (two-level segregated fit, Masmano et al. 2004):
// both calls take constant time.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace sluice::routing {

class FixedHeap {
 public:
  // A block: its distance from the start in units of 8 bytes. 0 names nothing.
  using Ref = uint32_t;
  static constexpr size_t kUnit = 8;
  static constexpr size_t kMaxBytes = (size_t{32} << 30) - kUnit;

  // At most kMaxBytes are used of what is given.
  explicit FixedHeap(size_t bytes);
  ~FixedHeap();
  FixedHeap(const FixedHeap&) = delete;
  FixedHeap& operator=(const FixedHeap&) = delete;

  // Any thread. The memory is aligned to 8 bytes.
  template <class T>
  T* at(Ref ref) const {
    return reinterpret_cast<T*>(base_ + ref * kUnit);
  }
  size_t bytes() const { return bytes_; }
  // Of the blocks that are taken, with what each needs for its upkeep.
  size_t used_bytes() const { return used_units_.load(std::memory_order_relaxed) * kUnit; }

  // One thread only, all below. 0 if no free block is large enough.
  Ref allocate(size_t bytes);
  void free(Ref ref);
  // What the block takes, upkeep included, and what of it may be written.
  size_t footprint(Ref ref) const { return units_of(ref) * kUnit; }
  size_t usable_bytes(Ref ref) const { return footprint(ref) - sizeof(uint32_t); }
  Ref ref_of(const void* block) const {
    return static_cast<Ref>((static_cast<const char*>(block) - base_) / static_cast<ptrdiff_t>(kUnit));
  }

 private:
  // Sizes below kExact units have a list each; above, eight lists share a power of two.
  static constexpr uint32_t kExact = 64;
  static constexpr uint32_t kBins = kExact + (29 - 6) * 8;

  // The word before a block: its size in units, and two flags.
  uint32_t& header(Ref ref) const { return at<uint32_t>(ref)[-1]; }
  uint32_t units_of(Ref ref) const { return header(ref) >> 2; }
  static uint32_t bin_of(uint32_t units);
  // A free block of at least that size; the first of the first bin from `bin` on that has one.
  Ref find(uint32_t units) const;
  Ref first_from(uint32_t bin) const;
  void link(Ref ref, uint32_t units);
  void unlink(Ref ref);

  const size_t bytes_;
  char* base_ = nullptr;  // constant after construction
  std::atomic<size_t> used_units_{0};
  Ref end_of_use_ = 0;  // nothing behind it was ever handed out
  std::array<Ref, kBins> bins_{};
  std::array<uint64_t, (kBins + 63) / 64> filled_{};  // which bins have a block
};

}  // namespace sluice::routing
