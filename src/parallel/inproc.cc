#include "parallel/inproc.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>

#include "base/check.h"
#include "parallel/reduce.h"

namespace sluice::parallel {
namespace {

// What all groups of one world share.
struct World {
  explicit World(int size, GroupOptions o) : options(std::move(o)), signs(static_cast<size_t>(size)) {}

  const GroupOptions options;
  std::vector<SignOfLife> signs;  // by rank of the world

  std::mutex mu;
  std::condition_variable changed;
  std::optional<Error> failure;  // guarded by mu

  // With mu held.
  void fail(const Error& error) {
    if (!failure) failure = error;
    changed.notify_all();
  }
};

// A meeting of all ranks of a group: nobody leaves before the last has come. Guarded by World::mu.
struct Group {
  explicit Group(int size) : calls(static_cast<size_t>(size)), headers(calls.size()), came(calls.size()) {}

  std::vector<const Collective*> calls;
  std::vector<CallHeader> headers;
  std::vector<uint64_t> came;                   // meetings of each rank
  std::map<int, std::shared_ptr<Group>> split;  // of the split under way, by their first member
  std::shared_ptr<std::byte> common;            // of the last common_memory()
};

class Inproc final : public Communicator {
 public:
  Inproc(std::shared_ptr<World> world, std::shared_ptr<Group> group, std::string name, int rank,
         std::vector<int> world_ranks)
      : Communicator(std::move(name), rank, std::move(world_ranks)),
        world_(std::move(world)),
        group_(std::move(group)),
        sign_(world_->signs[static_cast<size_t>(world_rank(rank))]) {}

  void progress(const Progress& progress) override { sign_.seen(world_->options.clock->now(), progress); }

  Progress last_progress(int rank) const override {
    return world_->signs[static_cast<size_t>(world_rank(rank))].where();
  }

  void abort(std::string_view reason) override {
    const std::lock_guard lock(world_->mu);
    world_->fail({ErrorCode::kUnavailable, std::string(reason)});
  }

  std::optional<Error> failure() const override {
    const std::lock_guard lock(world_->mu);
    return world_->failure;
  }

  Result<void> run(const Collective& call) override {
    const CallHeader header = header_of(call, ++sequence_, size());
    SLUICE_TRY_VOID(meet(header, [&] {
      group_->calls[static_cast<size_t>(rank())] = &call;
      group_->headers[static_cast<size_t>(rank())] = header;
    }));
    // Between two meetings nobody touches what all have stated.
    const auto agreed = agree(call);
    // Whoever reads what its neighbour is about to overwrite in place must have finished first.
    const bool in_place = call.kind == Kind::kAllReduce && call.out == call.in;
    std::vector<std::byte> result(in_place ? bytes_out(call, rank(), size()) : 0);
    if (agreed.ok()) carry_out(call, in_place ? result.data() : call.out);
    leave();
    if (agreed.ok() && !result.empty()) std::memcpy(call.out, result.data(), result.size());
    return agreed;
  }

  Result<std::shared_ptr<std::byte>> common_memory(size_t bytes) override {
    if (rank() == 0) {
      void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      const std::lock_guard lock(world_->mu);
      group_->common.reset();
      if (at != MAP_FAILED) {
        group_->common.reset(static_cast<std::byte*>(at), [bytes](std::byte* memory) { ::munmap(memory, bytes); });
      }
    }
    SLUICE_TRY_VOID(barrier());
    std::shared_ptr<std::byte> common;
    {
      const std::lock_guard lock(world_->mu);
      common = group_->common;
    }
    SLUICE_TRY_VOID(barrier());  // before another takes its place
    if (!common) return Error{ErrorCode::kExhausted, fmt::format("no {} bytes that ranks share are left", bytes)};
    return common;
  }

  Result<std::unique_ptr<Communicator>> subgroup(std::span<const int> members, int index,
                                                 std::string_view name) override {
    std::shared_ptr<Group> group;
    if (!members.empty()) {
      const std::lock_guard lock(world_->mu);
      auto& slot = group_->split[members[0]];
      if (!slot) slot = std::make_shared<Group>(static_cast<int>(members.size()));
      group = slot;
    }
    SLUICE_TRY_VOID(barrier());
    if (rank() == 0) {
      const std::lock_guard lock(world_->mu);
      group_->split.clear();
    }
    SLUICE_TRY_VOID(barrier());
    if (members.empty()) return std::unique_ptr<Communicator>();
    std::vector<int> ranks;
    for (const int member : members) ranks.push_back(world_rank(member));
    return std::unique_ptr<Communicator>(
        std::make_unique<Inproc>(world_, std::move(group), std::string(name), index, std::move(ranks)));
  }

 private:
  // `state` says what others are to find, with the lock held.
  template <class State>
  Result<void> meet(const CallHeader& header, State state) {
    const GroupOptions& options = world_->options;
    const TimePoint since = options.clock->now();
    sign_.seen(since);
    SignOfLife::Waiting waiting(sign_);
    std::unique_lock lock(world_->mu);
    if (world_->failure) return *world_->failure;
    state();
    const uint64_t mine = arrive();
    while (true) {
      std::vector<int> missing;
      for (int i = 0; i < size(); ++i) {
        if (group_->came[static_cast<size_t>(i)] < mine) missing.push_back(world_rank(i));
      }
      // Even if the world has failed since: all go on from here, and read what the others have stated.
      if (missing.empty()) return {};
      if (world_->failure) return *world_->failure;
      waiting.is_for(missing[0]);
      const auto left = time_left({.group = name(),
                                   .call = to_string(header),
                                   .waiting = world_rank(rank()),
                                   .missing = missing,
                                   .since = since},
                                  world_->signs, options.clock->now(), options.silence_limit, options.join_limit);
      if (!left.ok()) {
        world_->fail(left.error());
        return left.error();
      }
      world_->changed.wait_for(lock, std::min(*left, options.longest_sleep));
    }
  }

  // Until all have read, also where they do not agree. They are comparing and copying and nothing else, so that no
  // failure can keep them, and while they do our caller's memory must stay.
  void leave() {
    std::unique_lock lock(world_->mu);
    const uint64_t mine = arrive();
    world_->changed.wait(lock, [&] { return std::ranges::min(group_->came) >= mine; });
  }

  uint64_t arrive() {
    const uint64_t mine = ++group_->came[static_cast<size_t>(rank())];
    if (std::ranges::min(group_->came) == mine) world_->changed.notify_all();
    return mine;
  }

  Result<void> agree(const Collective& call) {
    auto agreed = check_agreement(name(), group_->headers, world_ranks());
    if (agreed.ok() && call.kind == Kind::kAllToAll) {
      std::vector<std::vector<int64_t>> counts;
      for (const Collective* other : group_->calls) {
        counts.emplace_back(other->counts.begin(), other->counts.end());
        counts.back().insert(counts.back().end(), other->recv_counts.begin(), other->recv_counts.end());
      }
      agreed = check_all_to_all(name(), sequence_, std::vector<std::span<const int64_t>>(counts.begin(), counts.end()),
                                world_ranks());
    }
    if (!agreed.ok()) {
      const std::lock_guard lock(world_->mu);
      world_->fail(agreed.error());
    }
    return agreed;
  }

  void carry_out(const Collective& call, void* out) {
    const int n = size();
    if (call.kind == Kind::kAllReduce || call.kind == Kind::kReduceScatter) {
      std::vector<const void*> inputs;
      for (int from = 0; from < n; ++from) inputs.push_back(input(from) + range_to(call, from, rank(), n).begin);
      const size_t bytes = bytes_out(call, rank(), n);
      reduce(call.element, call.reduction, inputs, out, bytes);
      count_received(bytes * (inputs.size() - 1));
      return;
    }
    for (int from = 0; from < n; ++from) {
      const Range there = range_to(*group_->calls[static_cast<size_t>(from)], from, rank(), n);
      const Range here = range_from(call, rank(), from, n);
      if (here.bytes == 0) continue;
      std::byte* const to = static_cast<std::byte*>(out) + here.begin;
      // What is in its place already is read by others meanwhile.
      if (const std::byte* const source = input(from) + there.begin; source != to) {
        std::memmove(to, source, here.bytes);
      }
      if (from != rank()) count_received(here.bytes);
    }
  }

  const std::byte* input(int rank) const {
    return static_cast<const std::byte*>(group_->calls[static_cast<size_t>(rank)]->in);
  }

  const std::shared_ptr<World> world_;
  const std::shared_ptr<Group> group_;
  SignOfLife& sign_;
  uint64_t sequence_ = 0;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_inproc_group(int size, const GroupOptions& options) {
  SLUICE_CHECK(size > 0, "a group of {}", size);
  const auto world = std::make_shared<World>(size, options);
  const auto group = std::make_shared<Group>(size);
  std::vector<int> ranks(static_cast<size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  std::vector<std::unique_ptr<Communicator>> made;
  for (int rank = 0; rank < size; ++rank) {
    world->signs[static_cast<size_t>(rank)].seen(options.clock->now());
    made.push_back(std::make_unique<Inproc>(world, group, options.name, rank, ranks));
  }
  return made;
}

}  // namespace sluice::parallel
