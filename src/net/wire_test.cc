#include "net/wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/rng.h"

namespace sluice::net {
namespace {

using Status = MessageParser::Status;
using Kind = MessageParser::Kind;

struct Parsed {
  bool ok = true;
  int status = 0;  // of the error, or of the response
  std::string method, target, body;
  std::vector<std::pair<std::string, std::string>> fields;
  bool keep_alive = false;
  size_t left = 0;
};

// Shows the parser the bytes as a connection does: what it does not use is shown again, with more.
class Feeder {
 public:
  Feeder(Kind kind, std::string bytes, std::function<size_t()> piece, size_t max_head = 4096)
      : parser_(kind, max_head), kind_(kind), bytes_(std::move(bytes)), piece_(std::move(piece)) {}

  Parsed next(bool no_body = false) {
    if (started_) parser_.reset();
    if (no_body) parser_.reset(true);
    started_ = true;
    Parsed parsed;
    for (;;) {
      size_t used = 0;
      const auto status = parser_.parse_head(shown_, used);
      shown_.erase(0, used);
      if (status == Status::kDone) break;
      if (status == Status::kError || !more()) return failed();
    }
    while (!parser_.done()) {
      size_t used = 0;
      std::string_view body;
      const auto status = parser_.parse_body(shown_.data(), shown_.size(), used, body);
      parsed.body.append(body);
      shown_.erase(0, used);
      if (status == Status::kError) return failed();
      if (status == Status::kNeedMore && !more() && !parser_.end_of_stream()) return failed();
    }
    const bool request = kind_ == Kind::kRequest;
    parsed.method = parser_.request().method;
    parsed.target = parser_.request().target;
    parsed.status = parser_.response().status;
    for (const auto& field : request ? parser_.request().headers : parser_.response().headers) {
      parsed.fields.push_back(field);
    }
    parsed.keep_alive = parser_.keep_alive();
    parsed.left = shown_.size() + bytes_.size();
    return parsed;
  }

 private:
  Parsed failed() {
    Parsed parsed;
    parsed.ok = false;
    parsed.status = parser_.error_status();
    return parsed;
  }
  bool more() {
    if (bytes_.empty()) return false;
    const size_t n = std::min(bytes_.size(), piece_());
    shown_ += bytes_.substr(0, n);
    bytes_.erase(0, n);
    return true;
  }

  MessageParser parser_;
  const Kind kind_;
  std::string bytes_;
  std::string shown_;
  std::function<size_t()> piece_;
  bool started_ = false;
};

Parsed parse(Kind kind, std::string bytes) {
  Feeder feeder(kind, std::move(bytes), [] { return size_t{1} << 20; });
  return feeder.next();
}
Parsed request(std::string bytes) { return parse(Kind::kRequest, std::move(bytes)); }
Parsed response(std::string bytes) { return parse(Kind::kResponse, std::move(bytes)); }

TEST(MessageParserTest, ReadsPipelinedRequestsUnderEverySplit) {
  const std::string chunked =
      "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
      "5\r\nhello\r\n7;ext=\"1\"\r\n, world\r\nA\r\n0123456789\r\n000\r\nTrailer: x\r\n\r\n";
  const std::string stream = "\r\nGET /a?x=y HTTP/1.1\r\nHost: h\r\nX-Empty:\r\nX: a b \r\n\r\n" + chunked +
                             "POST /l HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody";
  Rng rng(3);
  for (size_t round = 0; round < 600; ++round) {
    // The first rounds: all in one, then byte by byte and pieces of 2, 3, ...; then random ones.
    const auto piece = [&]() -> size_t {
      if (round == 0) return stream.size();
      return round < 200 ? round : 1 + rng.below(30);
    };
    Feeder feeder(Kind::kRequest, stream, piece);
    const auto a = feeder.next();
    ASSERT_TRUE(a.ok) << "round " << round;
    EXPECT_EQ(a.method + " " + a.target, "GET /a?x=y");
    EXPECT_THAT(a.fields, testing::ElementsAre(testing::Pair("Host", "h"), testing::Pair("X-Empty", ""),
                                               testing::Pair("X", "a b")));
    EXPECT_EQ(a.body, "");
    EXPECT_TRUE(a.keep_alive);
    const auto c = feeder.next();
    ASSERT_TRUE(c.ok) << "round " << round;
    EXPECT_EQ(c.target, "/c");
    EXPECT_EQ(c.body, "hello, world0123456789");
    EXPECT_EQ(c.fields.size(), 2u) << "trailers are not header fields";
    const auto l = feeder.next();
    ASSERT_TRUE(l.ok) << "round " << round;
    EXPECT_EQ(l.body, "body");
    EXPECT_FALSE(l.keep_alive);
    EXPECT_EQ(l.left, 0u);
  }
}

TEST(MessageParserTest, X12RefusesWhatCanBeReadInTwoWays) {
  const std::string post = "POST / HTTP/1.1\r\nHost: h\r\n";
  struct Case {
    std::string bytes;
    int status;
  };
  for (const Case& c : {
           Case{post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
           {post + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400},
           {post + "Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody!", 400},
           {post + "Content-Length: 4, 5\r\n\r\nbody!", 400},
           {post + "Content-Length: +4\r\n\r\nbody", 400},
           {post + "Content-Length: 0x4\r\n\r\nbody", 400},
           {post + "Content-Length: -1\r\n\r\n", 400},
           {post + "Content-Length: 99999999999999999999\r\n\r\n", 400},
           {post + "Content-Length:\r\n\r\n", 400},
           {post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
           {post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501},
           {post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
           {post + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400},
           {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
           {post + "X: a\r\n folded\r\n\r\n", 400},
           {post + "X: a\n\r\n", 400},
           {post + "X: a\rb\r\n\r\n", 400},
           {post + std::string("X: a\0b\r\n\r\n", 10), 400},
           {post + "No colon\r\n\r\n", 400},
           {post + ": empty name\r\n\r\n", 400},
           {post + "Host: two\r\n\r\n", 400},
           {"GET / HTTP/1.1\r\n\r\n", 400},
           {"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505},
           {"GET /\r\n\r\n", 400},
           {" GET / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
           {"\n\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
           {std::string("\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 11), 400},
       }) {
    const auto parsed = request(c.bytes);
    EXPECT_FALSE(parsed.ok) << testing::PrintToString(c.bytes);
    EXPECT_EQ(parsed.status, c.status) << testing::PrintToString(c.bytes);
  }
}

TEST(MessageParserTest, RefusesBadChunks) {
  const std::string head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (const char* body :
       {"g\r\n", "\r\n", "-1\r\n", "5\r\nhello!\r\n", "5\r\nhello\n", "5\nhello\r\n", "0x5\r\nhello\r\n",
        "1111111111111111\r\n", "5 ;a\nhello\r\n", "0\r\nX: a\n\r\n", "0\r\n\rx", "5\rxhello", " 5\r\n"}) {
    for (size_t step : {size_t{1}, size_t{100}}) {
      Feeder feeder(Kind::kRequest, head + body, [step] { return step; });
      EXPECT_FALSE(feeder.next().ok) << testing::PrintToString(body);
    }
  }
  EXPECT_TRUE(request(head + "0\r\n\r\n").ok);
  EXPECT_EQ(request(head + "1\r\na\r\n0;x\r\nA: b\r\nC: d\r\n\r\n").body, "a");
}

TEST(MessageParserTest, BoundsTheHead) {
  for (const size_t step : {1, 7, 100000}) {
    Feeder small(Kind::kRequest, "GET / HTTP/1.1\r\nHost: h\r\nX: " + std::string(4000, 'x') + "\r\n\r\n",
                 [step] { return step; });
    EXPECT_TRUE(small.next().ok);
    Feeder large(Kind::kRequest, "GET / HTTP/1.1\r\nHost: h\r\nX: " + std::string(5000, 'x') + "\r\n\r\n",
                 [step] { return step; });
    const auto parsed = large.next();
    EXPECT_FALSE(parsed.ok);
    EXPECT_EQ(parsed.status, 431);
  }
}

TEST(MessageParserTest, KnowsWhereResponsesEnd) {
  const auto until_close = response("HTTP/1.1 200 OK\r\nX: y\r\n\r\nall of it");
  EXPECT_TRUE(until_close.ok);
  EXPECT_EQ(until_close.body, "all of it");
  EXPECT_FALSE(until_close.keep_alive);

  const auto empty = response("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nnext!");
  EXPECT_TRUE(empty.ok && empty.keep_alive);
  EXPECT_EQ(empty.left, 5u);

  Feeder head(Kind::kResponse, "HTTP/1.1 200 OK\r\n\r\nnext!", [] { return size_t{100}; });
  const auto to_head = head.next(/*no_body=*/true);
  EXPECT_TRUE(to_head.ok && to_head.keep_alive);
  EXPECT_EQ(to_head.left, 5u);

  EXPECT_FALSE(response("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfour").ok);
  EXPECT_FALSE(response("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").ok);
  EXPECT_EQ(response("HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n").status, 299);
  EXPECT_FALSE(response("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n").keep_alive);
  EXPECT_TRUE(response("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n").keep_alive);
}

// Whatever comes in, the parser ends in an answer and never reads or writes outside of what it was shown (ASan
// watches).
TEST(MessageParserTest, SurvivesNoise) {
  const uint64_t seed = 5;
  Rng rng(seed);
  const std::string_view pieces[] = {"GET ",
                                     "/ ",
                                     "HTTP/1.1",
                                     "\r\n",
                                     "\n",
                                     "\r",
                                     "Host: h\r\n",
                                     ":",
                                     " ",
                                     "\t",
                                     "5",
                                     "Transfer-Encoding: chunked\r\n",
                                     "Content-Length: 3\r\n",
                                     "\r\n\r\n",
                                     "abc",
                                     "0\r\n",
                                     "\xff",
                                     "HTTP/1.1 200 OK\r\n",
                                     ";",
                                     "ffffffffffffff"};
  for (int round = 0; round < 5000; ++round) {
    std::string text = rng.below(2) == 0 ? "POST / HTTP/1.1\r\nHost: h\r\n" : "HTTP/1.1 200 OK\r\n";
    const Kind kind = text.front() == 'P' ? Kind::kRequest : Kind::kResponse;
    for (uint64_t i = rng.below(12); i > 0; --i) text += pieces[rng.below(std::size(pieces))];
    Feeder feeder(kind, text, [&] { return 1 + rng.below(10); });
    const auto split = feeder.next();
    const auto whole = parse(kind, text);
    EXPECT_EQ(split.ok, whole.ok) << "seed " << seed << " round " << round << ": " << testing::PrintToString(text);
    if (split.ok && whole.ok) {
      EXPECT_EQ(split.body, whole.body);
    }
  }
}

TEST(AppendFieldTest, ValuesCannotEndTheirLine) {
  std::string out;
  append_field(out, "X", "a\r\nSet-Cookie: b");
  EXPECT_EQ(out, "X: a  Set-Cookie: b\r\n");
}

}  // namespace
}  // namespace sluice::net
