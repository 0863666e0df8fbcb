#include "testing/sim_engine.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "base/rng.h"

namespace sluice::testing {
namespace {

using namespace std::chrono_literals;

std::vector<uint64_t> tokens(int64_t n, uint64_t first = 1) {
  std::vector<uint64_t> out(n);
  std::iota(out.begin(), out.end(), first);
  return out;
}

std::vector<SimEngine::Emission> run_all(SimEngine& engine) {
  std::vector<SimEngine::Emission> all;
  while (engine.has_work()) {
    for (const auto& emission : engine.step()) all.push_back(emission);
    engine.check_invariants();
  }
  return all;
}

TEST(SimEngineTest, PrefillCostsTheUncachedTokensAndDecodeTheBatch) {
  SimEngine engine({.prefill_tokens_per_s = 1000, .decode_base = 5ms, .decode_per_request = 1ms});
  ASSERT_TRUE(engine.submit(tokens(160), tokens(3, 1000)).ok());
  EXPECT_EQ(engine.step().size(), 1u);  // 160 tokens at 1000 / s give the first token
  EXPECT_EQ(engine.now(), 160ms);
  EXPECT_EQ(engine.step().at(0).tokens, 2);
  EXPECT_EQ(engine.now(), 166ms);
  EXPECT_TRUE(engine.step().at(0).finished);
  EXPECT_EQ(engine.now(), 172ms);
  EXPECT_FALSE(engine.has_work());

  // The same prompt again: all but the last block is cached, since the last token is always computed.
  ASSERT_TRUE(engine.submit(tokens(160), tokens(1, 1000)).ok());
  const auto emissions = engine.step();
  ASSERT_EQ(emissions.size(), 1u);
  EXPECT_EQ(emissions[0].cached_tokens, 144);
  EXPECT_EQ(engine.now(), 172ms + 16ms);
}

TEST(SimEngineTest, ALongPromptIsComputedInChunksBesideDecodingRequests) {
  SimEngine engine({.prefill_tokens_per_s = 1e6, .prefill_chunk = 100});
  const auto quick = engine.submit(tokens(10), tokens(50, 1000)).value();
  engine.step();
  const auto large = engine.submit(tokens(250, 5000), tokens(1, 9000)).value();
  std::vector<SimEngine::Id> order;
  for (int i = 0; i < 3; ++i) {
    for (const auto& emission : engine.step()) order.push_back(emission.id);
  }
  EXPECT_EQ(order, (std::vector<SimEngine::Id>{quick, quick, quick, large}));
}

TEST(SimEngineTest, AFollowingTurnFindsTheAnswerOfTheOneBefore) {
  SimEngine engine({.block_size = 4});
  ASSERT_TRUE(engine.submit(tokens(16), tokens(9, 100)).ok());
  run_all(engine);
  auto turn = tokens(16);
  const auto answer = tokens(9, 100);
  turn.insert(turn.end(), answer.begin(), answer.end());
  turn.push_back(777);
  EXPECT_EQ(engine.match(turn), 24);  // the ninth answer token was never computed
}

TEST(SimEngineTest, TheLeastRecentlyUsedPrefixGoesFirstAndLeavesGoBeforeRoots) {
  SimEngine engine({.kv_tokens = 64, .block_size = 4});
  const auto serve = [&](uint64_t first) {
    ASSERT_TRUE(engine.submit(tokens(20, first), tokens(1, 9)).ok());
    run_all(engine);
  };
  serve(1000);
  serve(2000);
  serve(1000);  // used again: 2000 is the older one now
  serve(3000);
  serve(4000);
  EXPECT_EQ(engine.match(tokens(20, 1000)) + engine.match(tokens(20, 2000)), 16);
  EXPECT_EQ(engine.match(tokens(20, 2000)), 0);
  EXPECT_EQ(engine.match(tokens(20, 4000)), 16);
}

TEST(SimEngineTest, RequestsWaitForTheKvPoolInTheirOrder) {
  SimEngine engine({.kv_tokens = 64, .block_size = 16});
  const auto a = engine.submit(tokens(40), tokens(8, 100)).value();
  const auto b = engine.submit(tokens(40, 500), tokens(8, 100)).value();
  engine.step();
  EXPECT_EQ(engine.load().running, 1);
  EXPECT_EQ(engine.load().waiting, 1);
  EXPECT_EQ(engine.load().used_tokens, 48);
  EXPECT_EQ(engine.load().waiting_tokens, 40);
  std::vector<SimEngine::Id> finished;
  for (const auto& emission : run_all(engine)) {
    if (emission.finished) finished.push_back(emission.id);
  }
  EXPECT_EQ(finished, (std::vector<SimEngine::Id>{a, b}));
  EXPECT_EQ(engine.load().used_tokens, 0);
}

TEST(SimEngineTest, RefusesWhatCanNeverFitAndWhatTheQueueCannotHold) {
  SimEngine engine({.max_running = 1, .max_queued = 1, .kv_tokens = 64, .context_length = 48});
  EXPECT_EQ(engine.submit(tokens(48), tokens(1)).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(engine.submit({}, tokens(1)).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(engine.submit(tokens(1), {}).error().code, ErrorCode::kInvalidArgument);
  ASSERT_TRUE(engine.submit(tokens(4), tokens(4)).ok());
  EXPECT_EQ(engine.submit(tokens(4), tokens(4)).error().code, ErrorCode::kQueueFull);
}

TEST(SimEngineTest, AnAbortGivesEverythingBack) {
  SimEngine engine({.max_running = 1});
  const auto a = engine.submit(tokens(100), tokens(100)).value();
  const auto b = engine.submit(tokens(100), tokens(100)).value();
  ASSERT_TRUE(engine.begin());
  EXPECT_TRUE(engine.abort(a));  // in the middle of a step
  EXPECT_TRUE(engine.commit().empty());
  EXPECT_TRUE(engine.abort(b));
  EXPECT_FALSE(engine.abort(b));
  EXPECT_FALSE(engine.has_work());
  EXPECT_EQ(engine.load().used_tokens, 0);
  EXPECT_EQ(engine.load().total_aborted, 2);
  engine.check_invariants();
}

TEST(SimEngineTest, FlushIsRefusedWhileBusyAndEmptiesTheCache) {
  SimEngine engine({});
  ASSERT_TRUE(engine.submit(tokens(100), tokens(2)).ok());
  EXPECT_FALSE(engine.flush());
  run_all(engine);
  EXPECT_GT(engine.match(tokens(100)), 0);
  EXPECT_TRUE(engine.flush());
  EXPECT_EQ(engine.match(tokens(100)), 0);
  EXPECT_EQ(engine.load().cached_tokens, 0);
}

// Random submits, aborts and steps on a small pool: the books balance after each, every request that is not aborted
// gets exactly its tokens in order, and at the end nothing is held.
TEST(SimEngineTest, BooksBalanceUnderRandomOperations) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    SimEngine engine({.prefill_chunk = 64,
                      .max_running = 5,
                      .kv_tokens = 400,
                      .block_size = 4,
                      .context_length = 300,
                      .prefix_cache = seed % 5 != 0});
    std::map<SimEngine::Id, int64_t> wanted;
    std::map<SimEngine::Id, int64_t> got;
    const auto take = [&](const std::vector<SimEngine::Emission>& emissions) {
      for (const auto& emission : emissions) {
        ASSERT_TRUE(wanted.contains(emission.id));
        ASSERT_EQ(emission.tokens, ++got[emission.id]);
        ASSERT_EQ(emission.finished, emission.tokens == wanted[emission.id]);
      }
    };
    for (int i = 0; i < 1500; ++i) {
      const auto action = rng.below(10);
      if (action < 3) {
        // Few first tokens, so that prompts share prefixes of random lengths.
        auto prompt = tokens(1 + rng.below(150), 1000 * rng.below(4));
        const auto output = 1 + static_cast<int64_t>(rng.below(20));
        if (auto id = engine.submit(prompt, tokens(output, 50'000)); id.ok()) wanted[*id] = output;
      } else if (action == 3 && !wanted.empty()) {
        auto it = wanted.lower_bound(1 + rng.below(wanted.rbegin()->first));
        if (engine.abort(it->first)) {
          got.erase(it->first);
          wanted.erase(it);
        }
      } else {
        take(engine.step());
      }
      engine.check_invariants();
    }
    while (engine.has_work()) take(engine.step());
    engine.check_invariants();
    EXPECT_EQ(got, wanted);
    EXPECT_EQ(engine.load().used_tokens, 0);
  }
}

}  // namespace
}  // namespace sluice::testing
