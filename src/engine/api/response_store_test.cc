#include "engine/api/response_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "base/rng.h"

namespace sluice::engine {
namespace {

using protocol::ResponseState;
using protocol::ResponseStatus;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr size_t kMany = size_t{1} << 30;

ResponseState state_of(const std::string& id, ResponseStatus status, std::string text = "") {
  return {.id = id, .model = "m", .echo = "{}", .status = status, .text = std::move(text), .stored = true};
}
StoredResponse ended(const std::string& id, size_t bytes = 0) {
  return {.state = state_of(id, ResponseStatus::kCompleted), .conversation = std::string(bytes, 'x')};
}
StoredResponse going_on(const std::string& id) {
  return {.state = state_of(id, ResponseStatus::kQueued), .conversation = "", .background = true};
}
ResponseStatus status_of(ResponseStore& store, const std::string& id) { return store.find(id).value()->state.status; }

TEST(ResponseStoreTest, TheLeastRecentlyUsedGoesAndSaysSo) {
  ResponseStore store({.count = 2, .bytes = kMany});
  store.keep(ended("resp_a"));
  store.keep(ended("resp_b"));
  ASSERT_TRUE(store.find("resp_a").ok());
  store.keep(ended("resp_c"));
  EXPECT_TRUE(store.find("resp_a").ok());
  EXPECT_TRUE(store.find("resp_c").ok());
  const auto dropped = store.find("resp_b");
  ASSERT_FALSE(dropped.ok());
  EXPECT_EQ(dropped.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(dropped.error().message, HasSubstr("was dropped to make room: the latest 2"));
  const auto unknown = store.find("resp_d");
  EXPECT_EQ(unknown.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(unknown.error().message, HasSubstr("not found"));
  EXPECT_EQ(store.size().count, 2u);
  EXPECT_EQ(store.size().dropped, 1u);
}

TEST(ResponseStoreTest, BytesAreBoundedToo) {
  ResponseStore store({.count = 1000, .bytes = 100'000});
  for (int i = 0; i < 20; ++i) store.keep(ended("resp_" + std::to_string(i), 20'000));
  EXPECT_EQ(store.size().count, 4u);
  EXPECT_LE(store.size().bytes, 100'000u);
}

TEST(ResponseStoreTest, OneThatIsTooMuchByItselfIsDroppedAndNoOther) {
  ResponseStore store({.count = 1000, .bytes = 100'000});
  store.keep(ended("resp_a", 20'000));
  store.keep(ended("resp_large", 200'000));
  EXPECT_THAT(store.find("resp_large").error().message, HasSubstr("dropped"));
  EXPECT_TRUE(store.find("resp_a").ok());
  EXPECT_EQ(store.size().count, 1u);
  EXPECT_EQ(store.size().dropped, 1u);
  // Nor where it has become too much in the background.
  ASSERT_TRUE(store.begin(going_on("resp_b"), 0, [] {}).ok());
  store.finish(state_of("resp_b", ResponseStatus::kCompleted, std::string(200'000, 'x')), "");
  EXPECT_THAT(store.find("resp_b").error().message, HasSubstr("dropped"));
  EXPECT_TRUE(store.find("resp_a").ok());
}

TEST(ResponseStoreTest, WhatGoesOnIsNotDroppedAndLeavesRoomForSoManyOnly) {
  ResponseStore store({.count = 2, .bytes = kMany});
  ASSERT_TRUE(store.begin(going_on("resp_a"), 0, [] {}).ok());
  store.keep(ended("resp_b"));
  ASSERT_TRUE(store.begin(going_on("resp_c"), 0, [] {}).ok());
  EXPECT_FALSE(store.find("resp_b").ok());
  const auto refused = store.begin(going_on("resp_d"), 0, [] {});
  EXPECT_EQ(refused.error().code, ErrorCode::kExhausted);
  EXPECT_THAT(refused.error().message, HasSubstr("--max-stored-responses"));
  store.finish(state_of("resp_a", ResponseStatus::kCompleted, "done"), "[]");
  EXPECT_THAT(store.going_on(), ElementsAre("resp_c"));
  EXPECT_EQ(store.find("resp_a").value()->state.text, "done");
  ASSERT_TRUE(store.begin(going_on("resp_d"), 0, [] {}).ok());
  EXPECT_THAT(store.find("resp_a").error().message, HasSubstr("dropped"));

  ResponseStore small({.count = 10, .bytes = 50'000});
  EXPECT_EQ(small.begin(going_on("resp_a"), 60'000, [] {}).error().code, ErrorCode::kExhausted);
  ASSERT_TRUE(small.begin(going_on("resp_b"), 30'000, [] {}).ok());
  EXPECT_THAT(small.begin(going_on("resp_c"), 30'000, [] {}).error().message, HasSubstr("--max-stored-response-mb"));
}

TEST(ResponseStoreTest, WhatIsHeldForOneThatGoesOnCountsUntilItsEnd) {
  ResponseStore store({.count = 10, .bytes = 100'000});
  ASSERT_TRUE(store.begin(going_on("resp_a"), 60'000, [] {}).ok());
  EXPECT_GT(store.size().bytes, 60'000u);
  store.progress("resp_a");
  EXPECT_GT(store.size().bytes, 60'000u);
  EXPECT_EQ(store.begin(going_on("resp_b"), 60'000, [] {}).error().code, ErrorCode::kExhausted);
  store.finish(state_of("resp_a", ResponseStatus::kFailed), std::string(60'000, 'x'));
  // Nobody can go on from it.
  EXPECT_EQ(store.find("resp_a").value()->conversation, "");
  EXPECT_LT(store.size().bytes, 2'000u);

  ASSERT_TRUE(store.begin(going_on("resp_b"), 60'000, [] {}).ok());
  ASSERT_TRUE(store.cancel("resp_b").ok());
  EXPECT_GT(store.size().bytes, 60'000u) << "it has not ended so far";
  store.finish(state_of("resp_b", ResponseStatus::kCompleted), std::string(60'000, 'x'));
  EXPECT_EQ(store.find("resp_b").value()->conversation, "");
  ASSERT_TRUE(store.begin(going_on("resp_c"), 60'000, [] {}).ok());
  store.finish(state_of("resp_c", ResponseStatus::kIncomplete), std::string(60'000, 'x'));
  EXPECT_EQ(store.find("resp_c").value()->conversation.size(), 60'000u);
  // What those that go on leave no room for is dropped by itself.
  ASSERT_TRUE(store.begin(going_on("resp_d"), 0, [] {}).ok());
  store.keep(ended("resp_large", 99'000));
  EXPECT_FALSE(store.find("resp_large").ok());
  EXPECT_TRUE(store.find("resp_c").ok());
}

TEST(ResponseStoreTest, GoesFromQueuedThroughInProgressToItsEnd) {
  ResponseStore store({.count = 5, .bytes = kMany});
  ASSERT_TRUE(store.begin(going_on("resp_a"), 0, [] {}).ok());
  EXPECT_EQ(status_of(store, "resp_a"), ResponseStatus::kQueued);
  store.progress("resp_a");
  EXPECT_EQ(status_of(store, "resp_a"), ResponseStatus::kInProgress);
  store.finish(state_of("resp_a", ResponseStatus::kFailed), "");
  store.progress("resp_a");
  EXPECT_EQ(status_of(store, "resp_a"), ResponseStatus::kFailed);
}

TEST(ResponseStoreTest, IsCancelledOnceAndStaysSo) {
  ResponseStore store({.count = 5, .bytes = kMany});
  int cancelled = 0;
  ASSERT_TRUE(store.begin(going_on("resp_a"), 0, [&] { ++cancelled; }).ok());
  EXPECT_EQ(store.cancel("resp_a").value()->state.status, ResponseStatus::kCancelled);
  EXPECT_EQ(store.cancel("resp_a").value()->state.status, ResponseStatus::kCancelled);
  EXPECT_EQ(cancelled, 1);
  store.finish(state_of("resp_a", ResponseStatus::kCompleted, "so far"), "");
  EXPECT_EQ(status_of(store, "resp_a"), ResponseStatus::kCancelled);
  EXPECT_EQ(store.find("resp_a").value()->state.text, "so far");
  // One that has ended stays as it is; one that was never in the background cannot be cancelled.
  ASSERT_TRUE(store.begin(going_on("resp_b"), 0, [&] { ++cancelled; }).ok());
  store.finish(state_of("resp_b", ResponseStatus::kCompleted), "");
  EXPECT_EQ(store.cancel("resp_b").value()->state.status, ResponseStatus::kCompleted);
  store.keep(ended("resp_c"));
  EXPECT_EQ(store.cancel("resp_c").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(store.cancel("resp_d").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(cancelled, 1);
}

TEST(ResponseStoreTest, WhatIsRemovedIsCancelledAndGone) {
  ResponseStore store({.count = 5, .bytes = kMany});
  int cancelled = 0;
  ASSERT_TRUE(store.begin(going_on("resp_a"), 0, [&] { ++cancelled; }).ok());
  EXPECT_TRUE(store.remove("resp_a").ok());
  EXPECT_EQ(cancelled, 1);
  store.finish(state_of("resp_a", ResponseStatus::kCompleted), "");
  EXPECT_EQ(store.remove("resp_a").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(store.size().count, 0u);
  EXPECT_EQ(store.size().bytes, 0u);
}

TEST(ResponseStoreTest, AnyOrderOfCallsKeepsItsBounds) {
  constexpr uint64_t kSeed = 7;
  Rng rng(kSeed);
  ResponseStore store({.count = 8, .bytes = 40'000});
  std::set<std::string> going;
  for (int i = 0; i < 20'000; ++i) {
    const std::string id = "resp_" + std::to_string(rng.below(40));
    switch (rng.below(5)) {
      case 0:
        if (!store.find(id).ok()) store.keep(ended(id, rng.below(20'000)));
        break;
      case 1:
        if (!store.find(id).ok() && store.begin(going_on(id), rng.below(20'000), [] {}).ok()) going.insert(id);
        break;
      case 2:
        if (going.erase(id) > 0) store.finish(state_of(id, ResponseStatus::kCompleted), "");
        break;
      case 3:
        (void)store.cancel(id);
        break;
      default:
        if (store.remove(id).ok()) going.erase(id);
    }
    const auto size = store.size();
    ASSERT_LE(size.count, 8u) << "call " << i;
    ASSERT_LE(size.bytes, 40'000u) << "call " << i;
    ASSERT_EQ(store.going_on().size(), going.size()) << "call " << i;
    for (const auto& one : going) ASSERT_TRUE(store.find(one).ok()) << one << " of call " << i;
  }
}

}  // namespace
}  // namespace sluice::engine
