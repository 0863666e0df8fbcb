#include "gateway/kv_events/stream.h"

#include <gtest/gtest.h>

#include "gateway/kv_events/kv_publisher_fixture.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;
using Message = PublishingCache::Message;
using Tokens = PublishingCache::Tokens;

constexpr uint32_t kWorker = 3;

class KvStreamTest : public ::testing::Test {
 protected:
  KvStream& stream(bool can_replay = true, std::optional<int64_t> block_size = std::nullopt) {
    stream_.emplace(KvPublisher{.worker = kWorker, .can_replay = can_replay, .block_size = block_size}, index_);
    return *stream_;
  }
  // Time goes on in steps, and questions are answered at once.
  void pass(Duration time) {
    const TimePoint end = now_ + time;
    for (; now_ < end; now_ += 10ms) ask();
    ask();
    const auto next = stream_->next_due(now_);
    EXPECT_TRUE(!next || *next > now_) << "a thread that waits for it would not sleep";
  }
  void ask() {
    const auto due = stream_->due(now_);
    if (!due.ask_from || !answers_) return;
    ++questions_;
    for (const Message& message : cache_.buffer()) {
      if (message.sequence >= *due.ask_from) stream_->replayed(message.sequence, message.payload, now_);
    }
    stream_->replay_ended(now_);
  }
  void send(const Message& message) { stream_->received(message.sequence, message.payload, now_); }
  void connect() {
    stream_->connected(now_);
    ask();
  }
  bool is_known() { return cache_.is_known_to(index_, kWorker); }

  PublishingCache cache_{1, 200};
  routing::BlockIndex index_{8 << 20};
  TimePoint now_{std::chrono::hours(1)};
  std::optional<KvStream> stream_;
  bool answers_ = true;
  int questions_ = 0;
};

TEST_F(KvStreamTest, KnowsAllOfACacheThatItHeardFromItsBeginning) {
  stream();
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kNothing);
  connect();
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kAll) << "nothing was published yet";
  for (int i = 0; i < 100; ++i) send(cache_.step());
  EXPECT_TRUE(is_known());
  EXPECT_EQ(index_.blocks_of(kWorker), cache_.blocks());
  EXPECT_EQ(stream_->block_size(), 4);
  EXPECT_EQ(stream_->counts().batches, 100U);
  send(cache_.clear());
  EXPECT_EQ(index_.blocks_of(kWorker), 0U);
}

TEST_F(KvStreamTest, WhatWasPublishedBeforeIsAskedFor) {
  for (int i = 0; i < 100; ++i) cache_.step();
  stream();
  connect();
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kAll);
  EXPECT_TRUE(is_known());
}

TEST_F(KvStreamTest, ABufferThatBeginsLateGivesAPart) {
  for (int i = 0; i < 300; ++i) cache_.step();
  stream();
  connect();
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kPart);
  EXPECT_NE(stream_->why(), "");
  for (const Tokens& prompt : cache_.prompts()) {
    EXPECT_LE(PublishingCache::depth_in(index_, kWorker, prompt), cache_.depth(prompt)) << "never more than there is";
  }
  send(cache_.clear());
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kAll) << "an empty cache is known wholly";
  for (int i = 0; i < 50; ++i) send(cache_.step());
  EXPECT_TRUE(is_known());
}

// A tenth of the messages each is lost, comes twice or comes late. What is lost at the very end is found too.
TEST_F(KvStreamTest, R13AgreesWithTheOracleWithinASecondOfTheLastEvent) {
  Rng rng(17);
  for (int round = 0; round < 20; ++round) {
    cache_.restart();
    stream();
    connect();
    std::vector<Message> late;
    for (int i = 0; i < 150; ++i) {
      const Message message = cache_.step();
      const uint64_t fate = rng.below(10);
      if (fate == 0) continue;
      if (fate == 2) {
        late.push_back(message);
        continue;
      }
      send(message);
      if (fate == 1) send(message);
      if (!late.empty() && rng.below(3) == 0) {
        send(late.back());
        late.pop_back();
      }
      if (rng.below(4) == 0) pass(10ms);
    }
    pass(1s);
    ASSERT_TRUE(is_known()) << "round " << round;
    ASSERT_EQ(index_.blocks_of(kWorker), cache_.blocks());
    ASSERT_EQ(stream_->knowledge(), KvKnowledge::kAll);
    ASSERT_GT(stream_->counts().gaps, 0U);
    ASSERT_GT(stream_->counts().duplicates, 0U);
    ASSERT_EQ(stream_->counts().resyncs, 0U);
  }
  EXPECT_LT(questions_, 20 * 60) << "one question fills many gaps";
}

TEST_F(KvStreamTest, R13APublisherThatRestartsIsHeardAnew) {
  stream();
  connect();
  for (int i = 0; i < 80; ++i) send(cache_.step());
  cache_.restart();
  stream_->disconnected();
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kNothing);
  for (int i = 0; i < 5; ++i) cache_.step();
  connect();
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kAll);
  EXPECT_TRUE(is_known());
  EXPECT_EQ(index_.blocks_of(kWorker), cache_.blocks());
}

TEST_F(KvStreamTest, R13ARestartThatNobodySaysShowsInTheFirstMessage) {
  stream();
  connect();
  for (int i = 0; i < 80; ++i) send(cache_.step());
  cache_.restart();
  send(cache_.step());
  send(cache_.step());
  pass(1s);
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kAll);
  EXPECT_TRUE(is_known());
}

TEST_F(KvStreamTest, AConnectionThatBrokeForAMomentCostsNothing) {
  for (int i = 0; i < 150; ++i) cache_.step();
  stream();
  connect();
  ASSERT_EQ(stream_->knowledge(), KvKnowledge::kAll);
  stream_->disconnected();
  for (int i = 0; i < 150; ++i) cache_.step();  // the first ones are in the buffer no longer
  ASSERT_GT(cache_.buffer().front().sequence, 0U);
  connect();
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kAll) << "the same process: what was heard before still counts";
  EXPECT_TRUE(is_known());
}

TEST_F(KvStreamTest, AnotherProcessWithAsManyMessagesIsNotTakenForTheOldOne) {
  stream();
  connect();
  for (int i = 0; i < 250; ++i) send(cache_.step());
  stream_->disconnected();
  cache_.restart();
  for (int i = 0; i < 300; ++i) cache_.step();
  connect();
  pass(100ms);
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kPart);
  for (const Tokens& prompt : cache_.prompts()) {
    EXPECT_LE(PublishingCache::depth_in(index_, kWorker, prompt), cache_.depth(prompt));
  }
}

TEST_F(KvStreamTest, R13AGapThatTheBufferCannotFillDropsWhatWasKnown) {
  stream();
  connect();
  for (int i = 0; i < 50; ++i) send(cache_.step());
  for (int i = 0; i < 250; ++i) cache_.step();  // lost, and no longer in the buffer
  send(cache_.step());
  pass(1s);
  EXPECT_EQ(stream_->counts().resyncs, 1U);
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kPart);
  for (const Tokens& prompt : cache_.prompts()) {
    EXPECT_LE(PublishingCache::depth_in(index_, kWorker, prompt), cache_.depth(prompt)) << "nothing stale";
  }
}

TEST_F(KvStreamTest, WithoutAReplayEndpointAGapEndsWhatWasKnown) {
  stream(/*can_replay=*/false);
  connect();
  send(cache_.step());
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kAll) << "the first message is the publisher's first";
  cache_.step();
  send(cache_.step());
  pass(100ms);
  EXPECT_EQ(stream_->counts().resyncs, 0U) << "it may still come";
  pass(200ms);
  EXPECT_EQ(stream_->counts().resyncs, 1U);
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kPart);
  EXPECT_EQ(questions_, 0);
}

TEST_F(KvStreamTest, AReplayEndpointThatIsSilentIsNotWaitedForForEver) {
  answers_ = false;
  stream();
  connect();
  send(cache_.step());
  pass(2s);
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kAll) << "its first message was heard";
  cache_.step();
  send(cache_.step());
  pass(500ms);
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kPart);
  EXPECT_NE(stream_->why(), "");
}

TEST_F(KvStreamTest, WhileASilentReplayEndpointIsLeftAloneNothingIsDue) {
  answers_ = false;
  stream();
  connect();
  for (int i = 0; i < 20; ++i) {
    send(cache_.step());
    pass(400ms);
    pass(600ms);
  }
}

TEST_F(KvStreamTest, R14BlocksOfAnotherSizeAreLeftOutAndTold) {
  stream(true, /*block_size=*/16);
  connect();
  for (int i = 0; i < 20; ++i) send(cache_.step());
  EXPECT_EQ(index_.blocks_of(kWorker), 0U);
  EXPECT_EQ(stream_->other_block_size(), 4);
  EXPECT_GT(stream_->counts().ignored, 0U);
}

TEST_F(KvStreamTest, R16TheOtherGroupsOfAHybridCacheSayNothingOfTheOneThatCounts) {
  stream();
  connect();
  const auto send_event = [&](protocol::KvEvent event) {
    protocol::KvEventBatch batch;
    batch.events.push_back(std::move(event));
    send(cache_.publish(batch));
  };
  const auto stored = [](uint64_t hash, std::optional<uint64_t> parent, Tokens tokens, int64_t group,
                         std::string kind = "") {
    const auto size = static_cast<int64_t>(tokens.size());
    return protocol::KvEvent{.kind = protocol::KvEvent::Kind::kStored,
                             .hashes = {hash},
                             .parent = parent,
                             .token_ids = std::move(tokens),
                             .block_size = size,
                             .group = group,
                             .group_kind = std::move(kind)};
  };
  const Tokens prompt{1, 2, 3, 4, 5, 6, 7, 8};
  // A group with a window comes first, with the same hashes and with others.
  send_event(stored(10, std::nullopt, {1, 2, 3, 4}, 1, "sliding_window"));
  send_event(stored(10, std::nullopt, {1, 2, 3, 4}, 0, "full_attention"));
  send_event(stored(11, 10, {5, 6, 7, 8}, 0, "full_attention"));
  send_event(stored(11, 10, {9, 9, 9, 9}, 1, "sliding_window"));
  send_event(stored(12, std::nullopt, Tokens(16, 1), 2, "mamba"));
  send_event({.kind = protocol::KvEvent::Kind::kRemoved, .hashes = {10}, .group = 1});
  EXPECT_EQ(PublishingCache::depth_in(index_, kWorker, prompt), 2U);
  EXPECT_EQ(index_.blocks_of(kWorker), 2U);
  EXPECT_EQ(stream_->counts().ignored, 4U);
  EXPECT_EQ(stream_->block_size(), 4);
  // Groups that are not marked as such: another size, a parent that nobody has heard of, the host's memory.
  send_event({.kind = protocol::KvEvent::Kind::kStored, .hashes = {20}, .token_ids = Tokens(16, 1), .block_size = 16});
  send_event({.kind = protocol::KvEvent::Kind::kStored,
              .hashes = {21},
              .parent = 20,
              .token_ids = {1, 2, 3, 4},
              .block_size = 4});
  send_event({.kind = protocol::KvEvent::Kind::kRemoved, .hashes = {10}, .medium = "CPU_PINNED"});
  EXPECT_EQ(PublishingCache::depth_in(index_, kWorker, prompt), 2U);
  EXPECT_EQ(index_.blocks_of(kWorker), 2U);
  EXPECT_EQ(stream_->counts().unplaced, 1U);
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kAll);
  send_event({.kind = protocol::KvEvent::Kind::kRemoved, .hashes = {11}, .group = 0});
  EXPECT_EQ(PublishingCache::depth_in(index_, kWorker, prompt), 1U);
}

TEST_F(KvStreamTest, AMessageThatCannotBeReadIsCountedAndWhatFollowsIsHeard) {
  stream();
  connect();
  send(cache_.step());
  stream_->received(cache_.next(), "no MessagePack", now_);
  EXPECT_EQ(stream_->counts().unreadable, 1U);
  EXPECT_EQ(stream_->knowledge(), KvKnowledge::kPart);
  EXPECT_EQ(stream_->next_sequence(), cache_.next() + 1);
}

}  // namespace
}  // namespace sluice::gateway
