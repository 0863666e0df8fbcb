#include "engine/step_times.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/rng.h"

namespace sluice::engine {
namespace {

// A machine: a step costs what its requests and their contexts cost, something for having prompts, and for each of
// their tokens itself and what it reads.
struct Machine {
  double base = 0.010, sequence = 0.0005, context = 2e-8;
  double overhead = 0.001, token = 0.0005, read = 2e-8;
  double speed = 1, prompt_speed = 1;  // times slower

  static Machine any(Rng& rng) {
    Machine m;
    m.base = 0.002 + 0.02 * rng.uniform();
    m.sequence = m.base * (0.002 + 0.1 * rng.uniform());
    m.context = m.base * rng.uniform() * 1e-5;
    m.token = m.base * (0.002 + 0.1 * rng.uniform());
    m.overhead = m.base * 0.5 * rng.uniform();
    m.read = m.token * rng.uniform() / (256 + 20'000 * rng.uniform());
    return m;
  }
  double decoding(const StepShape& s) const {
    if (s.decoding == 0) return 0;
    return speed * (base + sequence * static_cast<double>(s.all_decoding) + context * static_cast<double>(s.context));
  }
  double prompts(int64_t tokens, int64_t position) const {
    if (tokens == 0) return 0;
    return speed * prompt_speed *
           (overhead + token * static_cast<double>(tokens) + read * static_cast<double>(reads_of(position, tokens)));
  }
};

// Requests that come, decode and leave beside prompts without end, of any length and cached part.
class Load {
 public:
  Load(Machine machine, double gap, double noise, uint64_t seed)
      : machine(machine), gap_(gap), noise_(noise), rng_(seed) {}

  void step() {
    come_and_go();
    StepShape s;
    s.decoding = s.all_decoding = std::ssize(running_);
    for (const auto& r : running_) s.context += r.length;
    const double alone = machine.decoding(s);
    if (!times_.wants_decode_step(s)) {
      s.prompt_tokens = std::clamp<int64_t>(times_.room(s, position_, gap_).fit(position_), 1, end_ - position_);
      s.all_prompt_tokens = s.prompt_tokens;
      s.prompt_reads = reads_of(position_, s.prompt_tokens);
    }
    const double usual = alone + machine.prompts(s.prompt_tokens, position_);
    const double took = usual * (1 + noise_ * (2 * rng_.uniform() - 1));
    times_.record(s, took);
    ++steps;
    decode_steps += s.prompt_tokens == 0;
    time += usual;
    if (s.prompt_tokens > 0) best_time += best_time_for(s.prompt_tokens, alone);
    if (s.prompt_tokens > 1) longest = std::max(longest, took / (gap_ * alone));
    late += s.prompt_tokens > 1 && took > gap_ * alone;
    tokens = s.prompt_tokens;
    position_ += s.prompt_tokens;
  }
  // A step that was slow by chance.
  void stumble(double times) {
    StepShape s;
    s.decoding = s.all_decoding = std::ssize(running_);
    for (const auto& r : running_) s.context += r.length;
    times_.record(s, times * machine.decoding(s));
  }
  void prompt(int64_t from, int64_t to) {
    position_ = from;
    end_ = to;
  }

  Machine machine;
  bool busy = true;  // requests come and go
  int64_t steps = 0, decode_steps = 0, late = 0, tokens = 0;
  double longest = 0;              // of steps with more than one prompt token: by what it may take
  double time = 0, best_time = 0;  // in which the same tokens could have been computed by who knows the machine

 private:
  struct Running {
    int64_t length, left;
  };
  void come_and_go() {
    if (running_.empty() || (busy && rng_.below(20) == 0)) {
      for (uint64_t n = 1 + rng_.below(rng_.below(8) == 0 ? 24 : 3); n > 0 && running_.size() < 64; --n) {
        const uint64_t length = rng_.below(5) == 0 ? rng_.below(50'000) : 10 + rng_.below(1000);
        running_.push_back(
            {static_cast<int64_t>(length), static_cast<int64_t>(busy ? 5 + rng_.below(300) : 1'000'000)});
      }
    }
    for (auto& r : running_) ++r.length, --r.left;
    if (running_.size() > 1) std::erase_if(running_, [](const Running& r) { return r.left <= 0; });
    if (position_ < end_) return;
    position_ = rng_.below(4) == 0 ? static_cast<int64_t>(rng_.below(100'000)) : 0;
    end_ = position_ + 1 + static_cast<int64_t>(rng_.below(rng_.below(4) == 0 ? 100'000 : 4000));
  }
  // Of steps that are as long as they may be with that noise.
  double best_time_for(int64_t n, double alone) const {
    const double limit = gap_ * alone / (1 + noise_);
    int64_t low = 1, high = 1'000'000;
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (alone + machine.prompts(middle, position_) <= limit) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return (alone + machine.prompts(low, position_)) * static_cast<double>(n) / static_cast<double>(low);
  }

  const double gap_, noise_;
  Rng rng_;
  StepTimes times_;
  std::vector<Running> running_;
  int64_t position_ = 0, end_ = 0;
};

// L19, of the step budget alone.
TEST(StepTimesTest, NoStepIsLongerThanTheGapOnAnyMachineUnderAnyLoad) {
  for (const double gap : {2.0, 3.0, 10.0}) {
    for (const double noise : {0.0, 0.05, 0.1}) {
      double share = 0;
      constexpr int kMachines = 12;
      for (int seed = 1; seed <= kMachines; ++seed) {
        Rng rng(static_cast<uint64_t>(seed));
        Load load(Machine::any(rng), gap, noise, static_cast<uint64_t>(seed));
        for (int i = 0; i < 2000; ++i) load.step();
        SCOPED_TRACE(testing::Message() << "gap " << gap << " noise " << noise << " seed " << seed);
        // How far steps vary is learned, too: 2 % for the time until then.
        EXPECT_LE(load.longest, noise == 0 ? 1.0 : 1.02);
        EXPECT_LE(load.late, 2);
        EXPECT_LT(load.decode_steps, load.steps / 10);
        share += load.best_time / load.time / kMachines;
      }
      // Of the tokens per second of an oracle that knows machine and noise.
      EXPECT_GT(share, gap < 3 ? 0.45 : 0.7) << "gap " << gap << " noise " << noise;
    }
  }
}

TEST(StepTimesTest, L19APromptOfThreeHundredThousandTokensGetsNearlyAllOfTheGap) {
  for (const double noise : {0.0, 0.05}) {
    Load load({}, 3.0, noise, 1);
    load.busy = false;
    for (int i = 0; i < 20; ++i) load.step();
    load.prompt(0, 300'000);
    const double time = load.time, best = load.best_time;
    load.longest = 0;
    int64_t computed = 0;
    for (int i = 0; computed < 300'000; ++i) {
      ASSERT_LT(i, 100'000);
      load.step();
      computed += load.tokens;
    }
    EXPECT_LE(load.longest, 1.0);
    EXPECT_GT((load.best_time - best) / (load.time - time), 0.8) << noise;
  }
}

TEST(StepTimesTest, BeginsSmallAndGrowsByMeasuredSteps) {
  Load load({}, 3.0, 0, 1);
  load.busy = false;
  load.prompt(0, 100'000);
  std::vector<int64_t> tokens;
  while (tokens.size() < 12) {
    load.step();
    if (load.tokens > 0) tokens.push_back(load.tokens);
  }
  EXPECT_EQ(tokens.front(), 1);
  for (size_t i = 1; i < tokens.size(); ++i) EXPECT_LE(tokens[i], 5 * tokens[i - 1] / 2 + 1);
  EXPECT_GT(tokens.back(), 15);
  // As far back as nothing was computed yet.
  load.prompt(200'000, 300'000);
  load.step();
  EXPECT_LE(load.tokens, 3);
  EXPECT_LE(load.longest, 1);
}

TEST(StepTimesTest, ASlowStepShrinksTheNextOnesAtOnce) {
  for (const double slower : {2.0, 5.0}) {
    Load load({}, 3.0, 0.05, 7);
    load.busy = false;
    for (int i = 0; i < 500; ++i) load.step();
    ASSERT_EQ(load.late, 0);
    // From one step to the next prompts cost more, and decoding does not.
    load.machine.prompt_speed = slower;
    for (int i = 0; i < 2000; ++i) load.step();
    EXPECT_LE(load.late, 2) << slower;
  }
}

TEST(StepTimesTest, FollowsAMachineThatBecomesSlowerOrFaster) {
  for (const double slower : {0.4, 3.0}) {
    Load load({}, 3.0, 0.05, 7);
    load.busy = false;
    for (int i = 0; i < 1000; ++i) load.step();
    ASSERT_EQ(load.late, 0);
    load.machine.speed = slower;
    for (int i = 0; i < 100; ++i) load.step();
    EXPECT_LE(load.late, 4) << slower;
    load.late = 0;
    const double time = load.time, best = load.best_time;
    for (int i = 0; i < 1000; ++i) load.step();
    EXPECT_EQ(load.late, 0) << slower;
    EXPECT_GT((load.best_time - best) / (load.time - time), 0.6) << slower;
  }
}

// Of decoding: who took it for the usual would make room for prompts that there is not.
TEST(StepTimesTest, AStepThatWasSlowByChanceMakesNoRoom) {
  Load load({}, 3.0, 0.05, 7);
  for (int i = 0; i < 3000; ++i) {
    load.step();
    if (i % 100 == 50) load.stumble(4);
  }
  EXPECT_LE(load.longest, 1.02);
}

TEST(StepTimesTest, WhereNothingFitsAPromptStillMovesOn) {
  StepTimes times;
  const StepShape one{.decoding = 1, .all_decoding = 1, .context = 100};
  times.record(one, 0.001);
  times.record(one, 0.001);
  StepShape mixed = one;
  mixed.prompt_tokens = mixed.all_prompt_tokens = 10;
  times.record(mixed, 10.0);
  EXPECT_EQ(times.room(one, 0, 3.0).fit(0), 1);
  EXPECT_EQ(times.room(one, 1'000'000, 3.0).fit(1'000'000), 1);
}

TEST(StepTimesTest, DecodingIsMeasuredTwiceBeforeItsNumberIsTrusted) {
  StepTimes times;
  const auto decoding = [](int64_t n) { return StepShape{.decoding = n, .all_decoding = n, .context = 1000 * n}; };
  const auto mix = [&](int64_t n) {
    StepShape mixed = decoding(n);
    mixed.prompt_tokens = mixed.all_prompt_tokens = 1;
    times.record(mixed, 0.01);
  };
  EXPECT_TRUE(times.wants_decode_step(decoding(4)));
  times.record(decoding(4), 0.01);
  EXPECT_TRUE(times.wants_decode_step(decoding(4)));
  times.record(decoding(4), 0.01);
  EXPECT_FALSE(times.wants_decode_step(decoding(4)));
  mix(4);
  EXPECT_FALSE(times.wants_decode_step(decoding(5)));
  EXPECT_TRUE(times.wants_decode_step(decoding(9)));
  EXPECT_TRUE(times.wants_decode_step(decoding(2)));
  EXPECT_TRUE(times.wants_decode_step({.decoding = 4, .all_decoding = 4, .context = 200'000})) << "other contexts";
  EXPECT_TRUE(times.wants_decode_step({.decoding = 4, .all_decoding = 16, .context = 4000})) << "other groups";
}

// Several groups: no more for each than what is known of as many tokens in all.
TEST(StepTimesTest, GroupsShareTheRoom) {
  StepTimes times;
  const StepShape four{.decoding = 4, .all_decoding = 8, .context = 400};
  times.record(four, 0.01);
  times.record(four, 0.01);
  StepShape mixed = four;
  mixed.prompt_tokens = mixed.all_prompt_tokens = 60;
  mixed.prompt_reads = reads_of(0, 60);
  for (int i = 0; i < 4; ++i) times.record(mixed, 0.021);
  const int64_t alone = times.room(four, 0, 3.0, 1).fit(0), shared = times.room(four, 0, 3.0, 2).fit(0);
  EXPECT_GE(alone, 60);
  EXPECT_LE(2 * shared, alone);
  EXPECT_GE(2 * shared, 40);
}

TEST(PromptRoomTest, ALatePositionTakesMoreOfIt) {
  PromptRoom room(1000, 1e6);
  const int64_t early = room.fit(0), late = room.fit(100'000);
  EXPECT_EQ(early, 1000);
  EXPECT_EQ(late, 9);
  room.take(100'000, 5);
  EXPECT_EQ(room.fit(100'000), 4);
  EXPECT_FALSE(room.spent());
  EXPECT_EQ(PromptRoom(100, 1e9).fit(0, /*each=*/2), 50);
  EXPECT_GT(PromptRoom::boundless().fit(1'000'000), 1'000'000);
}

}  // namespace
}  // namespace sluice::engine
