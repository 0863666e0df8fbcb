// The load of every rank of this host, in shared memory: one row per rank, written by that rank alone and read by the
// front whenever it dispatches or is asked. Reading costs no message, and a rank that is stuck in a step still has its
// last word there.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "base/pulse.h"
#include "base/result.h"
#include "base/stack_dump.h"
#include "engine/messages.h"

namespace sluice::engine {

class LoadBoard {
 public:
  // A new board in a memfd (close-on-exec set).
  static Result<LoadBoard> create(int64_t ranks);
  // The board behind an inherited descriptor, which the LoadBoard then owns.
  static Result<LoadBoard> open(int fd);
  LoadBoard(LoadBoard&& other) noexcept { swap(other); }
  LoadBoard& operator=(LoadBoard&& other) noexcept {
    swap(other);
    return *this;
  }
  ~LoadBoard();

  int fd() const { return fd_; }
  int64_t size() const { return ranks_; }

  // One thread of one process per row at a time.
  void publish(int64_t rank, const LoadSnapshot& snapshot);
  // Any thread of any process. Absent when the row was never written, or when its writer died or was held up in the
  // middle of a write: keep the previous value then.
  std::optional<LoadSnapshot> read(int64_t rank) const;

  // Of the process that writes the row.
  Pulse& pulse(int64_t rank) const;
  StackBoard& stacks(int64_t rank) const;

 private:
  struct Row;
  struct Head;

  LoadBoard() = default;
  static Result<LoadBoard> map(int fd);
  void swap(LoadBoard& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(ranks_, other.ranks_);
    std::swap(base_, other.base_);
    std::swap(bytes_, other.bytes_);
  }
  Row& row(int64_t rank) const;

  int fd_ = -1;
  int64_t ranks_ = 0;
  void* base_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace sluice::engine
