// The accounting of requests in flight under random events. What it does with one event of each kind is tested through
// the controller (dp_controller_test.cc).
#include "engine/dispatcher.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/rng.h"
#include "testing/fake_clock.h"
#include "testing/seed.h"

namespace sluice::engine {
namespace {

constexpr int64_t kRanks = 4;

// Ranks, their processes and clients, played at random; holds the dispatcher to what it promises.
class RandomLife {
 public:
  explicit RandomLife(uint64_t seed) : rng_(seed) {
    for (int64_t rank = 0; rank < kRanks; ++rank) start(rank);
  }

  void event() {
    clock_.advance(std::chrono::milliseconds(rng_.below(15)));
    switch (rng_.below(12)) {
      case 0:
        if (incarnations_[draw_rank()] != 0) return lose(last_drawn_);
        return start(last_drawn_);
      case 1:
        return dispatcher_.abort(draw_rid());
      case 2:
        if (rng_.below(20) == 0) dispatcher_.abort_all();
        return;
      case 3:
      case 4:
      case 5:
      case 6:
        return submit();
      default:
        return answer();
    }
  }

  // Nobody is left waiting, and nobody heard twice.
  void finish() {
    carry();
    deliver(dispatcher_.end_all("over"));
    EXPECT_TRUE(dispatcher_.running().empty());
    for (const auto& [rid, finals] : finals_) EXPECT_EQ(finals, 1) << rid;
    EXPECT_GT(finals_.size(), 100u);
    EXPECT_GT(moved_, 0u);
  }

 private:
  size_t draw_rank() { return last_drawn_ = rng_.below(kRanks); }
  std::string draw_rid() { return fmt::format("r{}", rng_.below(last_rid_ + 1)); }

  void start(size_t rank) {
    incarnations_[rank] = ++last_incarnation_;
    on_rank_[rank].clear();
    last_seq_[rank] = 0;
    dispatcher_.rank_ready(static_cast<int64_t>(rank), incarnations_[rank]);
  }

  void lose(size_t rank) {
    carry();
    const int64_t lost[] = {static_cast<int64_t>(rank)};
    auto [moved, ended] = dispatcher_.ranks_lost(lost, "it fell over");
    moved_ += moved;
    for (const auto& delivery : ended) {
      EXPECT_TRUE(on_rank_[rank].contains(delivery.output.rid)) << delivery.output.rid << " was elsewhere";
    }
    deliver(std::move(ended));
    // Late news of the dead.
    for (const auto& rid : on_rank_[rank]) {
      EXPECT_TRUE(dispatcher_
                      .outputs(static_cast<int64_t>(rank), incarnations_[rank],
                               {{{.rid = rid, .finish = {.kind = FinishKind::kLength}}}})
                      .empty());
    }
    on_rank_[rank].clear();
    incarnations_[rank] = 0;
  }

  void submit() {
    const std::string rid = fmt::format("r{}", ++last_rid_);
    std::optional<int64_t> pinned;
    if (rng_.below(4) == 0) pinned = static_cast<int64_t>(draw_rank());
    const bool any = std::ranges::any_of(incarnations_, [](uint64_t i) { return i != 0; });
    const bool can = pinned ? incarnations_[static_cast<size_t>(*pinned)] != 0 : any;
    const auto rank =
        dispatcher_.submit({.rid = rid, .input_ids = {1, 2}}, pinned, [this, rid](const RequestOutput& output) {
          ASSERT_EQ(output.rid, rid);
          ASSERT_EQ(finals_[rid], 0) << "news of " << rid << " after its last";
          if (output.finish.kind != FinishKind::kNone) ++finals_[rid];
        });
    ASSERT_EQ(rank.ok(), can);
    if (!rank.ok()) return;
    finals_[rid] = 0;
    EXPECT_EQ(*rank, pinned.value_or(*rank));
    EXPECT_NE(incarnations_[static_cast<size_t>(*rank)], 0u);
  }

  // What is queued reaches the ranks.
  void carry() {
    for (auto& [rank, incarnation, message] : dispatcher_.take_outgoing()) {
      const auto i = static_cast<size_t>(rank);
      if (incarnation != incarnations_[i]) continue;
      if (const auto* request = std::get_if<GenerateRequest>(&message)) {
        EXPECT_GT(request->dispatch_seq, last_seq_[i]) << "out of order";
        last_seq_[i] = request->dispatch_seq;
        on_rank_[i].insert(request->rid);
        board_.publish(rank, {.unix_nanos = clock_.unix_nanos(),
                              .last_dispatch_seq = request->dispatch_seq,
                              .num_running_reqs = static_cast<int64_t>(on_rank_[i].size())});
      }
    }
  }

  void answer() {
    carry();
    const size_t rank = draw_rank();
    if (on_rank_[rank].empty()) return;
    auto it = on_rank_[rank].begin();
    std::advance(it, static_cast<std::ptrdiff_t>(rng_.below(on_rank_[rank].size())));
    RequestOutput output{.rid = *it, .new_ids = {7}};
    if (rng_.below(2) == 0) {
      output.finish.kind = FinishKind::kLength;
      on_rank_[rank].erase(it);
    }
    auto deliveries = dispatcher_.outputs(static_cast<int64_t>(rank), incarnations_[rank], {{output}});
    EXPECT_EQ(deliveries.size(), 1u) << output.rid;
    deliver(std::move(deliveries));
  }

  static void deliver(std::vector<Dispatcher::Delivery> deliveries) {
    for (auto& delivery : deliveries) (*delivery.to)(std::move(delivery.output));
  }

  Rng rng_;
  sluice::testing::FakeClock clock_;
  LoadBoard board_ = *LoadBoard::create(kRanks);
  Dispatcher dispatcher_{*find_load_balance("total_tokens"), board_, clock_};
  size_t last_drawn_ = 0;
  uint64_t last_rid_ = 0;
  uint64_t last_incarnation_ = 0;
  size_t moved_ = 0;
  std::array<uint64_t, kRanks> incarnations_{};
  std::array<uint64_t, kRanks> last_seq_{};
  std::array<std::set<std::string>, kRanks> on_rank_;  // requests whose end the rank has not sent
  std::map<std::string, int> finals_;
};

TEST(DispatcherTest, EveryAcceptedRequestEndsOnceWhateverHappens) {
  const uint64_t seed = sluice::testing::test_seed();
  for (uint64_t life = 0; life < 50; ++life) {
    SCOPED_TRACE(fmt::format("SLUICE_TEST_SEED={}", seed + life));
    RandomLife random(seed + life);
    for (int i = 0; i < 2000; ++i) random.event();
    random.finish();
  }
}

TEST(DispatcherTest, RanksThatEndTogetherAreNoRefugeOfEachOthersRequests) {
  sluice::testing::FakeClock clock;
  LoadBoard board = *LoadBoard::create(3);
  Dispatcher dispatcher{*find_load_balance("round_robin"), board, clock};
  std::map<std::string, RequestOutput> last;
  const auto submit = [&](const std::string& rid, std::optional<int64_t> pinned) {
    const auto rank = dispatcher.submit({.rid = rid, .input_ids = {1, 2}}, pinned,
                                        [&last, rid](RequestOutput output) { last[rid] = std::move(output); });
    return rank.ok() ? *rank : -1;
  };
  const auto lose = [&](std::vector<int64_t> ranks) {
    auto [moved, ended] = dispatcher.ranks_lost(ranks, "it fell over");
    for (auto& delivery : ended) (*delivery.to)(std::move(delivery.output));
    return moved;
  };
  dispatcher.rank_ready(0, 1);
  dispatcher.rank_ready(1, 1);
  ASSERT_EQ(submit("a", {}), 0);
  ASSERT_EQ(submit("b", {}), 1);
  EXPECT_EQ(lose({0, 1}), 0u);
  ASSERT_EQ(last.size(), 2u);
  for (const auto& [rid, output] : last) {
    EXPECT_EQ(output.finish.status_code, 503) << rid;
    EXPECT_FALSE(output.finish.ended_two) << rid;
  }

  for (const int64_t rank : {0, 1, 2}) dispatcher.rank_ready(rank, 2);
  ASSERT_EQ(submit("c", {}), 2);
  ASSERT_EQ(submit("d", {}), 0);
  ASSERT_EQ(submit("e", {}), 1);
  (void)dispatcher.take_outgoing();
  EXPECT_EQ(lose({0, 1}), 2u);
  const auto sent = dispatcher.take_outgoing();
  ASSERT_EQ(sent.size(), 2u);
  for (const auto& each : sent) EXPECT_EQ(each.rank, 2);
}

}  // namespace
}  // namespace sluice::engine
