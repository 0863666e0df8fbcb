#include "net/http.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace sluice::net {
namespace {

TEST(HeadersTest, FindsNamesWithoutCaseAndKeepsDuplicates) {
  Headers headers{{"Content-Type", "a"}, {"X-A", "1"}, {"x-a", "2"}};
  EXPECT_EQ(headers.get("content-TYPE"), "a");
  EXPECT_EQ(headers.get("X-A"), "1");
  EXPECT_FALSE(headers.has("X-B"));
  headers.set("x-A", "3");
  EXPECT_EQ(headers.size(), 2u);
  EXPECT_EQ(headers.get("x-a"), "3");
  headers.remove("X-a");
  EXPECT_EQ(headers.size(), 1u);
}

TEST(HeadersTest, FindsTokensOfAListInAnyField) {
  const Headers headers{{"Connection", "keep-alive , Upgrade"}, {"connection", "\tclose"}};
  EXPECT_TRUE(headers.has_token("Connection", "upgrade"));
  EXPECT_TRUE(headers.has_token("Connection", "close"));
  EXPECT_FALSE(headers.has_token("Connection", "keep"));
  const Headers odd{{"Connection", ",, a ,"}, {"Other", "b"}, {"connection", "c"}};
  EXPECT_EQ(odd.tokens("connection"), (std::vector<std::string_view>{"a", "c"}));
}

TEST(QueryTest, DecodesKeysAndValues) {
  EXPECT_EQ(query_value("a=1&b=x%20y+z&c", "b"), "x y z");
  EXPECT_EQ(query_value("a=1&b=x%20y+z&c", "c"), "");
  EXPECT_EQ(query_value("a=1&a=2", "a"), "1");
  EXPECT_EQ(query_value("%61=7", "a"), "7");
  EXPECT_EQ(query_value("a=1", "b"), std::nullopt);
  EXPECT_EQ(query_value("", "b"), std::nullopt);
  EXPECT_EQ(percent_decode("%2Fa%zz%4"), "/a%zz%4");
}

TEST(RequestHeadTest, SplitsTheTarget) {
  RequestHead head;
  head.target = "/v1/models?x=1&y=2";
  EXPECT_EQ(head.path(), "/v1/models");
  EXPECT_EQ(head.query(), "x=1&y=2");
  head.target = "/v1";
  EXPECT_EQ(head.path(), "/v1");
  EXPECT_EQ(head.query(), "");
}

TEST(UrlTest, ReadsEveryAcceptedForm) {
  struct Case {
    const char* text;
    const char* canonical;
  };
  for (const Case& c : {Case{"http://host:8000", "http://host:8000"},
                        {"host:8000", "http://host:8000"},
                        {"http://Host", "http://host:80"},
                        {"http://host:8000/a/b/", "http://host:8000/a/b"},
                        {"HTTP://127.0.0.1:1/", "http://127.0.0.1:1"},
                        {"http://[::1]:30000", "http://[::1]:30000"},
                        {"[fe80::1]", "http://[fe80::1]:80"}}) {
    const auto url = parse_url(c.text);
    ASSERT_TRUE(url.ok()) << c.text << ": " << url.error().message;
    EXPECT_EQ(url->to_string(), c.canonical);
    const auto again = parse_url(url->to_string());
    ASSERT_TRUE(again.ok());
    EXPECT_EQ(again->to_string(), c.canonical);
  }
  EXPECT_EQ(parse_url("[::1]:5")->host, "::1");
}

TEST(UrlTest, SaysWhyItRefuses) {
  EXPECT_EQ(parse_url("HTTPS://Host/v1").value().to_string(), "https://host:443/v1");
  EXPECT_EQ(parse_url("https://[::1]:8443").value().to_string(), "https://[::1]:8443");
  EXPECT_EQ(parse_url("ftp://host").error().code, ErrorCode::kInvalidArgument);
  for (const char* odd : {"http://h\xff:1", "http://h:1/\xc3\xa9", "http://h\x01:1"}) {
    EXPECT_FALSE(parse_url(odd).ok()) << odd;
  }
  for (const char* text :
       {"grpc://host:1", "http://", "http://:80", "host:0", "host:65536", "host:8o", "::1:80", "http://[::1",
        "http://[host]:1", "http://[::1]x", "http://a@b:1", "http://h/?q", "a b", ""}) {
    const auto url = parse_url(text);
    ASSERT_FALSE(url.ok()) << text;
    EXPECT_EQ(url.error().code, ErrorCode::kInvalidArgument) << text;
  }
}

TEST(HopByHopTest, KnowsTheFieldsThatStayOnOneHop) {
  for (const char* name : {"Connection", "keep-alive", "TE", "Transfer-Encoding", "upgrade", "Trailer"}) {
    EXPECT_TRUE(is_hop_by_hop(name)) << name;
  }
  EXPECT_FALSE(is_hop_by_hop("Content-Length"));
  EXPECT_FALSE(is_hop_by_hop("Authorization"));
}

}  // namespace
}  // namespace sluice::net
