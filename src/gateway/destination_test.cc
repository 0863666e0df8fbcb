#include "gateway/destination.h"

#include <gtest/gtest.h>

#include "gateway/kv_events/kv_caches.h"
#include "gateway/kv_events/kv_engine_fixture.h"
#include "testing/fake_clock.h"

namespace sluice::gateway {
namespace {

TEST(DestinationTest, WhatIsKnownOfACacheReplacesWhatIsBelievedOfItAndNothingElse) {
  GatewayOptions options = gateway_option_table().defaults();
  options.policy = "min_cost";
  options.tokenizer_path = KvEngine::kTokenizer;
  const sluice::testing::FakeClock clock;
  net::LoopGroup loops(1);
  Context context(options, duration_buckets(options).value(), clock);
  context.kv = KvCaches::make(options, clock).value();
  LoopState loop(loops[0], {}, context.metrics);
  // Of one worker all is known, and that is nothing; the other is believed to hold what it was sent, and is full.
  context.kv->view.set_known(0, KvKnowledge::kAll, 4, clock.now());
  context.kv->view.set_trusted(0, true, false);
  const auto prompt = [](int i) {
    return std::string(900, static_cast<char>('a' + i / 2 % 12)) + std::string(100, '0') + std::to_string(i);
  };
  constexpr int kLast = 1199;
  for (int i = 0; i <= kLast; ++i) context.index.insert(prompt(i), 1, 5'000);
  context.index.insert(prompt(kLast), 0);
  context.index.flush();
  const routing::PrefixMatch believed = context.index.match(prompt(kLast));
  ASSERT_EQ(believed.num_holders, 2);
  ASSERT_GT(believed.shared_drops, 0.5);

  std::string body = R"({"text":")" + prompt(kLast) + R"("})";
  const net::RequestHead head{.method = "POST", .target = "/generate"};
  BodyFacts read = scan_body(body, Endpoint::kGenerate).value();
  Destination destination;
  ASSERT_FALSE(destination.read(context, loop, head, read));
  ASSERT_GT(destination.read_tokens(context, Endpoint::kGenerate, body), 0u);
  const routing::PrefixMatch found = destination.facts(context, read, 1, clock.now()).prefix;
  EXPECT_EQ(found.rate_of(0), 0);
  EXPECT_EQ(found.rate_of(1), 1);
  EXPECT_EQ(found.total_bytes, believed.total_bytes);
  EXPECT_EQ(found.seen, believed.seen);
  EXPECT_TRUE(found.place.is(believed.place));
  EXPECT_EQ(found.shared_drops, believed.shared_drops);
}

}  // namespace
}  // namespace sluice::gateway
