#include "testing/cache_worker.h"

#include <gtest/gtest.h>

#include <string>

namespace sluice::testing {
namespace {

using namespace std::chrono_literals;

std::vector<uint64_t> blocks_of(const std::string& text) { return block_hashes(text, 4); }

TEST(BlockCacheTest, MatchesWholeBlocksFromTheBeginning) {
  BlockCache cache(10);
  cache.insert(blocks_of("aaaabbbbcc"));
  EXPECT_EQ(cache.size(), 2u) << "a rest that fills no block is not held";
  EXPECT_EQ(cache.match(blocks_of("aaaabbbbcccc")), 2u);
  EXPECT_EQ(cache.match(blocks_of("aaaaxxxxbbbb")), 1u);
  EXPECT_EQ(cache.match(blocks_of("bbbb")), 0u) << "a block is known by all that comes before it";
}

TEST(BlockCacheTest, DropsTheLeastRecentlyUsedAndNeverAParentBeforeItsChild) {
  BlockCache cache(4);
  cache.insert(blocks_of("aaaabbbb"));
  cache.insert(blocks_of("aaaacccc"));
  cache.insert(blocks_of("aaaabbbb"));  // in use again
  cache.insert(blocks_of("ddddeeee"));  // five blocks: cccc goes
  EXPECT_EQ(cache.match(blocks_of("aaaabbbb")), 2u);
  EXPECT_EQ(cache.match(blocks_of("aaaacccc")), 1u);
  EXPECT_EQ(cache.match(blocks_of("ddddeeee")), 2u);
  cache.insert(blocks_of("ffff"));
  EXPECT_EQ(cache.match(blocks_of("aaaabbbb")), 1u) << "the leaf went, not what it stands on";
}

TEST(CacheWorkerTest, ComputesInOrderAndPaysForWhatIsNotCached) {
  CacheWorker worker({.kv_blocks = 100, .decode_slots = 1});
  const std::string text(128, 'x');  // 2 blocks, 32 tokens
  const auto job = [&](uint64_t id) {
    return WorkerJob{.id = id, .blocks = block_hashes(text, 64), .prompt_tokens = 40, .decode = 10ms};
  };
  EXPECT_EQ(worker.true_cost(job(1), 0ms), 1800us) << "1 ms and 40 tokens of 20 us";
  worker.submit(job(1), 0ms);
  EXPECT_EQ(worker.true_cost(job(2), 0ms), 1800us + 1160us) << "the first will have cached 32 tokens";
  worker.submit(job(2), 0ms);
  EXPECT_EQ(worker.next_event(), 1800us);
  auto events = worker.advance(1800us);
  ASSERT_EQ(events.first_tokens.size(), 1u);
  EXPECT_EQ(events.first_tokens[0].cached_tokens, 0);
  events = worker.advance(1800us + 1160us);
  ASSERT_EQ(events.first_tokens.size(), 1u);
  EXPECT_EQ(events.first_tokens[0].cached_tokens, 32);
  events = worker.advance(11800us);
  ASSERT_EQ(events.finished.size(), 1u);
  EXPECT_EQ(worker.next_event(), 21800us) << "the second had to wait for the slot to decode";
  EXPECT_EQ(worker.advance(1s).finished.size(), 1u);
  EXPECT_EQ(worker.open(), 0);
}

TEST(CacheWorkerTest, AJobThatIsAbortedMakesRoomAndCachesNothing) {
  CacheWorker worker({.kv_blocks = 100, .decode_slots = 1});
  const auto job = [&](uint64_t id, char letter) {
    return WorkerJob{
        .id = id, .blocks = block_hashes(std::string(128, letter), 64), .prompt_tokens = 32, .decode = 10ms};
  };
  for (uint64_t id = 1; id <= 4; ++id) worker.submit(job(id, static_cast<char>('a' + id % 2)), 0ms);
  EXPECT_TRUE(worker.abort(1, 500us)) << "while it is computed";
  EXPECT_EQ(worker.next_event(), 500us + 1640us) << "the next begins at once";
  EXPECT_TRUE(worker.abort(3, 600us)) << "while it waits";
  EXPECT_EQ(worker.advance(5ms).first_tokens.size(), 2u);
  EXPECT_EQ(worker.match(job(0, 'b').blocks), 0) << "what was aborted was not computed";
  EXPECT_EQ(worker.match(job(0, 'a').blocks), 32);
  EXPECT_TRUE(worker.abort(2, 5ms)) << "while it decodes";
  EXPECT_EQ(worker.next_event(), 15ms) << "the one without a slot takes its place";
  EXPECT_TRUE(worker.abort(4, 6ms));
  EXPECT_FALSE(worker.abort(4, 6ms));
  EXPECT_EQ(worker.open(), 0);
}

TEST(BlockCacheTest, TokensMakeBlocksAsTextsDo) {
  const std::vector<uint64_t> tokens{1, 2, 3, 4, 5}, other{1, 2, 3, 5};
  const auto blocks = block_hashes(tokens, 2);
  ASSERT_EQ(blocks.size(), 2u);
  EXPECT_EQ(block_hashes(other, 2)[0], blocks[0]);
  EXPECT_NE(block_hashes(other, 2)[1], blocks[1]);
}

}  // namespace
}  // namespace sluice::testing
