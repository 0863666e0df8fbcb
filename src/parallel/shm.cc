#include "parallel/shm.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <optional>
#include <utility>

#include "parallel/phase_clock.h"
#include "parallel/reduce.h"
#include "parallel/shm_head.h"

namespace sluice::parallel {
namespace {

// What a rank publishes at once. Two slots of all ranks should stay in the last cache.
constexpr size_t kSlotBytes = 256 << 10;
// all_reduce up to here: everybody adds everything. Beyond, each its share, which takes another meeting.
constexpr size_t kAddAllBytes = 32 << 10;
constexpr Duration kSpin = std::chrono::microseconds(50);
// Looks in the silence limit at what those whom we miss have computed.
constexpr int kLooks = 8;
constexpr uint64_t kNotLooked = UINT64_MAX;
constexpr size_t kAlignment = 64;

constexpr size_t round_up(size_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

int cores() {
  cpu_set_t usable;
  return ::sched_getaffinity(0, sizeof(usable), &usable) == 0 ? CPU_COUNT(&usable) : 1;
}

// A group's own part of the segment: for each rank a word and two slots.
struct SlotHead {
  CallHeader header;
  // What is sent lies here in the segment, not in the slot.
  uint64_t region_offset;
  uint64_t region_bytes;  // 0 = in the slot
  uint64_t in_offset;     // in the region
  // Followed by 2 * size counts, for all_to_all: to each rank, from each rank.
};
struct alignas(64) RankWord {
  std::atomic<uint32_t> rounds;  // that this rank has arrived at
};

struct Layout {
  explicit Layout(int n)
      : size(static_cast<size_t>(n)),
        slot_head(round_up(sizeof(SlotHead) + 2 * size * sizeof(int64_t))),
        // What is sent, and the share that this rank has reduced.
        slot(round_up(slot_head + kSlotBytes + round_up((kSlotBytes + size - 1) / size))),
        rank(sizeof(RankWord) + 2 * slot) {}

  const size_t size;
  const size_t slot_head;
  const size_t slot;
  const size_t rank;
  size_t bytes() const { return size * rank; }
};

class Shm final : public Communicator {
 public:
  Shm(std::shared_ptr<ShmSegment> segment, GroupOptions options, uint32_t group, ShmRegion area, std::string name,
      int rank, std::vector<int> world_ranks)
      : Communicator(std::move(name), rank, std::move(world_ranks)),
        segment_(std::move(segment)),
        options_(std::move(options)),
        meeting_(segment_->head().meetings[group]),
        sign_(segment_->sign(world_rank(rank))),
        layout_(size()),
        area_(std::move(area)),
        crowded_(segment_->ranks() > cores()),
        longest_sleep_(std::min(options_.silence_limit / kLooks, options_.longest_sleep)),
        sources_(layout_.size),
        beats_(static_cast<size_t>(segment_->ranks())),
        peer_regions_(layout_.size) {}

  void progress(const Progress& progress) override { sign_.seen(options_.clock->now(), progress); }
  Progress last_progress(int rank) const override { return segment_->sign(world_rank(rank)).where(); }
  void abort(std::string_view reason) override { segment_->abort(reason); }
  std::optional<Error> failure() const override { return segment_->failure(); }

  Result<void> run(const Collective& call) override {
    header_ = header_of(call, ++sequence_, size());
    const size_t bytes = bytes_in(call, rank(), size());
    const bool in_shares = call.kind == Kind::kAllReduce && bytes > kAddAllBytes;
    // Others would read what reducing in place overwrites.
    const bool overwritten = call.kind == Kind::kAllReduce && !in_shares && call.in == call.out;
    const ShmRegion* const region = bytes > 0 && !overwritten ? lent(call.in) : nullptr;
    if (region) last_sent_ = region == &lent_[0] ? 0 : 1;
    state_call(call, region);
    return in_shares ? all_reduce_in_shares(call, region != nullptr) : exchange(call, region != nullptr);
  }

  Result<void*> host_buffer(size_t bytes) override {
    // Not that of the last call, which others may still be reading. By the time it is lent again, a later call has
    // ended, and so they have read.
    ShmRegion& region = lent_[last_sent_ == 0 ? 1 : 0];
    if (region.bytes() < std::max<size_t>(bytes, 1)) {
      if (region.at()) segment_->discard(region);
      region = {};
      SLUICE_TRY(region, segment_->allocate(bytes));
    }
    return static_cast<void*>(region.at());
  }

  Result<std::shared_ptr<std::byte>> common_memory(size_t bytes) override {
    ShmRegion region;
    int64_t offset = 0;
    std::optional<Error> refused;  // of rank 0, which tells it when the others know that there is none
    if (rank() == 0) {
      auto allocated = segment_->allocate(bytes);
      if (allocated.ok()) {
        region = std::move(allocated).value();
        offset = static_cast<int64_t>(region.offset());
      } else {
        refused = std::move(allocated).error();
      }
    }
    SLUICE_TRY_VOID(broadcast({}, Element::kI64, &offset, 1, 0));
    if (refused) return *std::move(refused);
    if (offset == 0) {
      return Error{ErrorCode::kExhausted, fmt::format("group {}: rank {} could not get {} bytes that ranks share",
                                                      name(), world_rank(0), bytes)};
    }
    if (!region.at()) {
      SLUICE_TRY(region, segment_->map(static_cast<uint64_t>(offset), bytes));
    }
    auto held = std::make_shared<ShmRegion>(std::move(region));
    return std::shared_ptr<std::byte>(held, held->at());
  }

  Result<std::unique_ptr<Communicator>> subgroup(std::span<const int> members, int index,
                                                 std::string_view name) override {
    struct Place {
      int64_t group;
      int64_t offset;
    } mine{};
    ShmRegion area;
    const Layout layout(std::max(1, static_cast<int>(members.size())));
    if (!members.empty() && index == 0) {
      mine.group = segment_->head().next_group.fetch_add(1) + 1;
      auto allocated = segment_->allocate(layout.bytes());
      if (allocated.ok() && mine.group < static_cast<int64_t>(ShmSegment::Head::kGroups)) {
        area = std::move(allocated).value();
        mine.offset = static_cast<int64_t>(area.offset());
      }
    }
    std::vector<Place> places(layout_.size);
    SLUICE_TRY_VOID(all_gather({}, Element::kI64, &mine, places.data(), 2));
    if (members.empty()) return std::unique_ptr<Communicator>();
    const Place& place = places[static_cast<size_t>(members[0])];
    if (place.offset == 0) {
      return Error{ErrorCode::kExhausted, fmt::format("group {}: no room for another group of ranks", name)};
    }
    if (!area.at()) {
      SLUICE_TRY(area, segment_->map(static_cast<uint64_t>(place.offset), layout.bytes()));
    }
    std::vector<int> ranks;
    for (const int member : members) ranks.push_back(world_rank(member));
    return std::unique_ptr<Communicator>(std::make_unique<Shm>(segment_, options_, static_cast<uint32_t>(place.group),
                                                               std::move(area), std::string(name), index,
                                                               std::move(ranks)));
  }

 private:
  // What a rank sends with the call under way, as this rank sees it.
  struct Source {
    const std::byte* in_place = nullptr;  // null = in its slots
    std::span<const int64_t> counts;      // of all_to_all, in counts_
  };

  std::byte* rank_area(int rank) const { return area_.at() + static_cast<size_t>(rank) * layout_.rank; }
  RankWord& word(int rank) const { return *reinterpret_cast<RankWord*>(rank_area(rank)); }
  // Slots take turns. Before a meeting a rank writes that of round_, after it all read that of round_ - 1.
  std::byte* slot(int rank, uint32_t round) const {
    return rank_area(rank) + sizeof(RankWord) + round % 2 * layout_.slot;
  }
  SlotHead& slot_head(int rank, uint32_t round) const { return *reinterpret_cast<SlotHead*>(slot(rank, round)); }
  int64_t* slot_counts(int rank, uint32_t round) const {
    return reinterpret_cast<int64_t*>(slot(rank, round) + sizeof(SlotHead));
  }
  std::byte* payload(int rank, uint32_t round) const { return slot(rank, round) + layout_.slot_head; }

  const ShmRegion* lent(const void* memory) const {
    for (const ShmRegion& region : lent_) {
      if (region.holds(memory)) return &region;
    }
    return nullptr;
  }

  void state_call(const Collective& call, const ShmRegion* region) {
    SlotHead& head = slot_head(rank(), round_);
    head.header = header_;
    head.region_bytes = region ? region->bytes() : 0;
    head.region_offset = region ? region->offset() : 0;
    head.in_offset = region ? static_cast<uint64_t>(static_cast<const std::byte*>(call.in) - region->at()) : 0;
    if (call.kind == Kind::kAllToAll) {
      int64_t* const counts = slot_counts(rank(), round_);
      std::ranges::copy(call.counts, counts);
      std::ranges::copy(call.recv_counts, counts + size());
    }
  }

  // After the first round of a call: do all agree, and where is what they send?
  Result<void> read_calls(const Collective& call) {
    const int n = size();
    headers_.clear();
    for (int from = 0; from < n; ++from) headers_.push_back(slot_head(from, round_ - 1).header);
    SLUICE_TRY_VOID(agreed(check_agreement(name(), headers_, world_ranks())));
    if (call.kind == Kind::kAllToAll) {
      const size_t row = 2 * layout_.size;
      counts_.resize(layout_.size * row);
      std::vector<std::span<const int64_t>> rows;
      for (int from = 0; from < n; ++from) {
        const auto to = std::span(counts_).subspan(static_cast<size_t>(from) * row, row);
        std::copy_n(slot_counts(from, round_ - 1), row, to.begin());
        rows.push_back(to);
      }
      SLUICE_TRY_VOID(agreed(check_all_to_all(name(), sequence_, rows, world_ranks())));
      for (size_t from = 0; from < layout_.size; ++from) sources_[from].counts = rows[from].first(layout_.size);
    }
    for (int from = 0; from < n; ++from) {
      const SlotHead& head = slot_head(from, round_ - 1);
      Source& source = sources_[static_cast<size_t>(from)];
      source.in_place = nullptr;
      if (from == rank() || head.region_bytes == 0) continue;
      SLUICE_TRY(const std::byte* const region, peer_region(from, head.region_offset, head.region_bytes));
      source.in_place = region + head.in_offset;
    }
    return {};
  }

  Result<void> agreed(Result<void> result) {
    if (result.ok()) return result;
    segment_->fail(result.error().code, result.error().message);
    return *segment_->failure();
  }

  Result<const std::byte*> peer_region(int rank, uint64_t offset, uint64_t bytes) {
    auto& regions = peer_regions_[static_cast<size_t>(rank)];
    for (const ShmRegion& region : regions) {
      if (region.at() && region.offset() == offset) return static_cast<const std::byte*>(region.at());
    }
    // It has two; the older of those that we know is outgrown.
    std::swap(regions[0], regions[1]);
    SLUICE_TRY(regions[1], segment_->map(offset, bytes));
    return static_cast<const std::byte*>(regions[1].at());
  }

  bool all_in_place(const Collective& call, bool mine) const {
    for (int from = 0; from < size(); ++from) {
      const bool in_place = from == rank() ? mine : sources_[static_cast<size_t>(from)].in_place != nullptr;
      if (!in_place && bytes_sent(call, from) > 0) return false;
    }
    return true;
  }

  Collective call_of(const Collective& call, int from) const {
    Collective other = call;
    if (call.kind == Kind::kAllToAll) other.counts = sources_[static_cast<size_t>(from)].counts;
    return other;
  }
  size_t bytes_sent(const Collective& call, int from) const { return bytes_in(call_of(call, from), from, size()); }

  static bool by_receiver(const Collective& call) {
    return call.kind == Kind::kReduceScatter || call.kind == Kind::kAllToAll;
  }

  // Everything but large reductions to all: what is sent goes straight to where it is wanted.
  Result<void> exchange(const Collective& call, bool mine_in_place) {
    const size_t parts = by_receiver(call) ? layout_.size : 1;
    size_t piece = kSlotBytes / parts / kAlignment * kAlignment;
    if (!mine_in_place) publish(call, piece, 0);
    SLUICE_TRY_VOID(meet());
    SLUICE_TRY_VOID(read_calls(call));
    if (all_in_place(call, mine_in_place)) piece = SIZE_MAX / 2;

    const size_t longest = longest_part(call);
    for (size_t at = 0;; at += piece) {
      receive(call, piece, at);
      if (longest <= piece || at >= longest - piece) break;
      if (!mine_in_place) publish(call, piece, at + piece);
      SLUICE_TRY_VOID(meet());
    }
    return {};
  }

  // The most that any rank has for another.
  size_t longest_part(const Collective& call) const {
    int64_t longest = call.count;
    for (const Source& source : sources_) {
      const auto counts = call.kind == Kind::kAllToAll ? source.counts : call.counts;
      if (!counts.empty()) longest = std::max(longest, std::ranges::max(counts));
    }
    return static_cast<size_t>(longest) * bytes_of(call.element);
  }

  // Bytes [at, at + piece) of each part of what this rank sends, into its slot.
  void publish(const Collective& call, size_t piece, size_t at) {
    std::byte* const to = payload(rank(), round_);
    const int parts = by_receiver(call) ? size() : 1;
    for (int part = 0; part < parts; ++part) {
      const Range range = range_to(call, rank(), part, size());
      if (at >= range.bytes) continue;
      std::memcpy(to + static_cast<size_t>(part) * piece, static_cast<const std::byte*>(call.in) + range.begin + at,
                  std::min(piece, range.bytes - at));
    }
  }

  // The same bytes of what this rank gets from each.
  void receive(const Collective& call, size_t piece, size_t at) {
    const int n = size();
    const bool reduces = call.kind == Kind::kAllReduce || call.kind == Kind::kReduceScatter;
    auto* const out = static_cast<std::byte*>(call.out);
    inputs_.clear();
    for (int i = 0; i < n; ++i) {
      // Not all from the same rank at once.
      const int from = reduces ? i : (rank() + i) % n;
      const Collective theirs = call_of(call, from);
      const Range there = range_to(theirs, from, rank(), n);
      const std::byte* source = nullptr;
      if (from == rank()) {
        source = static_cast<const std::byte*>(call.in) + there.begin + at;
      } else if (const std::byte* in_place = sources_[static_cast<size_t>(from)].in_place) {
        source = in_place + there.begin + at;
      } else {
        source = payload(from, round_ - 1) + (by_receiver(call) ? static_cast<size_t>(rank()) * piece : 0);
      }
      if (reduces) {
        inputs_.push_back(source);
        continue;
      }
      const Range here = range_from(call, rank(), from, n);
      if (at >= here.bytes || source == out + here.begin + at) continue;
      std::memcpy(out + here.begin + at, source, std::min(piece, here.bytes - at));
      if (from != rank()) count_received(std::min(piece, here.bytes - at));
    }
    const size_t bytes = reduces ? bytes_out(call, rank(), n) : 0;
    if (at >= bytes) return;
    reduce(call.element, call.reduction, inputs_, out + at, std::min(piece, bytes - at));
    count_received(std::min(piece, bytes - at) * (layout_.size - 1));
  }

  // all_reduce of much: each rank reduces its share of a chunk, and everybody takes all shares. In one round a chunk is
  // published and the shares of the one before it.
  Result<void> all_reduce_in_shares(const Collective& call, bool mine_in_place) {
    const size_t bytes = bytes_in(call, rank(), size());
    size_t chunk = kSlotBytes;
    const auto* const in = static_cast<const std::byte*>(call.in);
    const auto publish_chunk = [&](size_t at) {
      if (!mine_in_place && at < bytes) std::memcpy(payload(rank(), round_), in + at, std::min(chunk, bytes - at));
    };
    publish_chunk(0);
    SLUICE_TRY_VOID(meet());
    SLUICE_TRY_VOID(read_calls(call));
    share_offset_ = kSlotBytes;
    if (all_in_place(call, mine_in_place)) {  // slots have nothing but shares then
      share_offset_ = 0;
      chunk = layout_.size * kSlotBytes;
    }
    for (size_t at = 0; at < bytes; at += chunk) {
      const size_t length = std::min(chunk, bytes - at);
      reduce_share(call, at, length);
      publish_chunk(at + chunk);
      SLUICE_TRY_VOID(meet());
      take_shares(call, at, length);
    }
    return {};
  }

  // The rank-th share of a chunk, as bytes of the chunk.
  Range share(int rank, size_t length) const {
    const size_t whole = round_up((length + layout_.size - 1) / layout_.size);
    const size_t begin = std::min(length, static_cast<size_t>(rank) * whole);
    return {begin, std::min(whole, length - begin)};
  }

  std::byte* share_place(int rank, uint32_t round) const { return payload(rank, round) + share_offset_; }

  void reduce_share(const Collective& call, size_t at, size_t length) {
    const Range mine = share(rank(), length);
    inputs_.clear();
    for (int from = 0; from < size(); ++from) {
      const std::byte* in_place = sources_[static_cast<size_t>(from)].in_place;
      if (from == rank()) in_place = static_cast<const std::byte*>(call.in);
      inputs_.push_back((in_place ? in_place + at : payload(from, round_ - 1)) + mine.begin);
    }
    reduce(call.element, call.reduction, inputs_, share_place(rank(), round_), mine.bytes);
    count_received(mine.bytes * (layout_.size - 1));
  }

  void take_shares(const Collective& call, size_t at, size_t length) {
    for (int i = 0; i < size(); ++i) {
      const int from = (rank() + i) % size();
      const Range theirs = share(from, length);
      std::memcpy(static_cast<std::byte*>(call.out) + at + theirs.begin, share_place(from, round_ - 1), theirs.bytes);
      if (from != rank()) count_received(theirs.bytes);
    }
  }

  // Ends when all ranks have come; what they wrote before can be read then.
  Result<void> meet() {
    const TimePoint since = options_.clock->now();
    sign_.seen(since);
    const uint32_t before = round_ << 1;
    if (meeting_.round.load(std::memory_order_relaxed) & 1) return failed();
    ++round_;
    word(rank()).rounds.store(round_, std::memory_order_release);
    if (meeting_.arrived.fetch_add(1) + 1 == layout_.size) {
      meeting_.arrived.store(0);
      meeting_.round.fetch_add(2);
      if (meeting_.sleepers.load() > 0) futex_wake(meeting_.round);
      return {};
    }
    LostTime clock;
    if (spin(before)) return {};
    std::ranges::fill(beats_, kNotLooked);
    SignOfLife::Waiting waiting(sign_);
    Duration lost{}, sleep{};
    while (true) {
      const uint32_t now = meeting_.round.load();
      // Even if the world has failed since: all have come, and what they wrote is whole.
      if ((now & ~1u) != before) return {};
      if (now & 1) return failed();
      lost += clock.look(sleep);
      SLUICE_TRY(const Duration left, patience(since, lost, waiting));
      sleep = std::min(left, longest_sleep_);
      PhaseClock::fall_asleep();
      meeting_.sleepers.fetch_add(1);
      futex_wait(meeting_.round, before, sleep);
      meeting_.sleepers.fetch_sub(1);
    }
  }

  // True if the round was over soon. Where ranks outnumber cores, whom we wait for may want this one: sleeping at once
  // is faster then, and yielding hands the core to any other program for milliseconds.
  bool spin(uint32_t before) const {
    if (crowded_) return false;
    const auto until = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 32; ++i) __builtin_ia32_pause();
      if ((meeting_.round.load(std::memory_order_acquire) & ~1u) != before) return true;
    } while (std::chrono::steady_clock::now() < until);
    return false;
  }

  Error failed() const { return segment_->failure().value_or(Error{ErrorCode::kInternal, "the ranks' world failed"}); }

  Result<Duration> patience(TimePoint since, Duration lost, SignOfLife::Waiting& waiting) {
    missing_.clear();
    for (int i = 0; i < size(); ++i) {
      if (word(i).rounds.load(std::memory_order_acquire) != round_) missing_.push_back(world_rank(i));
    }
    if (missing_.empty()) missing_.assign(world_ranks().begin(), world_ranks().end());  // the last died before it told
    waiting.is_for(missing_[0]);
    const TimePoint now = options_.clock->now();
    for (const int rank : missing_) {
      const uint64_t count = segment_->pulse(rank).count();
      const uint64_t before = std::exchange(beats_[static_cast<size_t>(rank)], count);
      // The first look of a wait cannot tell when the rank did what it has done.
      if (before != kNotLooked && before != count) segment_->sign(rank).noticed(now);
    }
    const auto left = time_left({.group = name(),
                                 .call = to_string(header_),
                                 .waiting = world_rank(rank()),
                                 .missing = missing_,
                                 .since = since,
                                 .lost = lost},
                                segment_->signs(), now, options_.silence_limit, options_.join_limit);
    if (left.ok()) {
      // Whoever waits for this rank waits for these: while they get on, so does it. What hangs makes no news, and
      // neither do ranks that wait for each other.
      TimePoint news = TimePoint::max();
      for (const int rank : missing_) news = std::min(news, std::max(segment_->sign(rank).when(), since));
      sign_.noticed(news);
      return left;
    }
    segment_->fail(left.error().code, left.error().message);
    return failed();
  }

  const std::shared_ptr<ShmSegment> segment_;
  const GroupOptions options_;
  ShmMeeting& meeting_;
  SignOfLife& sign_;
  const Layout layout_;
  const ShmRegion area_;
  const bool crowded_;  // more ranks than cores
  const Duration longest_sleep_;

  uint32_t round_ = 0;  // rounds that this rank has arrived at; it writes slot round_ % 2
  uint64_t sequence_ = 0;
  std::array<ShmRegion, 2> lent_;
  int last_sent_ = 1;

  // Of the call under way; members, so that calls do not allocate.
  size_t share_offset_ = 0;
  CallHeader header_;
  std::vector<CallHeader> headers_;
  std::vector<int64_t> counts_;  // [size, 2 * size]
  std::vector<Source> sources_;
  std::vector<const void*> inputs_;
  std::vector<int> missing_;
  std::vector<uint64_t> beats_;  // of each rank of the world, when this wait last looked; or kNotLooked
  // The regions of each rank that were read lately.
  std::vector<std::array<ShmRegion, 2>> peer_regions_;
};

}  // namespace

Result<std::unique_ptr<Communicator>> join_shm(std::shared_ptr<ShmSegment> segment, int rank, int size,
                                               const GroupOptions& options) {
  if (size != segment->ranks() || rank < 0 || rank >= size) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("rank {} of {} in memory for {} ranks", rank, size, segment->ranks())};
  }
  if (!segment->join(rank, options.clock->now())) {
    return Error{ErrorCode::kAlreadyExists, fmt::format("rank {} has joined its world before", rank)};
  }
  const Layout layout(size);
  SLUICE_TRY(auto area, segment->map(segment->first_group(), layout.bytes()));
  std::vector<int> ranks(static_cast<size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return std::unique_ptr<Communicator>(
      std::make_unique<Shm>(std::move(segment), options, 0, std::move(area), options.name, rank, std::move(ranks)));
}

}  // namespace sluice::parallel
