#include "gateway/forward.h"

#include <gtest/gtest.h>

#include "testing/fake_clock.h"

namespace sluice::gateway {
namespace {

class ForwardTest : public ::testing::Test {
 protected:
  WorkerPtr worker(const std::string& key = "") {
    return std::make_shared<Worker>("id", 0, net::parse_url("http://h:1").value(), key, WorkerSeries{}, BreakerRules{},
                                    clock_);
  }
  static int count(const net::Headers& headers, std::string_view name) {
    int found = 0;
    for (const auto& [field, value] : headers) found += net::iequals(field, name);
    return found;
  }
  sluice::testing::FakeClock clock_;
  net::RequestHead head_{.method = "POST", .target = "/generate?x=1"};
};

TEST_F(ForwardTest, SendsTheAllowListOnly) {
  head_.headers = {{"Host", "gateway"},         {"Cookie", "a=b"},          {"X-Request-Id", "r"},
                   {"x-request-id-extra", "e"}, {"traceparent", "t"},       {"X-Forwarded-For", "1.2.3.4"},
                   {"Connection", "close"},     {"Content-Type", "text/x"}, {"X-SMG-Routing-Key", "k"}};
  const auto sent = upstream_head(head_, *worker(), true);
  EXPECT_EQ(sent.target, "/generate?x=1");
  EXPECT_EQ(sent.headers.size(), 5u);
  for (const char* name : {"x-request-id", "x-request-id-extra", "traceparent", "content-type", "x-smg-routing-key"}) {
    EXPECT_TRUE(sent.headers.has(name)) << name;
  }
}

TEST_F(ForwardTest, SendsExactlyOneAuthorization) {
  head_.headers = {{"Authorization", "Bearer client"}, {"authorization", "Bearer twice"}};
  const auto with_key = upstream_head(head_, *worker("secret"), true);
  EXPECT_EQ(count(with_key.headers, "authorization"), 1);
  EXPECT_EQ(with_key.headers.get("authorization"), "Bearer secret");
  const auto without = upstream_head(head_, *worker(), true);
  EXPECT_EQ(count(without.headers, "authorization"), 1);
  EXPECT_EQ(without.headers.get("authorization"), "Bearer client");
}

TEST_F(ForwardTest, ABodyHasAType) {
  EXPECT_EQ(upstream_head(head_, *worker(), true).headers.get("content-type"), "application/json");
  EXPECT_FALSE(upstream_head(head_, *worker(), false).headers.has("content-type"));
}

TEST_F(ForwardTest, RelaysEverythingButWhatBelongsToTheConnection) {
  const net::Headers from_worker = {{"Content-Type", "a"},        {"Set-Cookie", "1"},        {"Set-Cookie", "2"},
                                    {"Connection", "x"},          {"Transfer-Encoding", "c"}, {"Content-Length", "9"},
                                    {"Content-Encoding", "gzip"}, {"X-Request-Id", "theirs"}};
  const auto relayed = relayed_headers(from_worker, {{"x-request-id", "ours"}});
  EXPECT_EQ(relayed.size(), 4u);
  EXPECT_EQ(count(relayed, "set-cookie"), 2);
  EXPECT_TRUE(relayed.has("content-encoding"));
}

}  // namespace
}  // namespace sluice::gateway
