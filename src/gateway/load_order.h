// Which of many workers have the fewest requests, and the most, without looking at all of them. The workers stand in
// one row by their live requests, those with equally many next to each other in a run. A lease that begins or ends
// moves its worker into the next run, which takes one swap:
//
//   places     7 2 | 5 0 9 | 4 1          worker 5 gets a request          7 2 | 9 0 | 5 | 4 1
//   requests    0  |   1   |  3                   --->                      0  |  1  | 2 |  3
//
// Leases tell it of themselves only once somebody has asked for it by load: a policy that never does pays nothing.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/rng.h"

namespace sluice::gateway {

class LoadOrder;
struct WorkerLoad;

// One worker that a request may go to.
struct Candidate {
  uint32_t worker = 0;               // the worker's number in the fleet; stable for the worker's life, never reused
  const WorkerLoad* load = nullptr;  // outlives the call
};

// The orders in which a load stands: a part of the load, so that a lease, which may outlive the worker's place in the
// fleet, finds them. Any thread.
class LoadSeats {
 public:
  // The number of live requests has changed.
  void moved() {
    // Sequentially consistent, as the change is: either this sees the seat, or who took it sees the new number.
    if (taken_.load(std::memory_order_seq_cst)) tell();
  }

 private:
  friend class LoadOrder;
  struct Seat {
    LoadOrder* order = nullptr;
    uint32_t place = 0;
  };
  void tell();
  void take(Seat seat);
  void leave(const LoadOrder* order);

  std::atomic<bool> taken_{false};
  Seat first_{};              // there is rarely another one
  std::mutex mutex_;          // guards the seats; an order's own lock is taken under it
  std::vector<Seat> others_;  // while first_ is taken
};

// Any thread. Readers take no lock; what they read may be a moment old where others change it.
class LoadOrder {
 public:
  static constexpr uint32_t kNobody = UINT32_MAX;

  // All of `members`, which are known by their places in it from then on. Their loads outlive this, or detach().
  explicit LoadOrder(std::span<const Candidate> members);
  ~LoadOrder() { detach(); }
  LoadOrder(const LoadOrder&) = delete;
  LoadOrder& operator=(const LoadOrder&) = delete;

  // Leases are not told of any more.
  void detach();

  // How many stand in the row.
  size_t size() const { return size_.load(std::memory_order_acquire); }
  // One of them, each equally likely; kNobody if there is none.
  uint32_t any(Rng& rng) const;
  // The first call of these two sorts the row: some milliseconds for 10,000. Different ones, those with fewest requests
  // first, and of equals each equally likely to be among them. Returns how many.
  size_t lightest(std::span<uint32_t> places, Rng& rng);
  // One with the most requests.
  uint32_t heaviest();
  // Whether leases tell it of themselves.
  bool follows() const { return follows_.load(std::memory_order_acquire); }

  // Out of the row until put_back(). Either may come twice.
  void take_out(uint32_t place);
  void put_back(uint32_t place);
  // Some of those outside, each in its turn. Returns how many.
  size_t some_outside(std::span<uint32_t> places);
  bool any_outside() const { return num_outside_.load(std::memory_order_relaxed) > 0; }

 private:
  friend class LoadSeats;
  static constexpr uint32_t kNone = UINT32_MAX;
  struct Run {
    int64_t requests;
    uint32_t begin, end;        // of the row
    uint32_t lighter, heavier;  // the neighbours
  };
  struct Member {
    const WorkerLoad* load;
    uint32_t at;          // in the row, or outside
    uint32_t run;         // kNone: outside
    int64_t counted = 0;  // its requests, as it stands in the row; 0 while nobody asked for the order
  };

  void follow();
  void moved(uint32_t place);
  // All under the lock.
  void arrange();
  void settle(uint32_t place, int64_t requests);
  void step_up(uint32_t place, int64_t requests);
  void step_down(uint32_t place, int64_t requests);
  void append(uint32_t place);
  uint32_t add_run(Run run);
  void drop_run(uint32_t run);
  void swap_to(uint32_t place, uint32_t at);
  void publish();

  const size_t num_members_;
  const std::unique_ptr<std::atomic<uint32_t>[]> row_;  // places
  std::atomic<size_t> size_{0};                         // of the row
  std::atomic<uint32_t> lightest_end_{0};               // of the first run
  std::atomic<size_t> num_outside_{0};

  std::mutex attaching_;  // held while seats are taken or left, outside of all other locks; guards detached_
  std::atomic<bool> follows_{false};
  bool detached_ = false;

  std::mutex mutex_;             // guards what follows, and changes of what stands above
  std::vector<Member> members_;  // by place
  std::vector<uint32_t> outside_;
  size_t next_outside_ = 0;
  std::vector<Run> runs_;
  std::vector<uint32_t> free_runs_;
  uint32_t first_ = kNone, last_ = kNone;  // runs
};

}  // namespace sluice::gateway
