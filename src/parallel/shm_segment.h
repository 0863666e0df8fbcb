// The memory that the ranks of one host share: a memfd that the front process makes and each rank inherits. It holds
// the words by which ranks wait for each other, their signs of life, the reason of a failure, and whatever memory
// groups ask for. Its size is nominal: only pages that were touched exist.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "base/pulse.h"
#include "base/result.h"
#include "parallel/progress.h"

namespace sluice::parallel {

// A piece of the segment, mapped. Used by one thread.
class ShmRegion {
 public:
  ShmRegion() = default;
  ShmRegion(void* at, uint64_t offset, size_t bytes) : at_(at), offset_(offset), bytes_(bytes) {}
  ShmRegion(ShmRegion&& other) noexcept { *this = std::move(other); }
  ShmRegion& operator=(ShmRegion&& other) noexcept {
    std::swap(at_, other.at_);
    std::swap(offset_, other.offset_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~ShmRegion();

  std::byte* at() const { return static_cast<std::byte*>(at_); }
  uint64_t offset() const { return offset_; }  // in the segment
  size_t bytes() const { return bytes_; }
  bool holds(const void* memory) const {
    const auto* const byte = static_cast<const std::byte*>(memory);
    return byte >= at() && byte < at() + bytes_;
  }

 private:
  void* at_ = nullptr;
  uint64_t offset_ = 0;
  size_t bytes_ = 0;
};

// Any thread, any process that has it.
class ShmSegment {
 public:
  struct Head;  // of the file, shm_head.h

  // For the front: a new world of `ranks` ranks, close-on-exec set. A world that failed stays failed: make a new one
  // for the next start.
  static Result<std::shared_ptr<ShmSegment>> create(int ranks);
  // The segment behind an inherited descriptor, which it then owns.
  static Result<std::shared_ptr<ShmSegment>> open(int fd);
  ~ShmSegment();
  ShmSegment(const ShmSegment&) = delete;
  ShmSegment& operator=(const ShmSegment&) = delete;

  int fd() const { return fd_; }
  int ranks() const;

  // Fails the world and wakes whoever waits in it; the first reason stays. Takes no lock and allocates nothing.
  void fail(ErrorCode code, std::string_view reason);
  // fail() as the front does it when a rank has died or must be stopped.
  void abort(std::string_view reason) { fail(ErrorCode::kUnavailable, reason); }
  std::optional<Error> failure() const;

  std::span<const SignOfLife> signs() const;  // by rank
  // Where that rank's process counts what it does (Pulse::publish_at): what it computes without saying a word counts as
  // a sign of life.
  Pulse& pulse(int rank) const;

  // For members of the family.
  Head& head() const { return *head_; }
  SignOfLife& sign(int rank) const;
  // False if this rank has joined already.
  bool join(int rank, TimePoint now) const;
  // Offset of a place that is kept for the group of all ranks.
  uint64_t first_group() const { return bytes_; }
  // Memory of the segment that nobody has yet, zero, aligned to a page; kExhausted.
  Result<ShmRegion> allocate(size_t bytes) const;
  Result<ShmRegion> map(uint64_t offset, size_t bytes) const;
  // Gives a region's pages back to the system, for all processes.
  void discard(const ShmRegion& region) const;

 private:
  ShmSegment(int fd, Head* head, size_t bytes) : fd_(fd), head_(head), bytes_(bytes) {}
  static Result<std::shared_ptr<ShmSegment>> map_head(int fd);

  const int fd_;
  Head* const head_;
  const size_t bytes_;  // of the head's mapping
};

}  // namespace sluice::parallel
