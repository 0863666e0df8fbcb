#include "parallel/step_sync.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "base/rng.h"

namespace sluice::parallel {
namespace {

std::vector<StepRow> rows_of(const Layout& layout) {
  return std::vector<StepRow>(static_cast<size_t>(layout.tp_size), {.seq = 7, .plan_hash = 3});
}

TEST(StepSyncTest, LeadersSpeakForTheirGroups) {
  const Layout layout{.tp_size = 4, .dp_size = 2};
  auto rows = rows_of(layout);
  rows[0].num_tokens = 5;
  rows[0].num_tokens_for_logprob = 2;
  rows[0].is_extend_in_batch = 1;
  rows[2].num_tokens = 3;
  rows[2].batch_words = 40;
  rows[3].num_tokens = 99;  // not a leader's
  const auto plan = derive_plan(rows, layout);
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_TRUE(plan->run && plan->is_extend_in_batch && !plan->park);
  EXPECT_EQ(plan->group_tokens, (std::vector<int64_t>{5, 3}));
  EXPECT_EQ(plan->group_logits, (std::vector<int64_t>{2, 0}));
  EXPECT_EQ(plan->batch_words, (std::vector<int64_t>{0, 40}));
}

TEST(StepSyncTest, AStepIsSplitWhereAllCanAndThoseWithWorkAreInOneMode) {
  const Layout layout{.tp_size = 4, .dp_size = 2};
  auto rows = rows_of(layout);
  const auto set = [&](size_t rank, int64_t tokens, int64_t can_split, ForwardMode mode) {
    rows[rank].num_tokens = tokens;
    rows[rank].local_can_run_tbo = can_split;
    rows[rank].local_forward_mode = static_cast<int64_t>(mode);
  };
  set(0, 5, 3, ForwardMode::kDecode);
  set(2, 9, 5, ForwardMode::kDecode);
  EXPECT_EQ(derive_plan(rows, layout)->first_half, (std::vector<int64_t>{2, 4}));
  set(2, 0, 1, ForwardMode::kIdle);
  EXPECT_EQ(derive_plan(rows, layout)->first_half, (std::vector<int64_t>{2, 0})) << "an idle group splits nothing";
  set(2, 9, 5, ForwardMode::kExtend);
  EXPECT_TRUE(derive_plan(rows, layout)->first_half.empty()) << "one decodes and one prefills";
  set(0, 7, 4, ForwardMode::kExtend);
  EXPECT_EQ(derive_plan(rows, layout)->first_half, (std::vector<int64_t>{3, 4}));
  set(0, 1, 0, ForwardMode::kExtend);
  EXPECT_TRUE(derive_plan(rows, layout)->first_half.empty()) << "one token has no halves";
  set(0, 0, 0, ForwardMode::kIdle);
  EXPECT_TRUE(derive_plan(rows, layout)->first_half.empty()) << "it is not switched on there";
}

TEST(StepSyncTest, AllParkOnlyWhenTheSameWorkHasReachedAll) {
  const Layout layout{.tp_size = 4, .dp_size = 4};
  auto rows = rows_of(layout);
  for (StepRow& row : rows) row.work_seen = 12;
  EXPECT_TRUE(derive_plan(rows, layout)->park);
  rows[3].work_seen = 13;
  EXPECT_FALSE(derive_plan(rows, layout)->park);
  EXPECT_FALSE(derive_plan(rows, layout)->run);
  EXPECT_EQ(derive_plan(rows, layout)->seen_by_all, 12u);
  rows[3].work_seen = 12;
  rows[1].more_to_come = 1;
  EXPECT_FALSE(derive_plan(rows, layout)->park) << "what is to come would find the others asleep";
}

TEST(StepSyncTest, WhatMustBeEqualAndIsNotIsNamed) {
  const Layout layout{.tp_size = 3};
  const auto message = [&](int64_t StepRow::*column, int64_t value) {
    auto rows = rows_of(layout);
    rows[2].*column = value;
    const auto plan = derive_plan(rows, layout);
    return plan.ok() ? "(accepted)" : plan.error().message;
  };
  EXPECT_EQ(message(&StepRow::seq, 8), "ranks are out of step at exchange 7: seq is 7 on rank 0 and 8 on rank 2");
  EXPECT_EQ(message(&StepRow::kind, 4), "ranks are out of step at exchange 7: kind is 1 on rank 0 and 4 on rank 2");
  EXPECT_EQ(message(&StepRow::plan_hash, 4),
            "ranks are out of step at exchange 7: plan_hash is 3 on rank 0 and 4 on rank 2");
}

TEST(StepSyncTest, TheHashTellsPlansAndLayoutsApart) {
  const Layout layout{.tp_size = 2, .dp_size = 2};
  auto rows = rows_of(layout);
  const int64_t idle = derive_plan(rows, layout)->hash;
  rows[1].num_tokens = 1;
  EXPECT_NE(derive_plan(rows, layout)->hash, idle);
  EXPECT_NE(first_hash(layout), first_hash({.tp_size = 2, .dp_size = 1}));
  EXPECT_NE(first_hash(layout), first_hash({.tp_size = 2, .dp_size = 2, .dp_lm_head = true}));
}

// The protocol without sockets or threads: a controller that sends work and control messages and tells all ranks their
// numbers, messages that take their time, ranks that post their rows in any order, and an exchange that ends when the
// last row is there. Some work takes its time on its rank before it brings tokens. Now and then a rank stalls, or dies,
// which ends the instance: what it had not computed is sent to its successor.
class Simulation {
 public:
  Simulation(const Layout& layout, uint64_t seed, bool mortal = true) : layout_(layout), rng_(seed), mortal_(mortal) {
    start();
  }

  // One event. False: nothing can happen any more.
  bool step(bool more_work) {
    std::vector<std::function<void()>> possible;
    if (more_work) possible.emplace_back([this] { rng_.below(8) == 0 ? send_control() : send_work(); });
    if (rng_.below(200) == 0) stalled_ = rng_.below(ranks_.size());
    if (rng_.below(10) == 0) stalled_.reset();
    if (mortal_ && more_work && rng_.below(30) == 0) possible.emplace_back([this] { die(); });
    for (Rank& rank : ranks_) {
      if (stalled_ && &rank == &ranks_[*stalled_]) continue;
      // Whoever has posted waits for the others.
      if (!rank.posted && !rank.inbox.empty()) possible.emplace_back([this, &rank] { receive(rank); });
      if (!rank.posted && !rank.parked) possible.emplace_back([this, &rank] { post(rank); });
      if (!rank.posted && rank.prepared > 0) possible.emplace_back([&rank] { prepare(rank); });
    }
    if (possible.empty()) return stalled_.has_value();
    possible[rng_.below(possible.size())]();
    return true;
  }
  int64_t sent() const { return sent_; }
  int64_t done() const { return done_; }
  int64_t parks() const { return parks_; }
  int64_t controls() const { return controls_; }
  int64_t deaths() const { return deaths_; }
  // One rank goes astray.
  void diverge() {
    Rank& rank = ranks_[rng_.below(ranks_.size())];
    int64_t& column = rank.posted ? (rng_.below(2) == 0 ? rank.row.plan_hash : rank.row.kind)
                                  : (rng_.below(2) == 0 ? rank.hash : rank.seq);
    ++column;
  }
  // Every control message has been obeyed, by all between the same two exchanges.
  bool controls_agree() const {
    return std::ranges::all_of(ranks_, [&](const Rank& rank) {
      return std::ssize(rank.obeyed) == controls_ && rank.obeyed == ranks_[0].obeyed;
    });
  }
  const std::string& failure() const { return failure_; }

 private:
  struct Rank {
    struct Message {
      int64_t tokens = 0;  // for this rank
      bool control = false;
      uint64_t number = 0;  // of the work that all are told
    };
    std::deque<Message> inbox;
    int64_t prepared = 0;         // tokens that come when what they wait for is done
    int64_t tokens = 0;           // to compute
    std::deque<uint64_t> held;    // numbers of control messages that have come
    std::vector<int64_t> obeyed;  // numbers of the exchanges after which control messages took effect
    uint64_t seen = 0;
    int64_t seq = 0;
    int64_t hash = 0;
    bool posted = false;
    bool parked = true;
    StepRow row;
  };

  void start() {
    ranks_.assign(static_cast<size_t>(layout_.tp_size), {});
    for (Rank& rank : ranks_) rank.hash = first_hash(layout_);
  }
  void die() {
    start();
    ++deaths_;
    // Control messages end with the instance; requests go to the next one.
    controls_ = 0;
    const int64_t lost = std::exchange(sent_, done_) - done_;
    if (lost > 0) send_work(lost);
  }
  void send_work() { send_work(1 + static_cast<int64_t>(rng_.below(5))); }
  void send_work(int64_t tokens) {
    const auto leader =
        rng_.below(static_cast<uint64_t>(layout_.dp_size)) * static_cast<uint64_t>(layout_.attention_tp_size());
    ++work_;
    sent_ += tokens;
    for (size_t i = 0; i < ranks_.size(); ++i) {
      ranks_[i].inbox.push_back({.tokens = i == leader ? tokens : 0, .number = work_});
    }
  }
  void send_control() {
    ++work_;
    ++controls_;
    for (Rank& rank : ranks_) rank.inbox.push_back({.control = true, .number = work_});
  }
  void receive(Rank& rank) {
    const Rank::Message message = rank.inbox.front();
    rank.inbox.pop_front();
    (rng_.below(4) == 0 ? rank.prepared : rank.tokens) += message.tokens;
    if (message.control) rank.held.push_back(message.number);
    rank.seen = message.number;
    rank.parked = false;
  }
  static void prepare(Rank& rank) { rank.tokens += std::exchange(rank.prepared, 0); }
  bool leads(const Rank& rank) const { return (&rank - ranks_.data()) % layout_.attention_tp_size() == 0; }
  void post(Rank& rank) {
    rank.row = {.seq = ++rank.seq, .plan_hash = rank.hash, .work_seen = static_cast<int64_t>(rank.seen)};
    rank.row.num_tokens = std::min<int64_t>(rank.tokens, 2);
    rank.row.more_to_come = leads(rank) && (rank.prepared > 0 || !rank.held.empty());
    rank.posted = true;
    if (std::ranges::all_of(ranks_, &Rank::posted)) exchange();
  }
  void exchange() {
    std::vector<StepRow> rows;
    for (const Rank& one : ranks_) rows.push_back(one.row);
    const auto plan = derive_plan(rows, layout_);
    if (!plan.ok()) {
      failure_ = plan.error().message;
      return;
    }
    parks_ += plan->park;
    for (Rank& one : ranks_) {
      one.hash = plan->hash;
      one.posted = false;
      one.parked = plan->park;
      one.tokens -= one.row.num_tokens;
      done_ += one.row.num_tokens;
      for (; !one.held.empty() && one.held.front() <= plan->seen_by_all; one.held.pop_front()) {
        one.obeyed.push_back(one.seq);
      }
    }
    // What parks has nothing to do, though more may have come meanwhile.
    for (const Rank& one : ranks_) {
      if (one.parked && one.tokens + one.prepared > 0) failure_ = "a rank with work is parked";
      if (one.parked && !one.held.empty()) failure_ = "a rank is parked that has something to obey";
    }
  }

  const Layout layout_;
  Rng rng_;
  const bool mortal_;
  std::vector<Rank> ranks_;
  std::optional<size_t> stalled_;
  uint64_t work_ = 0;
  int64_t sent_ = 0, done_ = 0, parks_ = 0, controls_ = 0, deaths_ = 0;
  std::string failure_;
};

Layout layout_of(uint64_t seed) {
  const int64_t sizes[] = {2, 3, 4, 6, 8, 16}, tp = sizes[seed % 6];
  return {.tp_size = tp, .dp_size = seed / 6 % 2 == 0 ? tp : nearest_divisors(tp, std::max<int64_t>(1, tp / 2))[0]};
}

int64_t from_environment(const char* name, int64_t otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoll(value);
}

// SLUICE_SOAK_STEPS asks for more of them, SLUICE_SOAK_SEED begins with the one that failed.
TEST(StepSyncSimulation, NoWorkIsLostAndNobodySleepsForEverInAnyInterleaving) {
  int64_t steps = 0, parks = 0, controls = 0, deaths = 0;
  const int64_t wanted = from_environment("SLUICE_SOAK_STEPS", 200'000);
  for (auto seed = static_cast<uint64_t>(from_environment("SLUICE_SOAK_SEED", 1)); steps < wanted; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Simulation simulation(layout_of(seed), seed);
    for (int i = 0; i < 300; ++i, ++steps) ASSERT_TRUE(simulation.step(/*more_work=*/i % 40 < 4) || i % 40 >= 4);
    int left = 0;
    while (simulation.step(/*more_work=*/false)) ASSERT_LT(++left, 100'000) << "it never comes to rest";
    steps += left;
    ASSERT_EQ(simulation.failure(), "");
    ASSERT_EQ(simulation.done(), simulation.sent());
    ASSERT_TRUE(simulation.controls_agree());
    parks += simulation.parks();
    controls += simulation.controls();
    deaths += simulation.deaths();
  }
  EXPECT_GT(parks, 100);
  EXPECT_GT(controls, 100);
  EXPECT_GT(deaths, 10);
}

// Pieces of work come after so many events as bring them before, into and after the moment at which the ranks park, and
// then all rest. SLUICE_SOAK_PARKS asks for more rounds.
TEST(StepSyncSimulation, NoRoundOfParkingAndWakingLosesAWakeUp) {
  const int64_t wanted = from_environment("SLUICE_SOAK_PARKS", 5'000);
  int64_t parks = 0, rests = 0;
  for (auto seed = static_cast<uint64_t>(from_environment("SLUICE_SOAK_SEED", 1)); parks < wanted; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    const Layout layout = layout_of(seed);
    Simulation simulation(layout, seed, /*mortal=*/false);
    Rng rng(seed);
    for (int round = 0; round < 100; ++round, ++rests) {
      for (uint64_t pieces = 1 + rng.below(3); pieces > 0; --pieces) {
        simulation.step(/*more_work=*/true);
        // Some five events of each rank take a piece of work from its arrival to the next parking.
        const uint64_t pause = rng.below(8 * static_cast<uint64_t>(layout.tp_size));
        for (uint64_t i = 0; i < pause; ++i) simulation.step(/*more_work=*/false);
      }
      int left = 0;
      while (simulation.step(/*more_work=*/false)) ASSERT_LT(++left, 100'000) << "it never comes to rest";
      ASSERT_EQ(simulation.failure(), "");
      ASSERT_EQ(simulation.done(), simulation.sent()) << "round " << round << ": nobody wakes for what is left";
      ASSERT_TRUE(simulation.controls_agree());
    }
    parks += simulation.parks();
  }
  EXPECT_GE(parks, rests / 2) << "ranks that rest have parked";
  RecordProperty("parks", std::to_string(parks));
}

TEST(StepSyncSimulation, ARankThatGoesAstrayIsFoundAtTheNextExchangeBeforeDataMove) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Simulation simulation(layout_of(seed), seed);
    for (uint64_t i = 0; i < 50 + seed % 50; ++i) simulation.step(/*more_work=*/i % 10 < 3 && i > 10);
    simulation.diverge();
    const int64_t done = simulation.done(), deaths = simulation.deaths();
    for (int i = 0; i < 10'000 && simulation.failure().empty(); ++i) {
      simulation.step(/*more_work=*/i % 10 == 0);
      if (simulation.deaths() > deaths) break;  // and with the instance what was wrong
    }
    if (simulation.deaths() > deaths) continue;
    EXPECT_NE(simulation.failure().find("ranks are out of step at exchange"), std::string::npos);
    EXPECT_EQ(simulation.done(), done);
  }
}

}  // namespace
}  // namespace sluice::parallel
