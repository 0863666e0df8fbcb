#include "gateway/kv_events/subscriber.h"

#include <gtest/gtest.h>

#include <functional>

#include "gateway/kv_events/kv_zmq_fixture.h"

namespace sluice::gateway {
namespace {

constexpr uint32_t kWorker = 5;

class KvSubscriberTest : public ::testing::Test {
 protected:
  // Looked at 4000 times.
  static bool eventually(const std::function<bool()>& condition) {
    for (int i = 0; i < 4000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }
  void subscribe(bool can_replay = true) {
    subscriber_.subscribe({.events = publisher_.events(),
                           .replay = can_replay ? publisher_.replay() : "",
                           .topic = "kv",
                           .publisher = {.worker = kWorker, .can_replay = can_replay}});
  }
  KvStreamStatus status() { return subscriber_.status(kWorker).value_or(KvStreamStatus()); }
  bool knows(KvKnowledge knowledge) {
    return eventually([&] { return status().knowledge == knowledge; });
  }
  bool agrees() {
    return eventually(
        [&] { return status().next_sequence == cache_.next() && cache_.is_known_to(view_.index, kWorker); });
  }

  PublishingCache cache_{2};
  ZmqPublisher publisher_{"kv"};
  KvView view_{8 << 20};
  KvSubscriber subscriber_{view_, real_clock()};
};

TEST_F(KvSubscriberTest, R13AgreesWithTheOracleWhenATenthIsLostDoubledAndSwapped) {
  for (int i = 0; i < 20; ++i) publisher_.publish(cache_.step());  // before anybody listens
  subscribe();
  ASSERT_TRUE(knows(KvKnowledge::kAll));
  Rng rng(3);
  std::optional<PublishingCache::Message> late;
  for (int i = 0; i < 500; ++i) {
    const auto message = cache_.step();
    const uint64_t fate = rng.below(10);
    if (fate == 0) {
      publisher_.lose(message);
      continue;
    }
    if (fate == 1 && !late) {
      publisher_.buffer(message);
      late = message;
      continue;
    }
    publisher_.publish(message);
    if (fate == 2) publisher_.send(message);
    if (late) publisher_.send(*std::exchange(late, std::nullopt));
  }
  EXPECT_TRUE(agrees()) << status().next_sequence << " of " << cache_.next();
  EXPECT_EQ(status().knowledge, KvKnowledge::kAll);
  EXPECT_GT(status().counts.gaps, 0U);
  EXPECT_GT(status().counts.duplicates, 0U);
  EXPECT_EQ(status().counts.resyncs, 0U);
  EXPECT_EQ(status().blocks, cache_.blocks());
}

TEST_F(KvSubscriberTest, R13APublisherThatRestartsIsHeardAnew) {
  subscribe();
  ASSERT_TRUE(knows(KvKnowledge::kAll));
  for (int i = 0; i < 50; ++i) publisher_.publish(cache_.step());
  ASSERT_TRUE(agrees());
  publisher_.close();
  ASSERT_TRUE(knows(KvKnowledge::kNothing));
  EXPECT_NE(status().why.find(publisher_.events()), std::string::npos) << status().why;
  cache_.restart();
  publisher_.open();
  for (int i = 0; i < 5; ++i) publisher_.publish(cache_.step());
  ASSERT_TRUE(knows(KvKnowledge::kAll));
  EXPECT_TRUE(agrees());
  EXPECT_EQ(status().blocks, cache_.blocks());
}

TEST_F(KvSubscriberTest, R13AnExpiredBufferGivesAPartAndNothingStale) {
  for (int i = 0; i < 100; ++i) publisher_.publish(cache_.step());
  publisher_.forget_before(60);
  subscribe();
  ASSERT_TRUE(knows(KvKnowledge::kPart));
  EXPECT_NE(status().why, "");
  for (const auto& prompt : cache_.prompts()) {
    EXPECT_LE(PublishingCache::depth_in(view_.index, kWorker, prompt), cache_.depth(prompt));
  }
  publisher_.publish(cache_.clear());
  ASSERT_TRUE(knows(KvKnowledge::kAll));
  publisher_.publish(cache_.step());
  EXPECT_TRUE(agrees());
}

TEST_F(KvSubscriberTest, R15NobodyAtTheEndpointIsSaidAndHeardOfLater) {
  publisher_.close();
  subscribe();
  EXPECT_TRUE(eventually([&] { return status().why.find("not connected") != std::string::npos; })) << status().why;
  EXPECT_EQ(status().knowledge, KvKnowledge::kNothing);
  publisher_.open();
  EXPECT_TRUE(knows(KvKnowledge::kAll)) << status().why;
}

TEST_F(KvSubscriberTest, AnEndpointThatIsNoneIsSaid) {
  subscriber_.subscribe({.events = "no address", .replay = "", .topic = "", .publisher = {.worker = kWorker}});
  EXPECT_TRUE(eventually([&] { return status().why.find("no address") == 0; })) << status().why;
}

TEST_F(KvSubscriberTest, WhatIsNoLongerSubscribedIsForgotten) {
  subscribe();
  ASSERT_TRUE(knows(KvKnowledge::kAll));
  for (int i = 0; i < 20; ++i) publisher_.publish(cache_.step());
  ASSERT_TRUE(agrees());
  ASSERT_GT(view_.index.held(), 0U);
  subscriber_.unsubscribe(kWorker);
  EXPECT_FALSE(subscriber_.status(kWorker));
  EXPECT_TRUE(eventually([&] { return view_.index.held() == 0; }));
}

}  // namespace
}  // namespace sluice::gateway
