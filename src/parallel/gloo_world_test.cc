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

}  // namespace
}  // namespace sluice::parallel
