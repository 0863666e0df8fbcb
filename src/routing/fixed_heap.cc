#include "routing/fixed_heap.h"

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace sluice::routing {
namespace {

// A block of n units whose bytes begin at p:
//
//   p-4     p                             p+8n-8   p+8n-4
//   header | next | previous | ......... | units | header of the next block
//            '--- only while it is free, ------'
//
// so that a block that is taken has an overhead of 4 bytes, and its free neighbours are found from it.
constexpr uint32_t kFree = 1;
constexpr uint32_t kPreviousFree = 2;
constexpr uint32_t kMinUnits = 2;
// What one header can describe; a larger heap begins as several blocks.
constexpr uint32_t kMaxUnits = (uint32_t{1} << 29) - 1;
// What begins with small pages, and what has them at the end, where marks stand that are written at once.
constexpr size_t kSmallPages = 16 << 20;
constexpr size_t kLastPages = 4 << 20;
// How many blocks of nearly the right size are looked at before a larger one is cut.
constexpr int kTries = 8;

}  // namespace

FixedHeap::FixedHeap(size_t bytes) : bytes_(std::min(bytes, kMaxBytes) / kUnit * kUnit) {
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  SLUICE_CHECK(memory != MAP_FAILED, "no {} bytes of addresses for a heap", bytes_);
  base_ = static_cast<char*>(memory);
  // What grows large is better off with large pages: look-ups go all over it. A small heap would only take more memory.
  if (bytes_ > kSmallPages + kLastPages) {
    (void)madvise(base_ + kSmallPages, bytes_ - kSmallPages - kLastPages, MADV_HUGEPAGE);
  }
  // Each piece is one free block and an end mark, which is taken and so never merged with anything.
  const auto end = static_cast<Ref>(bytes_ / kUnit);
  for (Ref at_unit = 1; end - at_unit > kMinUnits;) {
    const uint32_t units = std::min(end - at_unit - 1, kMaxUnits);
    link(at_unit, units);
    header(at_unit + units) = kPreviousFree;
    at_unit += units + 1;
  }
}

FixedHeap::~FixedHeap() {
  ASAN_UNPOISON_MEMORY_REGION(base_, end_of_use_ * kUnit);
  munmap(base_, bytes_);
}

uint32_t FixedHeap::bin_of(uint32_t units) {
  if (units < kExact) return units;
  const auto power = static_cast<uint32_t>(std::bit_width(units)) - 1;
  return kExact + (power - 6) * 8 + ((units >> (power - 3)) & 7);
}

FixedHeap::Ref FixedHeap::find(uint32_t units) const {
  const uint32_t bin = bin_of(units);
  Ref ref = bins_[bin];
  for (int i = 0; ref != 0 && i < kTries; ++i) {
    if (units_of(ref) >= units) return ref;
    ref = at<Ref>(ref)[0];
  }
  // Whatever is in a larger bin fits. A block that is one unit larger cannot be cut, and comes last.
  const bool uncut = units + 1 < kExact;
  if (const Ref larger = first_from(bin + (uncut ? 2 : 1)); larger != 0 || !uncut) return larger;
  return bins_[bin + 1];
}

FixedHeap::Ref FixedHeap::first_from(uint32_t bin) const {
  uint64_t bits = bin / 64 < filled_.size() ? filled_[bin / 64] & (~uint64_t{0} << (bin % 64)) : 0;
  for (uint32_t word = bin / 64; word < filled_.size(); bits = ++word < filled_.size() ? filled_[word] : 0) {
    if (bits != 0) return bins_[word * 64 + static_cast<uint32_t>(std::countr_zero(bits))];
  }
  return 0;
}

FixedHeap::Ref FixedHeap::allocate(size_t bytes) {
  if (bytes >= kMaxUnits * kUnit) return 0;
  const auto units = std::max(kMinUnits, static_cast<uint32_t>((bytes + sizeof(uint32_t) + kUnit - 1) / kUnit));
  const Ref ref = find(units);
  if (ref == 0) return 0;
  unlink(ref);
  uint32_t taken = units_of(ref);
  ASAN_UNPOISON_MEMORY_REGION(at<char>(ref), std::min(taken, units + kMinUnits) * kUnit);
  if (taken - units >= kMinUnits) {
    link(ref + units, taken - units);
    taken = units;
  } else {
    header(ref + taken) &= ~kPreviousFree;
  }
  header(ref) = taken << 2;
  end_of_use_ = std::max(end_of_use_, ref + taken);
  used_units_.store(used_units_.load(std::memory_order_relaxed) + taken, std::memory_order_relaxed);
  return ref;
}

void FixedHeap::free(Ref ref) {
  uint32_t units = units_of(ref);
  // But for the words that a free block needs.
  ASAN_POISON_MEMORY_REGION(at<char>(ref) + kUnit, (units - kMinUnits) * kUnit);
  used_units_.store(used_units_.load(std::memory_order_relaxed) - units, std::memory_order_relaxed);
  if (const Ref next = ref + units; (header(next) & kFree) != 0) {
    unlink(next);
    units += units_of(next);
  }
  if ((header(ref) & kPreviousFree) != 0) {
    const uint32_t before = at<uint32_t>(ref)[-2];
    ref -= before;
    unlink(ref);
    units += before;
  }
  link(ref, units);
  header(ref + units) |= kPreviousFree;
}

// Makes a free block and puts it into its bin. What precedes it is taken, or it would have been merged.
void FixedHeap::link(Ref ref, uint32_t units) {
  header(ref) = (units << 2) | kFree;
  at<uint32_t>(ref + units)[-2] = units;
  const uint32_t bin = bin_of(units);
  at<Ref>(ref)[0] = bins_[bin];
  at<Ref>(ref)[1] = 0;
  if (bins_[bin] != 0) at<Ref>(bins_[bin])[1] = ref;
  bins_[bin] = ref;
  filled_[bin / 64] |= uint64_t{1} << (bin % 64);
}

void FixedHeap::unlink(Ref ref) {
  const uint32_t bin = bin_of(units_of(ref));
  const Ref next = at<Ref>(ref)[0];
  const Ref previous = at<Ref>(ref)[1];
  if (next != 0) at<Ref>(next)[1] = previous;
  if (previous != 0) {
    at<Ref>(previous)[0] = next;
    return;
  }
  bins_[bin] = next;
  if (next == 0) filled_[bin / 64] &= ~(uint64_t{1} << (bin % 64));
}

}  // namespace sluice::routing
