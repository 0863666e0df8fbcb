// Who is admitted, who gives way, and in which order: the rules that no single request shows.
#include <gtest/gtest.h>

#include "engine/scheduler_fixture.h"
#include "testing/seed.h"

namespace sluice::engine {
namespace {

class AdmissionTest : public SchedulerTest {
 protected:
  // Runs on until there is something to retract; in the order in which they are.
  std::vector<std::string> retracted() {
    for (int i = 0; i < 1000; ++i) {
      const StepPlan plan = scheduler_->plan();
      if (!plan.retract.empty()) {
        std::vector<std::string> rids;
        for (const Request* r : plan.retract) rids.push_back(r->in.rid);
        return rids;
      }
      step();
    }
    return {};
  }
  std::vector<std::string> admitted() const {
    std::vector<std::string> rids;
    for (const auto& s : scheduler_->plan().sequences) rids.push_back(s.request->in.rid);
    return rids;
  }
  static std::vector<std::string> list(std::initializer_list<const char*> rids) { return {rids.begin(), rids.end()}; }
};

// ---- lengths that are known

SchedulerOptions without_cache() {
  return {.kv_slots = 101,
          .max_running_requests = 8,
          .chunked_prefill_size = 0,
          .context_length = 95,
          .prefix_cache = false};
}

TEST_F(AdmissionTest, ARequestOfKnownLengthIsAdmittedIfTheEndsOfTheOthersMakeRoomInTime) {
  // "short" ends at its 10th step and gives 40 slots back; until then all three need 60 + 30 of 100, and at the end of
  // "late" the two that are left hold 30 + 2 * 40.
  for (const int64_t more : {0, 1}) {
    make(without_cache());
    scheduler_->add(request("short", ids(30), 11));
    scheduler_->add(request("long", ids(10), 41));
    scheduler_->add(request("late", ids(10 + 10 * more), 41));
    EXPECT_EQ(admitted(), more ? list({"short", "long"}) : list({"short", "long", "late"}))
        << "the estimate expects 11 + 41 + 41 tokens of them";
    run_until_idle();
    for (const char* rid : {"short", "long", "late"}) EXPECT_EQ(answers_[rid].retractions, 0) << rid;
  }
}

TEST_F(AdmissionTest, RequestsOfKnownLengthAreNeverRetracted) {
  for (const int64_t page : {1, 4}) {
    Rng rng(sluice::testing::test_seed(31));
    int64_t together = 0;
    for (int round = 0; round < 60; ++round) {
      auto options = without_cache();
      options.page_size = page;
      options.kv_slots = 100 + page;
      options.context_length = 90;
      options.conservativeness = 0.1;  // an estimate that hopes
      options.chunked_prefill_size = rng.below(2) == 0 ? 0 : 16;
      make(options, rng.below(2) == 0 ? Steps::kInline : Steps::kPuppet, round);
      for (int i = 0; i < 12; ++i) {
        const auto prompt = static_cast<int64_t>(1 + rng.below(40));
        scheduler_->add(request(fmt::format("r{}", i), ids(prompt, i), static_cast<int64_t>(1 + rng.below(40))));
        while (rng.below(3) == 0) step();
        together = std::max(together, scheduler_->snapshot().num_running_reqs);
      }
      run_until_idle();
      for (const auto& [rid, answer] : answers_) {
        ASSERT_EQ(answer.retractions, 0) << rid << ", page " << page << ", round " << round;
        ASSERT_EQ(answer.finish.kind, FinishKind::kLength);
      }
    }
    EXPECT_GE(together, 4) << "the rule leaves the pool empty";
  }
}

// The same requests, were they free to end before.
TEST_F(AdmissionTest, WithoutKnownLengthsAnEstimateThatHopesIsPunished) {
  auto options = without_cache();
  options.conservativeness = 0.1;
  make(options);
  for (int i = 0; i < 4; ++i) {
    auto r = request(fmt::format("r{}", i), ids(15, i), 40);
    r.sampling.ignore_eos = false;
    r.sampling.logit_bias = {{kEos, -100.0f}};
    scheduler_->add(r);
  }
  run_until_idle();
  EXPECT_GT(scheduler_->snapshot().retracted_total, 0u);
}

// ---- who gives way

TEST_F(AdmissionTest, TheLeastOutputGivesWayFirstAndOfEqualOutputTheLongestPrompt) {
  auto options = small();
  options.kv_slots = 101;
  options.chunked_prefill_size = 0;
  options.conservativeness = 0.001;
  options.tuning.clip_max_new_tokens = 5;  // all are let in
  make(options);
  // "old" has more output than the others when the pool is full.
  scheduler_->add(request("old", ids(10, 1), 70));
  for (int i = 0; i < 6; ++i) step();
  scheduler_->add(request("short", ids(10, 20), 70));
  scheduler_->add(request("long", ids(25, 5), 70));
  EXPECT_EQ(retracted(), list({"long"})) << "as much output as the short one";
  step();
  EXPECT_EQ(scheduler_->snapshot().num_retracted_reqs, 1);
  EXPECT_EQ(retracted(), list({"short"})) << "the old one stays, alone if need be";
  run_until_idle();
  EXPECT_EQ(answers_["old"].retractions, 0);
  for (const char* rid : {"old", "short", "long"}) EXPECT_EQ(answers_[rid].ids.size(), 70u) << rid;
}

TEST_F(AdmissionTest, WhoIsRetractedComesBackWithItsOutputAndTheSameTokens) {
  auto options = small();
  options.kv_slots = 101;
  options.conservativeness = 0.001;
  make(options);
  for (int i = 0; i < 3; ++i) scheduler_->add(request(fmt::format("r{}", i), ids(10, i), 70));
  run_until_idle();
  EXPECT_GT(scheduler_->snapshot().retracted_total, 0u);
  for (int i = 0; i < 3; ++i) {
    const auto rid = fmt::format("r{}", i);
    EXPECT_EQ(answers_[rid].ids, alone(request(rid, ids(10, i), 70), scheduler_->max_req_len()).ids);
  }
}

// ---- steps that nobody waits for

class CancelTest : public SchedulerTest {
 protected:
  // In the next step, before the second layer.
  void abort_within(std::vector<std::string> rids) {
    runner_->ask_between_layers([this, rids, layer = 0]() mutable {
      if (++layer == 2) {
        for (const auto& rid : rids) scheduler_->abort({.rid = rid});
      }
      return layer < 2 || scheduler_->step_is_wanted();
    });
  }
  void expect_right(const std::string& rid, const GenerateRequest& sent) {
    EXPECT_EQ(answers_[rid].ids, alone(sent, scheduler_->max_req_len()).ids) << rid;
  }
};

TEST_F(CancelTest, E1AChunkOfAPromptEndsWithItsRequestAndGivesEverythingBack) {
  for (const bool cached : {false, true}) {
    auto options = small();
    options.prefix_cache = cached;
    make(options);
    scheduler_->add(request("long", ids(60)));
    step();  // the first of its chunks
    abort_within({"long"});
    step();
    EXPECT_EQ(answers_["long"].finish.kind, FinishKind::kAbort);
    EXPECT_EQ(runner_->computed, 16) << "the second chunk was not";
    EXPECT_TRUE(scheduler_->idle());
    scheduler_->check_invariants();
    const auto load = scheduler_->snapshot();
    EXPECT_EQ(load.num_used_tokens, 0);
    EXPECT_EQ(load.num_cached_tokens, cached ? 16 : 0) << "what was not computed is not in the cache";
    runner_->ask_between_layers({});
    const auto same = request("same", ids(60));
    scheduler_->add(same);
    run_until_idle();
    expect_right("same", same);
    EXPECT_EQ(answers_["same"].cached_tokens, cached ? 16 : 0);
  }
}

TEST_F(CancelTest, AStepGoesOnForTheOthersInIt) {
  auto options = small();
  options.chunked_prefill_size = 0;
  make(options);
  const auto stays = request("stays", ids(20, 3));
  scheduler_->add(request("leaves", ids(30)));
  scheduler_->add(stays);
  abort_within({"leaves"});
  step();
  EXPECT_EQ(answers_["leaves"].finish.kind, FinishKind::kAbort) << "it ends at once all the same";
  EXPECT_EQ(answers_["stays"].ids.size(), 1u);
  run_until_idle();
  expect_right("stays", stays);
}

TEST_F(CancelTest, TenThousandAbortsWithinStepsLeaveNothing) {
  Rng rng(sluice::testing::test_seed(41));
  int64_t aborted = 0, served = 0;
  for (int round = 0; aborted < 10'000; ++round) {
    auto options = small();
    options.page_size = round % 3 == 0 ? 4 : 1;
    options.kv_slots = 200 + options.page_size;
    options.mixed_chunk = round % 2 == 0;
    options.prefix_cache = round % 5 != 0;
    make(options);
    std::map<std::string, GenerateRequest> sent;
    const auto abort_one = [&] {
      auto it = sent.begin();
      std::advance(it, static_cast<std::ptrdiff_t>(rng.below(sent.size())));
      scheduler_->abort({.rid = it->first});
      ++aborted;
    };
    runner_->ask_between_layers([&] {
      while (!sent.empty() && rng.below(3) == 0) abort_one();
      return scheduler_->step_is_wanted();
    });
    for (int i = 0; i < 200; ++i) {
      const auto rid = fmt::format("r{}", i);
      const auto prompt = static_cast<int64_t>(1 + rng.below(70));
      sent[rid] =
          request(rid, ids(prompt, static_cast<int32_t>(rng.below(3))), static_cast<int64_t>(1 + rng.below(20)));
      scheduler_->add(sent[rid]);
      for (auto steps = rng.below(4); steps > 0; --steps) step();
      if (sent.size() > 6) sent.erase(sent.begin());
    }
    run_until_idle();
    for (int i = 0; i < 200; ++i) {
      const auto& answer = answers_[fmt::format("r{}", i)];
      ASSERT_EQ(answer.finished, 1) << i;
      served += answer.finish.kind == FinishKind::kLength;
    }
    EXPECT_EQ(scheduler_->snapshot().num_used_tokens, 0);
    ASSERT_TRUE(scheduler_->flush_cache().ok());
    EXPECT_EQ(scheduler_->snapshot().num_cached_tokens, 0);
  }
  EXPECT_GT(served, 100) << "some are left alone";
}

// ---- who is overtaken

TEST_F(AdmissionTest, NobodyIsOvertakenForEverWhateverThePolicy) {
  for (const auto& policy : schedule_policies()) {
    auto options = small();
    options.max_running_requests = 1;
    options.chunked_prefill_size = 0;
    options.policy = &policy;
    // Just after a full minute.
    clock_.advance(std::chrono::minutes(1) - clock_.now().time_since_epoch() % std::chrono::minutes(1));
    make(options);
    const auto favourite = [](const std::string& rid) {
      auto r = request(rid, ids(20), 8);  // long, its prompt cached, its key running
      r.routing_key = "key";
      return r;
    };
    scheduler_->add(favourite("first"));
    step();
    scheduler_->add(request("waits", ids(10, 30), 2));
    // Another favourite waits whenever a place is free; each takes five seconds.
    int later = 0;
    const auto begun = [&] { return answers_.contains("waits"); };
    for (; later < 100 && !begun(); ++later) {
      scheduler_->add(favourite(fmt::format("later-{}", later)));
      clock_.advance(std::chrono::seconds(5));
      for (int i = 0; i < 8 && !begun(); ++i) step();
    }
    EXPECT_LE(later, 16) << policy.name << ": a minute is 12 of them";
    if (policy.name == "lof" || policy.name == "lpm") {
      EXPECT_GT(later, 2) << policy.name << " does not prefer them";
    }
    run_until_idle();
  }
}

// ---- long queues

TEST_F(AdmissionTest, LpmAloneGoesByArrivalWhenMoreThan128Wait) {
  auto options = small();
  options.kv_slots = 1001;
  options.chunked_prefill_size = 0;
  const std::tuple<const char*, int, bool> cases[] = {
      {"lpm", 128, false}, {"lpm", 129, true}, {"dfs-weight", 129, false}};
  for (const auto& [policy, waiting, by_arrival] : cases) {
    SCOPED_TRACE(policy);
    options.policy = find_schedule_policy(policy);
    make(options);
    scheduler_->add(request("first", ids(40), 1));
    run_until_idle();  // its prompt is cached
    for (int i = 0; i < waiting - 1; ++i) scheduler_->add(request(fmt::format("r{}", i), ids(3, 5 + i), 1));
    scheduler_->add(request("last", ids(41), 1));
    ASSERT_EQ(scheduler_->snapshot().num_waiting_reqs, waiting);
    const auto order = admitted();
    ASSERT_FALSE(order.empty());
    EXPECT_EQ(order.front() == "r0", by_arrival) << order.front();
    run_until_idle();
  }
}

}  // namespace
}  // namespace sluice::engine
