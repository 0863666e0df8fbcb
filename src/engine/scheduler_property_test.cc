// What must hold whatever comes in whatever order.
#include <gtest/gtest.h>

#include "engine/scheduler_fixture.h"

namespace sluice::engine {
namespace {

// Random pools, pages, policies, arrivals, lengths, aborts and flushes. Every answer equals that of the request alone,
// each request ends, and nothing leaks.
class SchedulerPropertyTest : public SchedulerTest, public ::testing::WithParamInterface<Steps> {};

INSTANTIATE_TEST_SUITE_P(Steps, SchedulerPropertyTest,
                         ::testing::Values(Steps::kInline, Steps::kPuppet, Steps::kThread), name_of);

TEST_P(SchedulerPropertyTest, X13AgreesWithOneRequestAtATimeUnderRandomLoad) {
  uint64_t retracted = 0, evicted = 0, aborted = 0, cached = 0, chunks = 0, flushed = 0, mixed = 0, preempted = 0;
  int64_t states = 0;
  for (uint64_t seed = 1; seed <= 240; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed);
    // Most pools are so small that requests are retracted.
    constexpr int64_t kPages[] = {1, 1, 2, 8};
    const int64_t page = kPages[rng.below(4)];
    SchedulerOptions options{
        .kv_slots = 40 + page + static_cast<int64_t>(rng.below(200)),
        .page_size = page,
        .max_running_requests = 1 + static_cast<int64_t>(rng.below(7)),
        .chunked_prefill_size = rng.below(3) == 0 ? 0 : 1 + static_cast<int64_t>(rng.below(20)),
        .max_prefill_tokens = 4 + static_cast<int64_t>(rng.below(60)),
        .context_length = 100,
        .policy = &schedule_policies()[rng.below(schedule_policies().size())],
        .prefix_cache = rng.below(4) != 0,
        .radix = {.eviction = rng.below(2) ? RadixOptions::Eviction::kLeastFrequentlyUsed
                                           : RadixOptions::Eviction::kLeastRecentlyUsed},
        .conservativeness = rng.below(2) ? 0.0 : rng.uniform(),
        .seed = seed,
    };
    if (rng.below(4) == 0) options.prefill_max_requests = 1 + rng.below(3);
    if (rng.below(3) == 0) options.most_answer_bytes = 1 + static_cast<int64_t>(rng.below(20'000));
    if (rng.below(4) == 0) options.radix.state_rows = 1 + static_cast<int32_t>(rng.below(6));
    options.priorities = {.enabled = options.policy->by_priority && rng.below(2) == 0,
                          .low_first = rng.below(2) == 0,
                          .preemption_threshold = static_cast<int64_t>(rng.below(3))};
    options.mixed_chunk = rng.below(2) == 0;
    options.mixed_chunk_gap = 1.5 + 5 * rng.uniform();
    make(options, GetParam(), seed);
    // A step takes time as steps do.
    runner_->on_forward = [&](const models::StepBatch& b) {
      clock_.advance(std::chrono::microseconds(1000 + 100 * b.token_ids.size()));
    };
    std::map<std::string, GenerateRequest> sent;
    std::vector<int32_t> stem = ids(30);
    for (int event = 0; event < 150; ++event) {
      if (rng.below(3) == 0) {
        GenerateRequest r{.rid = fmt::format("r{}", event)};
        // Prompts share stems of various lengths.
        const auto longest = static_cast<uint64_t>(scheduler_->max_req_input_len() - 1);
        const auto n = 1 + rng.below(std::min<uint64_t>(longest, 50));
        const auto shared = std::min<uint64_t>(n, rng.below(31));
        r.input_ids.assign(stem.begin(), stem.begin() + static_cast<std::ptrdiff_t>(shared));
        while (r.input_ids.size() < n) r.input_ids.push_back(static_cast<int32_t>(rng.below(4)));
        auto& p = r.sampling;
        p.max_new_tokens = static_cast<int64_t>(rng.below(60));
        p.min_new_tokens = static_cast<int64_t>(rng.below(4));
        p.temperature = rng.below(2) ? 0.0 : 0.5 + rng.uniform();
        p.seed = rng.next();
        p.ignore_eos = rng.below(3) == 0;
        if (rng.below(4) == 0) p.stop = {"ab", "cca"};
        if (rng.below(4) == 0) p.stop_token_ids = {static_cast<int32_t>(rng.below(kVocab))};
        if (rng.below(4) == 0) p.frequency_penalty = rng.uniform();
        if (rng.below(4) == 0) p.top_k = 5;
        r.stream_interval = 1 + static_cast<int64_t>(rng.below(4));
        r.return_logprob = rng.below(4) == 0;
        if (rng.below(4) == 0) r.logprob_start_len = static_cast<int64_t>(rng.below(n));
        r.top_logprobs_num = static_cast<int64_t>(rng.below(3));
        if (rng.below(5) == 0) r.extra_key = "other";
        if (rng.below(2) == 0) r.priority = static_cast<int64_t>(rng.below(4));
        if (rng.below(2) == 0) r.routing_key = rng.below(2) ? "a" : "b";
        sent[r.rid] = r;
        scheduler_->add(r);
      } else if (rng.below(12) == 0 && !sent.empty()) {
        scheduler_->abort({.rid = fmt::format("r{}", rng.below(150))});
      } else if (rng.below(100) == 0) {
        scheduler_->abort({.all = true});
      } else if (rng.below(50) == 0) {
        flushed += scheduler_->flush_cache().ok();
      } else {
        if (scheduler_->in_flight() == 0) {
          const StepPlan plan = scheduler_->plan();
          mixed += plan.kind == StepPlan::Kind::kMixed;
          preempted += plan.preempt.size();
          chunks += !plan.sequences.empty() && !plan.sequences[0].last;
        }
        step();
      }
      collect();
      scheduler_->check_invariants();
    }
    run_until_idle();
    ASSERT_EQ(answers_.size(), sent.size());
    for (const auto& [rid, r] : sent) {
      SCOPED_TRACE(rid);
      const SchedulerAnswer& got = answers_[rid];
      SchedulerAnswer want = alone(r, scheduler_->max_req_len());
      ASSERT_EQ(got.finished, 1);
      if (got.finish.kind == FinishKind::kAbort) {
        ASSERT_EQ(got.finish.status_code, 0) << got.finish.message;
        ASSERT_LE(got.ids.size(), want.ids.size());
        want.ids.resize(got.ids.size());
        ASSERT_EQ(got.ids, want.ids);
        ++aborted;
        continue;
      }
      ASSERT_EQ(got.ids, want.ids);
      ASSERT_EQ(got.finish.kind, want.finish.kind);
      ASSERT_EQ(got.finish.matched_string, want.finish.matched_string);
      ASSERT_EQ(got.finish.matched_token, want.finish.matched_token);
      ASSERT_EQ(got.prompt_tokens, static_cast<int64_t>(r.input_ids.size()));
      ASSERT_LT(got.cached_tokens, got.prompt_tokens);
      // A chunk may end within a page that another request has completed by then: the rest of it is cached.
      if (options.chunked_prefill_size == 0 && !options.mixed_chunk) {
        ASSERT_EQ(got.cached_tokens % page, 0);
      }
      expect_equal(got.input_logprobs, want.input_logprobs);
      expect_equal(got.output_logprobs, want.output_logprobs);
    }
    const auto load = scheduler_->snapshot();
    EXPECT_EQ(load.num_used_tokens, 0);
    EXPECT_EQ(load.num_running_reqs + load.num_waiting_reqs, 0);
    ASSERT_TRUE(scheduler_->flush_cache().ok());
    EXPECT_EQ(scheduler_->snapshot().num_cached_tokens, 0);
    retracted += load.retracted_total;
    evicted += load.evicted_tokens_total;
    cached += load.cached_tokens_total;
    states += runner_->copied_states;
  }
  // The load reached what it was meant to reach.
  EXPECT_GT(retracted, 50u);
  EXPECT_GT(evicted, 1000u);
  EXPECT_GT(cached, 1000u);
  EXPECT_GT(aborted, 100u);
  EXPECT_GT(chunks, 100u);
  EXPECT_GT(flushed, 5u);
  EXPECT_GT(mixed, 100u);
  EXPECT_GT(preempted, 20u);
  EXPECT_GT(states, 100);
}

}  // namespace
}  // namespace sluice::engine
