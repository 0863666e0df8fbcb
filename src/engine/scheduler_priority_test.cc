// Who goes first: policies and priorities as the scheduler applies them.
#include <gtest/gtest.h>

#include "engine/scheduler_fixture.h"

namespace sluice::engine {
namespace {

class PriorityTest : public SchedulerTest {
 protected:
  static SchedulerOptions with_priorities() {
    auto options = small();
    options.priorities.enabled = true;
    return options;
  }
  static GenerateRequest urgent(const std::string& rid, std::optional<int64_t> priority, int64_t prompt = 10,
                                int64_t max_new = 20) {
    auto r = request(rid, ids(prompt, 3 * rid.front() + rid.back()), max_new);
    r.priority = priority;
    return r;
  }
  std::vector<std::string> planned() const {
    std::vector<std::string> rids;
    for (const auto& s : scheduler_->plan().sequences) rids.push_back(s.request->in.rid);
    return rids;
  }
  static std::vector<std::string> list(std::initializer_list<const char*> rids) { return {rids.begin(), rids.end()}; }
};

TEST_F(PriorityTest, LargerPrioritiesGoFirstAndNoneGoesLast) {
  for (const bool low_first : {false, true}) {
    auto options = with_priorities();
    options.chunked_prefill_size = 0;
    options.priorities.low_first = low_first;
    make(options);
    for (const auto& r : {urgent("none", std::nullopt, 3), urgent("one", 1, 3), urgent("two", 2, 3)})
      scheduler_->add(r);
    EXPECT_EQ(planned(), low_first ? list({"one", "two", "none"}) : list({"two", "one", "none"}));
    run_until_idle();
  }
}

TEST_F(PriorityTest, APriorityIsRefusedWhereItIsDisabledIfThatIsAskedFor) {
  for (const bool refused : {false, true}) {
    auto options = small();
    options.priorities.refused_if_disabled = refused;
    make(options);
    scheduler_->add(urgent("a", 1));
    scheduler_->add(urgent("b", std::nullopt));
    run_until_idle();
    EXPECT_EQ(answers_["a"].finish.kind, refused ? FinishKind::kAbort : FinishKind::kLength);
    if (refused) {
      EXPECT_EQ(answers_["a"].finish.status_code, 503);
      EXPECT_NE(answers_["a"].finish.message.find("Using priority is disabled"), std::string::npos);
    }
    EXPECT_EQ(answers_["b"].finish.kind, FinishKind::kLength);
  }
}

// Two places, both taken by requests of priority 0.
TEST_F(PriorityTest, TheUrgentTakeThePlaceOfTheNewestAndTheirVictimsLoseNoToken) {
  for (const int64_t priority : {10, 11}) {  // the threshold is 10: more than that
    auto options = with_priorities();
    options.max_running_requests = 2;
    make(options);
    const auto older = urgent("older", 0), newer = urgent("newer", 0), late = urgent("late", priority);
    scheduler_->add(older);
    scheduler_->add(newer);
    while (answers_["newer"].ids.size() < 3) step();
    scheduler_->add(late);
    const StepPlan plan = scheduler_->plan();
    if (priority > 10) {
      ASSERT_EQ(plan.preempt.size(), 1u);
      EXPECT_EQ(plan.preempt[0]->in.rid, "newer");
    } else {
      EXPECT_TRUE(plan.preempt.empty());
    }
    run_until_idle();
    for (const auto& r : {older, newer, late}) EXPECT_EQ(answers_[r.rid].ids, alone(r, scheduler_->max_req_len()).ids);
    EXPECT_EQ(answers_["newer"].retractions, priority > 10 ? 1 : 0);
  }
}

TEST_F(PriorityTest, TheUrgentTakeTheTokensOfAsManyAsTheyNeed) {
  auto options = with_priorities();
  options.kv_slots = 101;
  options.chunked_prefill_size = 0;
  make(options);
  for (int i = 0; i < 3; ++i) scheduler_->add(urgent(fmt::format("small{}", i), i, 20, 8));
  step();
  ASSERT_EQ(scheduler_->snapshot().num_running_reqs, 3);
  const auto big = urgent("big", 100, 60, 8);
  scheduler_->add(big);
  const StepPlan plan = scheduler_->plan();
  ASSERT_EQ(plan.preempt.size(), 2u) << "one is not enough, three are too many";
  EXPECT_EQ(plan.preempt[0]->in.rid, "small0");
  EXPECT_EQ(plan.preempt[1]->in.rid, "small1");
  run_until_idle();
  EXPECT_EQ(answers_["big"].ids, alone(big, scheduler_->max_req_len()).ids);
}

TEST_F(PriorityTest, AFullQueueGivesUpItsLeastUrgentRequest) {
  auto options = with_priorities();
  options.max_queued_requests = 2;
  make(options);
  scheduler_->add(urgent("low", 1));
  scheduler_->add(urgent("high", 5));
  scheduler_->add(urgent("same", 1));
  collect();
  EXPECT_EQ(answers_["same"].finish.message, "The request queue is full.");
  scheduler_->add(urgent("middle", 3));
  collect();
  EXPECT_EQ(answers_["low"].finish.message, "The request is aborted by a higher priority request.");
  EXPECT_EQ(answers_["low"].finish.status_code, 503);
  run_until_idle();
  EXPECT_EQ(answers_["middle"].finish.kind, FinishKind::kLength);
  EXPECT_EQ(answers_["high"].finish.kind, FinishKind::kLength);
}

TEST_F(PriorityTest, PoliciesOrderTheQueue) {
  auto options = small();
  options.chunked_prefill_size = 0;
  const auto add = [&](const char* rid, int64_t max_new, std::string key = "") {
    auto r = request(rid, ids(5, rid[0]), max_new);
    r.routing_key = std::move(key);
    scheduler_->add(r);
  };
  options.policy = find_schedule_policy("lof");
  make(options);
  add("short", 3);
  add("long", 9);
  EXPECT_EQ(planned(), list({"long", "short"}));
  run_until_idle();

  options.policy = find_schedule_policy("routing-key");
  make(options);
  add("running", 9, "session");
  step();
  add("stranger", 3);
  add("friend", 3, "session");
  EXPECT_EQ(planned(), list({"friend", "stranger"}));
  run_until_idle();
}

// Two prefixes in the cache; of those that wait, more share the second.
TEST_F(PriorityTest, DfsWeightKeepsSubtreesTogether) {
  auto options = small();
  options.policy = find_schedule_policy("dfs-weight");
  options.chunked_prefill_size = 0;
  options.kv_slots = 1001;
  options.max_running_requests = 8;
  make(options);
  for (const int32_t first : {1, 20}) scheduler_->add(request(fmt::format("warm{}", first), ids(40, first), 0));
  run_until_idle();
  const auto add = [&](const char* rid, int32_t first, int32_t last) {
    auto tokens = ids(40, first);
    tokens.push_back(last);
    scheduler_->add(request(rid, tokens, 1));
  };
  add("a1", 1, 7);
  add("b1", 20, 8);
  add("a2", 1, 9);
  add("b2", 20, 10);
  add("b3", 20, 11);
  EXPECT_EQ(planned(), list({"b1", "b2", "b3", "a1", "a2"}));
  run_until_idle();
}

// fcfs lets nobody overtake: while requests keep coming, each starts before those that came after it.
TEST_F(PriorityTest, FcfsStarvesNobodyUnderEndlessArrivals) {
  auto options = small();
  options.kv_slots = 101;
  make(options);
  Rng rng(/*seed=*/5);
  std::vector<std::string> started;
  int sent = 0;
  for (int i = 0; i < 3000; ++i) {
    if (scheduler_->snapshot().num_waiting_reqs < 10) {
      // A long one now and then, which fits only when nearly nothing else runs.
      const int64_t prompt = rng.below(5) == 0 ? 80 : 3;
      scheduler_->add(request(fmt::format("r{}", sent++), ids(prompt, static_cast<int32_t>(rng.below(40))), 6));
    }
    const StepPlan plan = scheduler_->plan();
    for (const auto& s : plan.sequences) {
      if (s.request->phase == Request::Phase::kWaiting && s.request->retractions == 0)
        started.push_back(s.request->in.rid);
    }
    step();
  }
  ASSERT_GT(started.size(), 200u);
  for (size_t i = 0; i < started.size(); ++i) ASSERT_EQ(started[i], fmt::format("r{}", i));
}

}  // namespace
}  // namespace sluice::engine
