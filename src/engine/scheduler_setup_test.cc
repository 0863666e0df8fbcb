// From a flag to what the scheduler does.
#include "engine/scheduler_setup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/scheduler_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class SchedulerSetupTest : public SchedulerTest {
 protected:
  // Of a rank with 200 tokens and four places.
  SchedulerOptions of(std::vector<std::string> flags) {
    flags.insert(flags.begin(), "--model=m");
    const auto parsed = engine_option_table().parse(flags, true);
    EXPECT_TRUE(parsed.ok()) << parsed.error().message;
    const auto checked = check_engine_options(*parsed);
    EXPECT_TRUE(checked.ok()) << checked.error().message;
    model_.context_length = 150;
    return scheduler_options(*parsed, plan_, model_, tuning_, environment_, place_);
  }
  void make_of(std::vector<std::string> flags) { make(of(std::move(flags))); }
  void add(const std::string& rid, int64_t prompt = 4, std::optional<int64_t> priority = {}, int64_t max_new = 8) {
    auto r = request(rid, ids(prompt, 3 * rid.front()), max_new);
    r.priority = priority;
    scheduler_->add(r);
  }
  std::vector<std::string> planned() const {
    std::vector<std::string> rids;
    for (const auto& s : scheduler_->plan().sequences) rids.push_back(s.request->in.rid);
    return rids;
  }
  int64_t planned_tokens() const {
    int64_t tokens = 0;
    for (const auto& s : scheduler_->plan().sequences) tokens += s.new_tokens;
    return tokens;
  }

  MemoryPlan plan_{.max_total_tokens = 200, .max_running_requests = 4, .max_req_len = 149};
  models::ModelInfo model_;
  SchedulerTuning tuning_;
  ServerEnvironment environment_;
  SchedulerPlace place_;
};

TEST_F(SchedulerSetupTest, MaxQueuedRequests) {
  make_of({"--max-queued-requests=2"});
  for (const char* rid : {"a", "b", "c"}) add(rid);
  run_until_idle();
  EXPECT_EQ(answers_["b"].finish.kind, FinishKind::kLength);
  EXPECT_EQ(answers_["c"].finish.status_code, 503);
  EXPECT_THAT(answers_["c"].finish.message, HasSubstr("queue is full"));
  make_of({});
  for (const char* rid : {"a", "b", "c"}) add(rid);
  run_until_idle();
  EXPECT_EQ(answers_["c"].finish.kind, FinishKind::kLength) << "any number waits";
}

TEST_F(SchedulerSetupTest, PrefillMaxRequests) {
  make_of({"--prefill-max-requests=2"});
  for (const char* rid : {"a", "b", "c"}) add(rid);
  EXPECT_THAT(planned(), ElementsAre("a", "b"));
  make_of({});
  for (const char* rid : {"a", "b", "c"}) add(rid);
  EXPECT_THAT(planned(), ElementsAre("a", "b", "c"));
}

TEST_F(SchedulerSetupTest, MaxPrefillTokens) {
  make_of({"--max-prefill-tokens=15"});
  for (const char* rid : {"a", "b", "c"}) add(rid, 10);
  EXPECT_LT(planned().size(), 3u);
  make_of({"--max-prefill-tokens=100"});
  for (const char* rid : {"a", "b", "c"}) add(rid, 10);
  EXPECT_EQ(planned_tokens(), 30);
}

TEST_F(SchedulerSetupTest, ChunkedPrefillSize) {
  make_of({"--chunked-prefill-size=16"});
  add("a", 40);
  EXPECT_EQ(planned_tokens(), 16);
  make_of({"--chunked-prefill-size=-1"});
  add("a", 40);
  EXPECT_EQ(planned_tokens(), 40);
}

TEST_F(SchedulerSetupTest, SchedulePolicy) {
  make_of({"--schedule-policy=lof"});
  add("few", 4, {}, 2);
  add("many", 4, {}, 20);
  EXPECT_THAT(planned(), ElementsAre("many", "few"));
  make_of({"--schedule-policy=fcfs"});
  add("few", 4, {}, 2);
  add("many", 4, {}, 20);
  EXPECT_THAT(planned(), ElementsAre("few", "many"));
}

TEST_F(SchedulerSetupTest, EnablePriorityScheduling) {
  for (const char* flag : {"--enable-priority-scheduling", "--schedule-policy=priority"}) {
    make_of({flag});
    add("low", 4, 1);
    add("high", 4, 2);
    EXPECT_THAT(planned(), ElementsAre("high", "low")) << flag;
  }
  make_of({});
  add("low", 4, 1);
  add("high", 4, 2);
  EXPECT_THAT(planned(), ElementsAre("low", "high"));
}

TEST_F(SchedulerSetupTest, ScheduleLowPriorityValuesFirst) {
  make_of({"--enable-priority-scheduling", "--schedule-low-priority-values-first"});
  add("two", 4, 2);
  add("one", 4, 1);
  EXPECT_THAT(planned(), ElementsAre("one", "two"));
}

TEST_F(SchedulerSetupTest, PrioritySchedulingPreemptionThreshold) {
  for (const bool taken : {true, false}) {
    make_of(
        {"--enable-priority-scheduling", fmt::format("--priority-scheduling-preemption-threshold={}", taken ? 4 : 5)});
    for (const char* rid : {"a", "b", "c", "d"}) add(rid, 4, 0, 40);
    step();
    add("urgent", 4, 5);
    EXPECT_EQ(scheduler_->plan().preempt.size(), taken ? 1u : 0u);
  }
}

TEST_F(SchedulerSetupTest, AbortOnPriorityWhenDisabled) {
  make_of({"--abort-on-priority-when-disabled"});
  add("a", 4, 1);
  collect();
  EXPECT_EQ(answers_["a"].finish.status_code, 503);
}

TEST_F(SchedulerSetupTest, DisableRadixCache) {
  for (const bool disabled : {false, true}) {
    make_of(disabled ? std::vector<std::string>{"--disable-radix-cache"} : std::vector<std::string>{});
    for (const char* rid : {"first", "fourth"}) {  // they begin alike
      add(rid, 20);
      run_until_idle();
    }
    EXPECT_EQ(answers_["fourth"].cached_tokens > 0, !disabled);
  }
}

TEST_F(SchedulerSetupTest, RadixEvictionPolicy) {
  EXPECT_EQ(of({"--radix-eviction-policy=lfu"}).radix.eviction, RadixOptions::Eviction::kLeastFrequentlyUsed);
  EXPECT_EQ(of({"--radix-eviction-policy=lru"}).radix.eviction, RadixOptions::Eviction::kLeastRecentlyUsed);
}

TEST_F(SchedulerSetupTest, PageSize) {
  const SchedulerOptions options = of({"--page-size=8"});
  EXPECT_EQ(options.kv_slots, 208) << "with the page that padding is written to";
  make(options);
  for (const char* rid : {"first", "fourth"}) {
    add(rid, 20);
    run_until_idle();
  }
  EXPECT_EQ(answers_["fourth"].cached_tokens, 16) << "whole pages";
}

TEST_F(SchedulerSetupTest, ScheduleConservativeness) {
  tuning_.initial_ratio = 0.5;
  make_of({"--schedule-conservativeness=0.5"});
  EXPECT_DOUBLE_EQ(scheduler_->new_token_ratio(), 0.25);
}

TEST_F(SchedulerSetupTest, EnableMixedChunk) {
  for (const bool mixed : {false, true}) {
    make_of(mixed ? std::vector<std::string>{"--enable-mixed-chunk", "--mixed-chunk-gap=50"}
                  : std::vector<std::string>{});
    add("runs", 4, {}, 40);
    step();
    step();
    add("comes", 20);
    const auto kind = scheduler_->plan().kind;
    EXPECT_EQ(kind == StepPlan::Kind::kPrefill, !mixed);
  }
  EXPECT_EQ(of({"--enable-mixed-chunk", "--mixed-chunk-gap=50"}).mixed_chunk_gap, 50);
}

TEST_F(SchedulerSetupTest, WhatIsKnownWithoutFlags) {
  environment_.waiting_timeout = std::chrono::seconds(3);
  environment_.running_timeout = std::chrono::seconds(5);
  place_ = {.joint_steps = true, .keep_routed_experts = true, .publish_events = true, .seed = 77};
  plan_.kept_states = 6;
  plan_.answer_bytes = 1234;
  const SchedulerOptions options = of({});
  EXPECT_EQ(options.waiting_timeout, std::chrono::seconds(3));
  EXPECT_EQ(options.running_timeout, std::chrono::seconds(5));
  EXPECT_TRUE(options.joint_steps && options.keep_routed_experts && options.radix.record_events);
  EXPECT_EQ(options.seed, 77u);
  EXPECT_EQ(options.radix.state_rows, 6);
  EXPECT_EQ(options.radix.first_state_row, 4);
  EXPECT_EQ(options.most_answer_bytes, 1234);
  EXPECT_EQ(options.max_running_requests, 4);
  EXPECT_EQ(options.context_length, 150);
}

// Of a model with states whose plan has room for none but those that run.
TEST_F(SchedulerSetupTest, PrefixesWithoutRoomForTheirStatesAreNotKept) {
  model_.state_bytes_per_sequence = 8;
  EXPECT_FALSE(of({}).prefix_cache);
  plan_.kept_states = 1;
  EXPECT_TRUE(of({}).prefix_cache);
}

}  // namespace
}  // namespace sluice::engine
