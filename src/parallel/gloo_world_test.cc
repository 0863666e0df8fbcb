#include "parallel/gloo_world.h"

#include <gloo/rendezvous/hash_store.h>
#include <gloo/transport/tcp/device.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>

#include "base/pulse.h"
#include "testing/fake_clock.h"

namespace sluice::parallel {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint64_t kTagOfTest = 77;

// Both ranks of a world, in this process.
std::array<std::unique_ptr<GlooWorld>, 2> connect(const GroupOptions& options) {
  gloo::rendezvous::HashStore store;
  std::array<std::unique_ptr<GlooWorld>, 2> worlds;
  const auto join = [&](int rank) {
    auto device = gloo::transport::tcp::CreateDevice(gloo::transport::tcp::attr("127.0.0.1"));
    auto context = std::make_shared<gloo::rendezvous::Context>(rank, 2);
    context->connectFullMesh(store, device);
    worlds[static_cast<size_t>(rank)] =
        std::make_unique<GlooWorld>(std::move(context), std::vector<std::string>{"here", "there"}, options);
  };
  std::thread other([&] { join(1); });
  join(0);
  other.join();
  return worlds;
}

// Rank 1 computes for 12 s without a call or a word, while rank 0 waits for it and allows 5 s of silence; then it
// stops.
TEST(GlooWorldTest, ARankThatComputesIsWaitedForUntilItsBeatsEnd) {
  testing::FakeClock clock;
  const auto worlds = connect({.silence_limit = seconds(5), .longest_sleep = milliseconds(1), .clock = &clock});
  std::atomic<bool> over = false;
  Result<void> waited;
  std::thread waits([&] {
    int value = 0;
    const auto buffer = worlds[0]->buffer(&value, sizeof value);
    buffer->recv(1, kTagOfTest);
    const std::array missing = {1};
    waited = worlds[0]->wait_receive(
        *buffer, {.group = "tp", .call = "barrier #1", .waiting = 0, .missing = missing, .since = clock.now()});
    over = true;
  });
  const TimePoint give_up = real_clock().now() + seconds(60);
  const auto in_time = [&] { return real_clock().now() < give_up; };
  bool heard = true;
  for (int second = 0; heard && second < 12; ++second) {
    clock.advance(seconds(1));
    while (worlds[0]->last_sign(1) != clock.now() && !over && in_time()) {
      beat(0);
      std::this_thread::sleep_for(milliseconds(1));
    }
    heard = worlds[0]->last_sign(1) == clock.now() && !over;
    EXPECT_TRUE(heard) << "no sign in second " << second;
  }
  // Each step leaves time for a sign, which nobody gives.
  while (heard && !over && in_time()) {
    clock.advance(milliseconds(500));
    std::this_thread::sleep_for(milliseconds(2));
  }
  EXPECT_TRUE(over) << "a rank whose beats have ended is waited for";
  if (!over) worlds[0]->fail({ErrorCode::kUnavailable, "the test has failed"});
  waits.join();
  ASSERT_FALSE(waited.ok());
  EXPECT_EQ(waited.error().code, ErrorCode::kTimeout);
  EXPECT_THAT(waited.error().message, ::testing::HasSubstr("no sign of rank 1 for "));
  EXPECT_THAT(waited.error().message, ::testing::HasSubstr("; rank 1 is on there"));
}

// Of rank 1 nobody reads what rank 0 tells it, as on a host that stands still. Their connection stays.
TEST(GlooWorldTest, SignsOfLifeThatNobodyReadsAreNotWaitedFor) {
  testing::FakeClock clock;
  const GroupOptions options{.silence_limit = milliseconds(100), .longest_sleep = milliseconds(1), .clock = &clock};
  gloo::rendezvous::HashStore store;
  std::array<std::shared_ptr<gloo::rendezvous::Context>, 2> contexts;
  const auto join = [&](int rank) {
    auto device = gloo::transport::tcp::CreateDevice(gloo::transport::tcp::attr("127.0.0.1"));
    contexts[static_cast<size_t>(rank)] = std::make_shared<gloo::rendezvous::Context>(rank, 2);
    contexts[static_cast<size_t>(rank)]->connectFullMesh(store, device);
  };
  std::thread other([&] { join(1); });
  join(0);
  other.join();
  GlooWorld world(contexts[0], {"here", "there"}, options);
  // Far more signs than may be unread, and for longer than a rank may be silent.
  for (int i = 0; i < 200; ++i) {
    beat(0);
    clock.advance(milliseconds(20));
    std::this_thread::sleep_for(milliseconds(2));
  }
  int sent = 5, received = 0;
  const auto from = contexts[1]->createUnboundBuffer(&sent, sizeof sent);
  const auto to = world.buffer(&received, sizeof received);
  EXPECT_NO_THROW({
    to->recv(1, kTagOfTest);
    from->send(0, kTagOfTest);
    from->waitSend(seconds(10));
    to->waitRecv(seconds(10));
  });
  EXPECT_EQ(received, 5);
}

// A call's message, which the thread that makes calls reads later than the other thread what was sent after it.
TEST(GlooWorldTest, AnOlderPlaceThatIsReadLaterChangesNothing) {
  testing::FakeClock clock;
  const auto worlds = connect({.silence_limit = seconds(5), .longest_sleep = milliseconds(1), .clock = &clock});
  worlds[1]->progress({.step = 38, .phase = Phase::kGather, .layer = 2});
  const Place before = worlds[1]->place();
  const Progress now_at{.step = 39, .phase = Phase::kExperts, .layer = 7};
  worlds[1]->progress(now_at);
  worlds[0]->heard_of(1, worlds[1]->place());
  clock.advance(seconds(1));
  worlds[0]->heard_of(1, before);
  EXPECT_EQ(worlds[0]->last_progress(1), now_at);
  EXPECT_EQ(worlds[0]->last_sign(1), clock.now()) << "it is a sign of life all the same";
}

}  // namespace
}  // namespace sluice::parallel
