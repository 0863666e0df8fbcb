#include "gateway/forward.h"

#include <gtest/gtest.h>

#include "testing/fake_clock.h"

namespace sluice::gateway {
namespace {

class ForwardTest : public ::testing::Test {
 protected:
  WorkerPtr worker(const std::string& key = "") {
    return std::make_shared<Worker>("id", 0, std::make_shared<WorkerLoad>(), net::parse_url("http://h:1").value(),
                                    DpRank{}, key, WorkerSeries{}, BreakerRules{}, clock_,
                                    std::make_shared<std::atomic<uint64_t>>(0));
  }
  static int count(const net::Headers& headers, std::string_view name) {
    int found = 0;
    for (const auto& [field, value] : headers) found += net::iequals(field, name);
    return found;
  }
  sluice::testing::FakeClock clock_;
  net::RequestHead head_{.method = "POST", .target = "/generate?x=1"};
};

TEST_F(ForwardTest, SendsAllButWhatBelongsToTheConnection) {
  head_.headers = {{"Host", "gateway"},
                   {"Cookie", "a=b"},
                   {"X-Request-Id", "r"},
                   {"Content-Length", "7"},
                   {"traceparent", "t"},
                   {"X-Forwarded-For", "1.2.3.4"},
                   {"Connection", "x-hop, TE"},
                   {"Content-Type", "text/x"},
                   {"X-SMG-Routing-Key", "k"},
                   {"X-Hop", "1"},
                   {"TE", "gzip"},
                   {"Expect", "100-continue"},
                   {"Trailer", "X-End"},
                   {"Upgrade", "websocket"},
                   {"Transfer-Encoding", "chunked"},
                   {"Accept-Encoding", "gzip"},
                   {"Proxy-Connection", "1"},
                   {"HTTP2-Settings", "AAA"}};
  const auto sent = upstream_head(head_, *worker(), true);
  EXPECT_EQ(sent.target, "/generate?x=1");
  EXPECT_EQ(sent.headers.size(), 7u);
  for (const char* name : {"cookie", "x-request-id", "traceparent", "x-forwarded-for", "content-type",
                           "x-smg-routing-key", "accept-encoding"}) {
    EXPECT_TRUE(sent.headers.has(name)) << name;
  }
}

TEST_F(ForwardTest, AWishForTrailersIsPassedOn) {
  head_.headers = {{"TE", "gzip, trailers"}, {"Connection", "TE"}};
  const auto sent = upstream_head(head_, *worker(), false);
  EXPECT_EQ(sent.headers.size(), 2u);
  EXPECT_EQ(sent.headers.get("te"), "trailers");
  EXPECT_EQ(sent.headers.get("connection"), "TE");
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
  const net::Headers from_worker = {
      {"Content-Type", "a"},        {"Set-Cookie", "1"},        {"Set-Cookie", "2"},
      {"Connection", "x-hop"},      {"Transfer-Encoding", "c"}, {"Content-Length", "9"},
      {"Content-Encoding", "gzip"}, {"X-Request-Id", "theirs"}, {"X-Hop", "1"},
      {"Vary", "accept-encoding"},  {"Trailer", "X-End"},       {"X-Sluice-Process", "7"}};
  const auto relayed = relayed_headers(from_worker, {{"x-request-id", "ours"}, {"Vary", "Origin"}});
  EXPECT_EQ(relayed.size(), 6u);
  EXPECT_EQ(count(relayed, "set-cookie"), 2);
  for (const char* name : {"content-type", "content-encoding", "vary", "trailer"}) {
    EXPECT_TRUE(relayed.has(name)) << name;
  }
}

}  // namespace
}  // namespace sluice::gateway
