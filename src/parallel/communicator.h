// Ranks that work on one model talk through a Communicator: collectives over a group of them. What carries the bytes is
// the member's business (registry.h); whoever calls sees a rank, a size and the operations. Members agree bit by bit.
//
// Every rank of a group makes the same calls in the same order. Each call carries its number, kind and shape, which are
// compared before data moves, so that a group out of step is told so, on every rank, instead of mixing up its data.
// Every wait is bounded: a rank from which nothing is heard for the silence limit - no call and no progress() - fails
// the group. A group that failed, and every group split from the same world, fails all its calls with the first reason.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "kernels/kernels.h"
#include "parallel/collective.h"
#include "parallel/progress.h"

namespace sluice::parallel {

using kernels::Context;

struct GroupOptions {
  std::string name = "world";  // in messages
  Duration silence_limit = std::chrono::seconds(5);
  // For a rank that has not joined yet: its process starts, and loads nothing before it joins.
  Duration join_limit = std::chrono::seconds(60);
  // A wait looks at the clock at least so often, if it does not end and no limit can be over: a FakeClock needs it
  // short.
  Duration longest_sleep = std::chrono::hours(1);
  const Clock* clock = &real_clock();
};

// Used by one thread at a time, but for progress() and abort(). It must not outlive a context's device that it was
// called with.
//
// Memory is that of the context's device; a context without a backend means host memory, as for control rows. `out` may
// be `in` in all_reduce and broadcast, and `in` may be this rank's place in `out` in all_gather; else they lie apart.
// Lengths may be zero, on any of the ranks. What a failed call has written to `out` means nothing.
class Communicator {
 public:
  virtual ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(world_ranks_.size()); }
  const std::string& name() const { return name_; }
  // The number by which messages call a rank: that in the group from which all others were split.
  int world_rank(int rank) const { return world_ranks_[static_cast<size_t>(rank)]; }
  std::span<const int> world_ranks() const { return world_ranks_; }

  Result<void> barrier();
  // `data` [count] of the root to everybody.
  Result<void> broadcast(const Context& context, Element element, void* data, int64_t count, int root);
  // out[i] = in_0[i] + in_1[i] + ..., or the largest of them. [count]
  Result<void> all_reduce(const Context& context, Element element, const void* in, void* out, int64_t count,
                          Reduction reduction = Reduction::kSum);
  // `in` [count] of every rank, in rank order: `out` [size, count].
  Result<void> all_gather(const Context& context, Element element, const void* in, void* out, int64_t count);
  // `in` [counts[rank()]], `out` [sum of counts]; counts [size] are known to all.
  Result<void> all_gather_v(const Context& context, Element element, const void* in, void* out,
                            std::span<const int64_t> counts);
  // `in` [size, count], `out` [count]: the reduction of the rank-th rows.
  Result<void> reduce_scatter(const Context& context, Element element, const void* in, void* out, int64_t count,
                              Reduction reduction = Reduction::kSum);
  // `in` [sum of counts], `out` [counts[rank()]]; counts [size] are known to all.
  Result<void> reduce_scatter_v(const Context& context, Element element, const void* in, void* out,
                                std::span<const int64_t> counts, Reduction reduction = Reduction::kSum);
  // `in` [sum of send_counts], in the order of the receivers; `out` [sum of recv_counts], in that of the senders.
  Result<void> all_to_all_v(const Context& context, Element element, const void* in,
                            std::span<const int64_t> send_counts, void* out, std::span<const int64_t> recv_counts);

  // Memory to fill for the next call's `in`, which spares a copy where the member can (shm). On the context's device,
  // aligned to 64 bytes. Ask anew for each call: it changes from one to the next, and what was returned before the last
  // call is gone.
  Result<void*> buffer(const Context& context, size_t bytes);

  // Memory that all ranks of this group see, zero at first, aligned to a page; null where they have none, on different
  // hosts. It stays as long as anybody holds it. A call of this group, with the same `bytes`, above 0, on all ranks.
  virtual Result<std::shared_ptr<std::byte>> common_memory(size_t bytes);

  // The ranks that give the same colour, in the order of their keys, then of their ranks, as a group called `name`.
  // Null for a colour below 0. It is a call of this group.
  Result<std::unique_ptr<Communicator>> split(int64_t color, int64_t key, std::string_view name);

  // A sign of life from a busy rank, and where it is, for messages. Calls are signs by themselves. Any thread; some 30
  // ns.
  virtual void progress(const Progress& progress) = 0;
  // Where a rank of this group was when it was last heard of. Any thread.
  virtual Progress last_progress(int rank) const = 0;
  // Fails this world at once, on all ranks, waiting ones too. The first reason stays. Any thread.
  virtual void abort(std::string_view reason) = 0;
  // Why the group failed, if it did. Any thread.
  virtual std::optional<Error> failure() const = 0;

  // Bytes that this rank has got from others in this group, as the member moved them. Any thread.
  uint64_t received_bytes() const { return received_bytes_.load(std::memory_order_relaxed); }

  // What members implement; memory is the host's. Calls have passed check_call().
  virtual Result<void> run(const Collective& call) = 0;
  // buffer() of host memory; by default some of its own.
  virtual Result<void*> host_buffer(size_t bytes);
  // `members` are ranks of this group, this rank being the index-th. Called on all ranks of this group at once, on each
  // with its own subgroup; empty for a rank in none.
  virtual Result<std::unique_ptr<Communicator>> subgroup(std::span<const int> members, int index,
                                                         std::string_view name) = 0;

 protected:
  Communicator(std::string name, int rank, std::vector<int> world_ranks);
  void count_received(size_t bytes) { received_bytes_.fetch_add(bytes, std::memory_order_relaxed); }

 private:
  struct DeviceMemory;

  Result<void> call(const Context& context, const Collective& call);
  Result<void> call_staged(const Context& context, const Collective& call);

  const std::string name_;
  const int rank_;
  const std::vector<int> world_ranks_;
  std::atomic<uint64_t> received_bytes_{0};
  std::vector<std::byte> staged_in_;
  std::vector<std::byte> staged_out_;
  std::vector<std::byte> host_buffer_;
  // Of buffer() on a device that the host does not see.
  std::unique_ptr<DeviceMemory> lent_;
};

}  // namespace sluice::parallel
