// Reason phrases and trailers: through the parser, and over sockets from a server to a client.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "net/client.h"
#include "net/server.h"
#include "net/wire.h"

namespace sluice::net {
namespace {

using testing::ElementsAre;
using testing::Pair;

std::vector<Headers::Field> fields(const Headers& headers) { return {headers.begin(), headers.end()}; }

// Feeds the bytes in pieces of that size; the status at the end of the message or of the bytes.
MessageParser::Status feed(MessageParser& parser, std::string bytes, size_t piece, std::string* body = nullptr) {
  size_t used = 0;
  auto status = parser.parse_head(bytes, used);
  if (status != MessageParser::Status::kDone) return status;
  bytes.erase(0, used);
  while (!parser.done() && !bytes.empty()) {
    const size_t size = std::min(piece, bytes.size());
    std::string_view part;
    status = parser.parse_body(bytes.data(), size, used, part);
    if (status == MessageParser::Status::kError) return status;
    if (body != nullptr) body->append(part);
    bytes.erase(0, used);
  }
  return parser.done() ? MessageParser::Status::kDone : MessageParser::Status::kNeedMore;
}

TEST(TrailersTest, TheParserKeepsReasonAndTrailers) {
  const std::string answer =
      "HTTP/1.1 200 Sure  Thing\r\nTransfer-Encoding: chunked\r\n\r\n"
      "3\r\nabc\r\n0;x=y\r\nX-Sum: 12 \r\nX-Empty:\r\nX-Sum: 13\r\n\r\n";
  for (size_t piece = 1; piece < answer.size(); ++piece) {
    MessageParser parser(MessageParser::Kind::kResponse, 4096);
    std::string body;
    ASSERT_EQ(feed(parser, answer, piece, &body), MessageParser::Status::kDone) << piece;
    EXPECT_EQ(body, "abc");
    EXPECT_EQ(parser.response().reason, "Sure  Thing");
    EXPECT_THAT(fields(parser.trailers()), ElementsAre(Pair("X-Sum", "12"), Pair("X-Empty", ""), Pair("X-Sum", "13")));
    parser.reset();
    EXPECT_TRUE(parser.trailers().empty());
  }
}

TEST(TrailersTest, LinesThatAreNoFieldsAreRefused) {
  for (const char* line : {"no colon", ": no name", "sp ace: 1", " X: folded", "X\x01: 1"}) {
    MessageParser parser(MessageParser::Kind::kRequest, 4096);
    const auto bytes =
        fmt::format("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{}\r\n\r\n", line);
    EXPECT_EQ(feed(parser, bytes, 1000), MessageParser::Status::kError) << line;
    EXPECT_EQ(parser.error_status(), 400);
  }
}

TEST(TrailersTest, AnHttp2PrefaceIsNamed) {
  MessageParser parser(MessageParser::Kind::kRequest, 4096);
  EXPECT_EQ(feed(parser, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 100), MessageParser::Status::kError);
  EXPECT_EQ(parser.error_status(), 505);
  EXPECT_NE(parser.error().message.find("HTTP/2"), std::string::npos);
}

TEST(TrailersTest, GoFromServerToClientWholeOrStreamed) {
  LoopGroup loops(1);
  Server server(loops, {}, [](ServerExchange& exchange) -> Task<> {
    const std::string_view path = exchange.request().path();
    if (path == "/whole" || path == "/empty") {
      Response response{200, {}, path == "/whole" ? "whole" : "", "Fine\r\nX-Not: a header"};
      // Fields that would end or redirect a message are not sent there.
      response.trailers = {{"X-Sum", "1"}, {"Content-Length", "9"}, {"Connection", "close"}};
      co_await exchange.respond(std::move(response));
      co_return;
    }
    ResponseHead head{200, {}, "Going On"};
    co_await exchange.start(std::move(head));
    co_await exchange.write("part");
    Headers trailers = {{"X-Sum", "2"}};
    exchange.set_trailers(std::move(trailers));
    co_await exchange.finish();
  });
  const Url url = parse_url(fmt::format("http://127.0.0.1:{}", server.listen("127.0.0.1", 0).value())).value();
  for (const auto& [path, body] : {std::pair{"/whole", "whole"}, {"/empty", ""}}) {
    const auto answer = blocking_fetch(url, "GET", path);
    ASSERT_TRUE(answer.ok()) << answer.error().message;
    EXPECT_EQ(answer->body, body);
    EXPECT_EQ(answer->reason, "Fine  X-Not: a header") << "a reason does not end its line";
    EXPECT_FALSE(answer->headers.has("x-not"));
    EXPECT_THAT(fields(answer->trailers), ElementsAre(Pair("X-Sum", "1")));
  }
  const auto streamed = blocking_fetch(url, "GET", "/streamed");
  EXPECT_EQ(streamed->body, "part");
  EXPECT_EQ(streamed->reason, "Going On");
  EXPECT_THAT(fields(streamed->trailers), ElementsAre(Pair("X-Sum", "2")));
}

TEST(TrailersTest, AConnectionIsKeptAfterThem) {
  LoopGroup loops(1);
  Server server(loops, {}, [](ServerExchange& exchange) -> Task<> {
    Response response{200, {}, "x"};
    if (exchange.request().path() == "/with") response.trailers = {{"X-Sum", "1"}};
    co_await exchange.respond(std::move(response));
  });
  const Url url = parse_url(fmt::format("http://127.0.0.1:{}", server.listen("127.0.0.1", 0).value())).value();
  EventLoop loop("client");
  loop.start();
  std::function<Task<int>()> twice = [&]() -> Task<int> {
    Client client(loop);
    auto with = co_await client.fetch(url, "GET", "/with");
    auto without = co_await client.fetch(url, "GET", "/without");
    const bool right = with.ok() && with->trailers.size() == 1 && without.ok() && without->trailers.empty();
    co_return right ? static_cast<int>(server.open_connections()) : 0;
  };
  EXPECT_EQ(loop.run(std::move(twice)), 1);
}

}  // namespace
}  // namespace sluice::net
