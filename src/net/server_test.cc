#include "net/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <mutex>
#include <set>
#include <thread>

#include "base/rng.h"
#include "net/client.h"
#include "testing/raw_client.h"

namespace sluice::net {
namespace {

using namespace std::chrono_literals;
using sluice::testing::RawClient;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class ServerTest : public ::testing::Test {
 protected:
  uint16_t serve(Handler handler, ServerOptions options = {}) {
    server_ = std::make_unique<Server>(loops_, options, std::move(handler));
    auto port = server_->listen("127.0.0.1", 0);
    EXPECT_TRUE(port.ok()) << (port.ok() ? "" : port.error().message);
    return port.ok() ? *port : 0;
  }

  LoopGroup loops_{2, "test"};
  std::unique_ptr<Server> server_;
};

Task<> echo(ServerExchange& exchange) {
  auto body = co_await exchange.read_body(1 << 20);
  if (!body.ok()) {
    const int status = body.error().code == ErrorCode::kTooLarge ? 413 : 400;
    Response failed = Response::text(status, body.error().message);
    (void)co_await exchange.respond(std::move(failed));
    co_return;
  }
  Response response =
      Response::text(200, fmt::format("{} {} [{}]", exchange.request().method, exchange.request().target, *body));
  (void)co_await exchange.respond(std::move(response));
}

TEST_F(ServerTest, AnswersAndKeepsTheConnection) {
  RawClient client(serve(echo));
  for (int i = 0; i < 3; ++i) {
    client.send("POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    const auto answer = client.read_until("[hello]");
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
    EXPECT_THAT(answer, HasSubstr("Content-Length: 19\r\n"));
    EXPECT_THAT(answer, HasSubstr("\r\n\r\nPOST /a?b=c [hello]"));
  }
  EXPECT_EQ(server_->open_connections(), 1u);
}

TEST_F(ServerTest, HeadersThatAreOnEveryAnswerAre) {
  ServerOptions options;
  options.headers.add("X-Who", "me");
  RawClient client(serve(echo, options));
  client.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(client.read_until("[]"), HasSubstr("\r\nX-Who: me\r\n"));
  client.send("GET /b\r\n\r\n");
  const auto refused = client.read_until("\r\n\r\n");
  EXPECT_THAT(refused, StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(refused, HasSubstr("\r\nX-Who: me\r\n"));
}

TEST_F(ServerTest, ServesOurOwnClient) {
  const auto port = serve(echo);
  const auto url = parse_url(fmt::format("http://127.0.0.1:{}", port));
  const auto response = blocking_fetch(*url, "POST", "/x", {}, "body");
  ASSERT_TRUE(response.ok()) << response.error().message;
  EXPECT_EQ(response->status, 200);
  EXPECT_EQ(response->body, "POST /x [body]");
}

constexpr const char* kGet = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

// Sends the requests in pieces, at random and pipelined, and expects the answers in order.
TEST_F(ServerTest, AnswersPipelinedRequestsInOrderUnderRandomSplits) {
  const auto port = serve(echo);
  const uint64_t seed = 17;
  Rng rng(seed);
  for (int round = 0; round < 40; ++round) {
    std::string requests;
    std::vector<std::string> answers;
    for (int i = 0; i < 6; ++i) {
      const std::string body(rng.below(300), static_cast<char>('a' + i));
      if (rng.below(2) == 0) {
        requests += fmt::format("POST /{} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{}", i, body.size(), body);
      } else {
        requests += fmt::format("POST /{} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", i);
        if (!body.empty()) requests += fmt::format("{:x}\r\n{}\r\n", body.size(), body);
        requests += "0\r\n\r\n";
      }
      answers.push_back(fmt::format("\r\n\r\nPOST /{} [{}]", i, body));
    }
    RawClient client(port);
    std::string_view rest = requests;
    while (!rest.empty()) {
      const size_t n = std::min<size_t>(rest.size(), 1 + rng.below(400));
      ASSERT_TRUE(client.send(rest.substr(0, n)));
      rest.remove_prefix(n);
    }
    const auto got = client.read_until(answers.back());
    size_t at = 0;
    for (const auto& answer : answers) {
      const auto found = got.find(answer, at);
      ASSERT_NE(found, std::string::npos) << "seed " << seed << " round " << round << ": " << answer;
      at = found + answer.size();
    }
    EXPECT_EQ(at, got.size());
  }
}

// One client sends requests without waiting for answers and without end. Another one on the same loop waits for no more
// of them than were read at once: what it waits is counted in requests of the first.
TEST_F(ServerTest, X12AFloodOfPipelinedRequestsHoldsUpNobodyElse) {
  LoopGroup one_loop{1, "test"};
  std::atomic<int64_t> flooded{0}, flooded_before_calm{0};
  Server server(one_loop, {}, [&](ServerExchange& exchange) -> Task<> {
    if (exchange.request().path() == "/flood") {
      ++flooded;
    } else {
      flooded_before_calm = flooded.load();
    }
    co_await echo(exchange);
  });
  const auto port = server.listen("127.0.0.1", 0);
  ASSERT_TRUE(port.ok());

  RawClient flood(*port), calm(*port);
  std::string block;
  for (int i = 0; i < 500; ++i) block += "GET /flood HTTP/1.1\r\nHost: x\r\n\r\n";
  std::atomic<bool> stop{false}, stopped{false};
  std::promise<void> under_way;
  std::thread writer([&] {
    while (!stop && flood.send(block)) {
    }
    stopped = true;
    flood.shutdown_write();  // whoever reads need not wait
  });
  std::thread reader([&] {
    if (!flood.read_until("[]").empty()) under_way.set_value();
    while (!stopped && !flood.read_until("[]").empty()) {
    }
  });
  EXPECT_EQ(under_way.get_future().wait_for(20s), std::future_status::ready);
  int64_t longest = 0;
  const int64_t begun = flooded;
  const auto until = std::chrono::steady_clock::now() + 20s;
  // All are soon through where the flood's own threads get no processor.
  for (int i = 0; i < 50 || (flooded <= begun + 50 && std::chrono::steady_clock::now() < until); ++i) {
    EXPECT_TRUE(calm.send("GET /calm HTTP/1.1\r\nHost: x\r\n\r\n"));
    const int64_t before = flooded;  // not earlier: this thread may be kept waiting before it sends
    EXPECT_THAT(calm.read_until("[]"), HasSubstr("GET /calm []"));
    longest = std::max(longest, flooded_before_calm - before);
  }
  EXPECT_GT(flooded, begun + 50) << "the flood was none";
  EXPECT_LE(longest, 2048);
  stop = true;
  writer.join();
  reader.join();
}

TEST_F(ServerTest, X5ContinuesOnlyWhenTheBodyIsWanted) {
  const auto port = serve([](ServerExchange& exchange) -> Task<> {
    if (exchange.request().path() == "/refuse") {
      Response response = Response::text(401, "no");
      (void)co_await exchange.respond(std::move(response));
      co_return;
    }
    co_await echo(exchange);
  });
  const std::string head = " HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 4\r\n\r\n";
  RawClient wanted(port);
  wanted.send("POST /a" + head);
  EXPECT_EQ(wanted.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  wanted.send("body");
  EXPECT_THAT(wanted.read_until("[body]"), StartsWith("HTTP/1.1 200 OK"));

  RawClient eager(port);
  eager.send("POST /a" + head + "body");
  EXPECT_THAT(eager.read_until("[body]"), StartsWith("HTTP/1.1 200 OK"));

  RawClient refused(port);
  refused.send("POST /refuse" + head);
  const auto answer = refused.read_to_end();
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 401"));
  EXPECT_THAT(answer, HasSubstr("Connection: close\r\n"));
}

TEST_F(ServerTest, RefusesBadRequestsWithAnErrorBody) {
  const auto port = serve(echo);
  struct Case {
    std::string request;
    int status;
  };
  for (const Case& c : {Case{"nonsense\r\n\r\n", 400},
                        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
                        {"GET / HTTP/1.1\r\nHost: x\r\nX: " + std::string(70000, 'x') + "\r\n\r\n", 431},
                        {"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505}}) {
    RawClient client(port);
    client.send(c.request);
    const auto answer = client.read_to_end();
    EXPECT_THAT(answer, StartsWith(fmt::format("HTTP/1.1 {} ", c.status)));
    EXPECT_THAT(answer, HasSubstr("{\"error\":{\"message\":\""));
    EXPECT_THAT(answer, HasSubstr(fmt::format("\"code\":{}}}}}", c.status)));
    EXPECT_THAT(answer, HasSubstr("Connection: close\r\n"));
  }
  RawClient bad_chunk(port);
  bad_chunk.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
  EXPECT_THAT(bad_chunk.read_to_end(), StartsWith("HTTP/1.1 400 "));
}

TEST_F(ServerTest, X5BoundsTheBody) {
  const auto port = serve([](ServerExchange& exchange) -> Task<> {
    const auto body = co_await exchange.read_body(1000);
    Response response = Response::text(body.ok() ? 200 : 413, body.ok() ? "" : body.error().message);
    EXPECT_TRUE(body.ok() || body.error().code == ErrorCode::kTooLarge);
    (void)co_await exchange.respond(std::move(response));
  });
  // Not a byte of the body is needed for the first.
  RawClient announced(port);
  announced.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n");
  EXPECT_THAT(announced.read_to_end().substr(0, 12), "HTTP/1.1 413");
  RawClient sent(port);
  sent.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n" + std::string(600000, 'x'));
  EXPECT_THAT(sent.read_to_end().substr(0, 12), "HTTP/1.1 413") << "the answer must survive the unread body";
  RawClient chunked(port);
  chunked.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + std::string(1001, 'x'));
  EXPECT_THAT(chunked.read_until("larger than").substr(0, 12), "HTTP/1.1 413");
  RawClient fits(port);
  fits.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + std::string(1000, 'x'));
  EXPECT_THAT(fits.read_until("\r\n\r\n").substr(0, 12), "HTTP/1.1 200");
}

TEST_F(ServerTest, KeepsTheConnectionWhenNobodyWantedASmallBody) {
  const auto port = serve([](ServerExchange& exchange) -> Task<> {
    Response response = Response::text(200, "done");
    (void)co_await exchange.respond(std::move(response));
  });
  RawClient client(port);
  client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbo");
  EXPECT_THAT(client.read_until("done"), StartsWith("HTTP/1.1 200"));
  client.send(std::string("dy") + kGet);
  EXPECT_THAT(client.read_until("done"), StartsWith("HTTP/1.1 200"));
}

TEST_F(ServerTest, ReceivesALargeBodyWhole) {
  const auto port = serve([](ServerExchange& exchange) -> Task<> {
    const auto body = co_await exchange.read_body(16 << 20);
    size_t wrong = 0;
    if (body.ok()) {
      for (size_t i = 0; i < body->size(); ++i) wrong += (*body)[i] != static_cast<char>(i % 251);
    }
    Response response = Response::text(200, fmt::format("{} {}!", body.ok() ? body->size() : 0, wrong));
    (void)co_await exchange.respond(std::move(response));
  });
  std::string body(8 << 20, '\0');
  for (size_t i = 0; i < body.size(); ++i) body[i] = static_cast<char>(i % 251);
  RawClient client(port);
  client.send(fmt::format("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.size()) + body);
  EXPECT_THAT(client.read_until("!"), HasSubstr(fmt::format("{} 0!", body.size())));
}

Handler streaming(ResponseHead head, std::vector<std::string> pieces) {
  return [head = std::move(head), pieces = std::move(pieces)](ServerExchange& exchange) -> Task<> {
    auto started = co_await exchange.start(head);
    EXPECT_TRUE(started.ok());
    for (const auto& piece : pieces) {
      auto written = co_await exchange.write(piece);
      if (!written.ok()) co_return;
    }
    (void)co_await exchange.finish();
  };
}

// Bodies of known length go straight to where they are wanted: with whatever stands right behind them, in pieces of any
// size, and on a connection that has served others.
TEST_F(ServerTest, LargeBodiesUnderRandomSplitsLeaveTheNextRequestWhole) {
  const auto port = serve(echo);
  const uint64_t seed = 23;
  Rng rng(seed);
  for (int round = 0; round < 12; ++round) {
    SCOPED_TRACE(fmt::format("seed {} round {}", seed, round));
    RawClient client(port);
    for (int batch = 0; batch < 2; ++batch) {
      std::string requests;
      std::vector<std::string> answers;
      for (int i = 0; i < 3; ++i) {
        std::string body(rng.below(3) == 0 ? rng.below(100) : 1 + rng.below(300'000), ' ');
        for (char& c : body) c = static_cast<char>('a' + rng.below(26));
        requests += fmt::format("POST /{} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{}", i, body.size(), body);
        answers.push_back(fmt::format("\r\n\r\nPOST /{} [{}]", i, body));
      }
      std::thread sender([&] {
        for (std::string_view rest = requests; !rest.empty();) {
          const size_t n = std::min<size_t>(rest.size(), 1 + rng.below(rng.below(2) == 0 ? 100'000 : 400'000));
          if (!client.send(rest.substr(0, n))) return;
          rest.remove_prefix(n);
        }
      });
      client.wait_for(answers.back());
      const std::string got = client.take();
      sender.join();
      size_t at = 0;
      for (const std::string& answer : answers) {
        const size_t found = got.find(answer, at);
        ASSERT_NE(found, std::string::npos) << answer.size() << " bytes after " << at << " of " << got.size();
        at = found + answer.size();
      }
      EXPECT_EQ(at, got.size());
    }
  }
}

TEST_F(ServerTest, StreamsInChunksOrUntilCloseOrByLength) {
  const auto chunked =
      serve(streaming({200, {{"Content-Type", "text/event-stream"}}}, {"one", "", "twotwotwotwotwotwo"}));
  RawClient client(chunked);
  client.send(kGet);
  const auto answer = client.read_until("0\r\n\r\n");
  EXPECT_THAT(answer, HasSubstr("Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                                "3\r\none\r\n12\r\ntwotwotwotwotwotwo\r\n0\r\n\r\n"));

  RawClient old(chunked);
  old.send("GET / HTTP/1.0\r\n\r\n");
  const auto until_close = old.read_to_end();
  EXPECT_THAT(until_close, ::testing::EndsWith("\r\n\r\nonetwotwotwotwotwotwo"));
  EXPECT_THAT(until_close, Not(HasSubstr("chunked")));

  RawClient head(chunked);
  head.send("HEAD / HTTP/1.1\r\nHost: x\r\n\r\nHEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(head.read_to_end(), Not(HasSubstr("one")));

  const auto by_length = serve(streaming({200, {{"Content-Length", "6"}}}, {"one", "two"}));
  RawClient length(by_length);
  length.send(kGet);
  EXPECT_THAT(length.read_until("onetwo"), ::testing::EndsWith("Content-Length: 6\r\n\r\nonetwo"));
  length.send(kGet);
  EXPECT_THAT(length.read_until("onetwo"), StartsWith("HTTP/1.1 200"));
}

TEST_F(ServerTest, NeverLetsATruncatedBodyLookWhole) {
  for (const auto& [head, pieces] :
       {std::pair<ResponseHead, std::vector<std::string>>{{200, {{"Content-Length", "7"}}}, {"onetwo"}},
        {{200, {{"Content-Length", "5"}}}, {"onetwo"}}}) {
    const auto port = serve(streaming(head, pieces));
    RawClient client(port);
    client.send(kGet);
    const auto url = parse_url(fmt::format("127.0.0.1:{}", port));
    const auto response = blocking_fetch(*url, "GET", "/");
    ASSERT_FALSE(response.ok());
    EXPECT_EQ(response.error().code, ErrorCode::kReset) << response.error().message;
  }
  const auto port = serve([](ServerExchange& exchange) -> Task<> {
    const ResponseHead head;
    (void)co_await exchange.start(head);
    (void)co_await exchange.write("part");
  });
  RawClient client(port);
  client.send(kGet);
  const auto answer = client.read_to_end();
  EXPECT_THAT(answer, HasSubstr("part"));
  EXPECT_THAT(answer, Not(HasSubstr("0\r\n\r\n")));
}

TEST_F(ServerTest, HasNoBodyWhereThereIsNone) {
  const auto port = serve([](ServerExchange& exchange) -> Task<> {
    Response response = Response::text(exchange.request().path() == "/204" ? 204 : 200, "text");
    (void)co_await exchange.respond(std::move(response));
  });
  RawClient client(port);
  client.send("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n");
  auto answer = client.read_until("\r\n\r\n");
  EXPECT_THAT(answer, HasSubstr("Content-Length: 4\r\n"));
  EXPECT_THAT(answer, ::testing::EndsWith("\r\n\r\n"));
  client.send("GET /204 HTTP/1.1\r\nHost: x\r\n\r\n");
  answer = client.read_until("\r\n\r\n");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 204 No Content\r\n"));
  EXPECT_THAT(answer, Not(HasSubstr("Content-Length")));
  client.send(kGet);
  EXPECT_THAT(client.read_until("text"), StartsWith("HTTP/1.1 200"));
}

TEST_F(ServerTest, SendsTheHeadOfAStreamWithoutWaitingForItsBody) {
  std::promise<void> seen;
  auto future = seen.get_future().share();
  const auto port = serve([future](ServerExchange& exchange) -> Task<> {
    const ResponseHead head;
    (void)co_await exchange.start(head);
    while (future.wait_for(0s) != std::future_status::ready) co_await exchange.loop().sleep(1ms);
    (void)co_await exchange.write("late");
    (void)co_await exchange.finish();
  });
  RawClient client(port);
  client.send(kGet);
  EXPECT_THAT(client.read_until("\r\n\r\n"), ::testing::EndsWith("\r\n\r\n"));
  seen.set_value();
  EXPECT_EQ(client.read_until("0\r\n\r\n"), "4\r\nlate\r\n0\r\n\r\n");
}

TEST_F(ServerTest, AnswersForAHandlerThatDoesNot) {
  const auto port = serve([](ServerExchange& exchange) -> Task<> {
    if (exchange.request().path() == "/throw") throw std::runtime_error("a \"bad\" day");
    co_return;
  });
  RawClient silent(port);
  silent.send(kGet);
  EXPECT_THAT(silent.read_to_end(), StartsWith("HTTP/1.1 500 "));
  RawClient thrown(port);
  thrown.send("GET /throw HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(thrown.read_to_end(), HasSubstr("a \\\"bad\\\" day"));
}

TEST_F(ServerTest, RefusesASecondAnswer) {
  const auto port = serve([](ServerExchange& exchange) -> Task<> {
    auto early = co_await exchange.write("x");
    EXPECT_FALSE(early.ok());
    Response first = Response::text(200, "first");
    Response second = Response::text(200, "second");
    EXPECT_FALSE(exchange.started());
    (void)co_await exchange.respond(std::move(first));
    EXPECT_TRUE(exchange.started());
    auto again = co_await exchange.respond(std::move(second));
    EXPECT_FALSE(again.ok());
  });
  RawClient client(port);
  client.send(kGet);
  EXPECT_THAT(client.read_until("first"), Not(HasSubstr("second")));
}

TEST_F(ServerTest, NoticesThatTheClientLeftWhileNothingIsWritten) {
  for (const bool hard : {false, true}) {
    std::promise<void> started;
    std::promise<bool> gone;
    const auto port = serve([&](ServerExchange& exchange) -> Task<> {
      bool told = false;
      exchange.on_client_gone([&] { told = true; });
      started.set_value();
      for (int i = 0; i < 5000 && !told; ++i) co_await exchange.loop().sleep(1ms);
      // Asked again it says so at once.
      bool again = false;
      exchange.on_client_gone([&] { again = true; });
      gone.set_value(told && again && exchange.client_gone());
    });
    RawClient client(port);
    client.send(kGet);
    started.get_future().wait();
    hard ? client.reset() : client.close();
    EXPECT_TRUE(gone.get_future().get()) << (hard ? "reset" : "close");
    server_.reset();
  }
}

// A little more than is read ahead of the handler: the rest is with the kernel, and the end behind it.
TEST_F(ServerTest, NoticesThatTheClientLeftBehindALargeBodyThatNobodyReads) {
  for (const bool hard : {false, true}) {
    SCOPED_TRACE(hard ? "reset" : "close");
    std::promise<void> started;
    std::promise<bool> gone;
    const std::string sent((256 << 10) + 1000, 'x');
    std::string received;
    const auto port = serve([&](ServerExchange& exchange) -> Task<> {
      bool told = false;
      exchange.on_client_gone([&] { told = true; });
      started.set_value();
      for (int i = 0; i < 5000 && !told; ++i) co_await exchange.loop().sleep(1ms);
      auto body = co_await exchange.read_body(1 << 20);
      if (body.ok()) received = std::move(body).value();
      gone.set_value(told && exchange.client_gone());
    });
    RawClient client(port);
    client.send(fmt::format("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", sent.size()));
    started.get_future().wait();
    client.send(sent);
    hard ? client.reset() : client.close();
    EXPECT_TRUE(gone.get_future().get());
    EXPECT_TRUE(hard || received == sent) << "what had come can be read even so";
    server_.reset();
  }
}

TEST_F(ServerTest, AClientThatLeftRightBehindItsBodyIsGoneWhenThatHasBeenRead) {
  std::promise<bool> gone;
  const auto port = serve([&](ServerExchange& exchange) -> Task<> {
    auto body = co_await exchange.read_body(1 << 20);
    gone.set_value(body.ok() && exchange.client_gone());
  });
  RawClient client(port);
  EXPECT_TRUE(client.send_last("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"));
  EXPECT_TRUE(gone.get_future().get());
}

TEST_F(ServerTest, AClientThatEndsItsSideIsGoneAndGetsNoErrorOfOurs) {
  const auto port = serve([&](ServerExchange& exchange) -> Task<> { co_await exchange.read_body(1 << 20); });
  RawClient client(port);
  EXPECT_TRUE(client.send_last("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"));
  EXPECT_EQ(client.read_to_end(), "");
}

TEST_F(ServerTest, DoesNotTakePipelinedBytesForALeavingClient) {
  std::promise<void> started;
  std::promise<void> more;
  auto sent = more.get_future().share();
  std::atomic<int> gone{0};
  std::atomic<int> calls{0};
  const auto port = serve([&, sent](ServerExchange& exchange) -> Task<> {
    exchange.on_client_gone([&] { ++gone; });
    if (calls++ == 0) {
      started.set_value();
      while (sent.wait_for(0s) != std::future_status::ready) co_await exchange.loop().sleep(1ms);
      co_await exchange.loop().sleep(5ms);
    }
    EXPECT_FALSE(exchange.client_gone());
    Response response = Response::text(200, fmt::format("answer{}", exchange.request().target));
    (void)co_await exchange.respond(std::move(response));
  });
  RawClient client(port);
  client.send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\n");
  started.get_future().wait();
  client.send("GET /2 HTTP/1.1\r\nHost: x\r\n\r\nGET /3 HTTP/1.1\r\nHost: x\r\n\r\n");
  more.set_value();
  EXPECT_THAT(client.read_until("answer/3"), ::testing::AllOf(HasSubstr("answer/1"), HasSubstr("answer/2")));
  EXPECT_EQ(gone, 0);
}

TEST_F(ServerTest, StopsReadingAndWritingWhileTheClientReadsNothing) {
  std::atomic<size_t> written{0};
  const size_t total = 24 << 20;
  const auto port = serve([&](ServerExchange& exchange) -> Task<> {
    const ResponseHead head;
    (void)co_await exchange.start(head);
    const std::string piece(1 << 16, 'x');
    while (written < total) {
      const auto sent = co_await exchange.write(piece);
      if (!sent.ok()) co_return;
      written += piece.size();
    }
    (void)co_await exchange.finish();
  });
  RawClient client(port);
  client.send(kGet);
  // Until the kernel's buffers are full and nothing moves any more.
  for (size_t before = 1; before != written;) {
    before = written;
    std::this_thread::sleep_for(30ms);
  }
  EXPECT_LT(written, total);
  const auto all = client.read_until("\r\n0\r\n\r\n");
  EXPECT_EQ(written, total);
  EXPECT_EQ(static_cast<size_t>(std::count(all.begin(), all.end(), 'x')), total);
}

TEST_F(ServerTest, HasATimeoutForEachPhase) {
  ServerOptions options;
  options.idle_timeout = 60ms;
  options.head_timeout = 30ms;
  options.body_stall_timeout = 20ms;
  options.write_stall_timeout = 40ms;
  std::promise<ErrorCode> body_error;
  std::promise<ErrorCode> write_error;
  const auto port = serve(
      [&](ServerExchange& exchange) -> Task<> {
        if (exchange.request().method == "POST") {
          const auto body = co_await exchange.read_body(100);
          body_error.set_value(body.ok() ? ErrorCode::kInternal : body.error().code);
          co_return;
        }
        if (exchange.request().path() == "/slow") {
          co_await exchange.loop().sleep(100ms);  // longer than all of them: none runs while the handler is at work
          Response response = Response::text(200, "slow");
          (void)co_await exchange.respond(std::move(response));
          co_return;
        }
        const ResponseHead head;
        (void)co_await exchange.start(head);
        const std::string piece(1 << 20, 'x');
        for (;;) {
          const auto sent = co_await exchange.write(piece);
          if (sent.ok()) continue;
          write_error.set_value(sent.error().code);
          co_return;
        }
      },
      options);
  RawClient idle(port);
  EXPECT_EQ(idle.read_to_end(), "");
  EXPECT_TRUE(idle.at_end());
  RawClient half_head(port);
  half_head.send("GET / HT");
  EXPECT_THAT(half_head.read_to_end(), StartsWith("HTTP/1.1 408 "));
  RawClient half_body(port);
  half_body.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf");
  EXPECT_EQ(body_error.get_future().get(), ErrorCode::kTimeout);
  RawClient slow(port);
  slow.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(slow.read_to_end(), ::testing::EndsWith("slow"));
  EXPECT_TRUE(slow.at_end()) << "idle after its answer";
  RawClient deaf(port);
  deaf.send(kGet);
  EXPECT_EQ(write_error.get_future().get(), ErrorCode::kTimeout);
}

TEST_F(ServerTest, DrainsWhatIsInProgressAndNothingElse) {
  std::promise<void> started;
  std::promise<void> finish;
  auto may_finish = finish.get_future().share();
  const auto port = serve([&, may_finish](ServerExchange& exchange) -> Task<> {
    if (exchange.request().path() == "/slow") {
      started.set_value();
      while (may_finish.wait_for(0s) != std::future_status::ready) co_await exchange.loop().sleep(1ms);
    }
    Response response = Response::text(200, "finished");
    (void)co_await exchange.respond(std::move(response));
  });
  RawClient idle(port);
  idle.send(kGet);
  idle.read_until("finished");
  RawClient busy(port);
  busy.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
  started.get_future().wait();
  // The first handler returns after its answer has arrived.
  for (int i = 0; i < 5000 && server_->active_requests() != 1; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(server_->active_requests(), 1u);

  server_->stop_accepting();
  RawClient late(port);
  EXPECT_FALSE(late.connected());
  idle.send(kGet);
  EXPECT_THAT(idle.read_until("finished"), StartsWith("HTTP/1.1 200")) << "a kept-alive connection goes on";

  auto drained = std::async(std::launch::async, [&] { return server_->drain(10s); });
  finish.set_value();
  EXPECT_EQ(drained.get(), 0u);
  EXPECT_THAT(busy.read_to_end(), HasSubstr("finished"));
  EXPECT_EQ(idle.read_to_end(), "");
  EXPECT_TRUE(idle.at_end());
}

TEST_F(ServerTest, CutsOffWhatOutlivesTheDeadline) {
  std::promise<void> started;
  std::promise<ErrorCode> outcome;
  const auto port = serve([&](ServerExchange& exchange) -> Task<> {
    bool gone = false;
    exchange.on_client_gone([&] { gone = true; });
    started.set_value();
    while (!gone) co_await exchange.loop().sleep(1ms);
    Response response = Response::text(200, "too late");
    const auto sent = co_await exchange.respond(std::move(response));
    outcome.set_value(sent.ok() ? ErrorCode::kInternal : sent.error().code);
  });
  RawClient client(port);
  client.send(kGet);
  started.get_future().wait();
  EXPECT_EQ(server_->drain(10ms), 1u);
  EXPECT_EQ(outcome.get_future().get(), ErrorCode::kCancelled);
  EXPECT_EQ(client.read_to_end(), "");
  server_.reset();
}

TEST_F(ServerTest, ListensOnNamesAndBothFamilies) {
  for (const char* host : {"localhost", "127.0.0.1", "::1", "[::1]", "0.0.0.0", "::", ""}) {
    Server server(loops_, {}, echo);
    const auto port = server.listen(host, 0);
    if (!port.ok() && std::string_view(host).find("::1") != std::string_view::npos) continue;  // no IPv6 here
    ASSERT_TRUE(port.ok()) << host << ": " << port.error().message;
    std::string to = std::string_view(host).find(':') == std::string_view::npos ? "localhost" : "[::1]";
    if (std::string_view(host) == "127.0.0.1") to = "127.0.0.1";
    const auto url = parse_url(fmt::format("http://{}:{}", to, *port));
    const auto response = blocking_fetch(*url, "GET", "/");
    ASSERT_TRUE(response.ok()) << host << ": " << response.error().message;
    EXPECT_EQ(response->body, "GET / []");
  }
}

TEST_F(ServerTest, SaysThatAPortIsTaken) {
  const auto port = serve(echo);
  Server second(loops_, {}, echo);
  const auto taken = second.listen("127.0.0.1", port);
  ASSERT_FALSE(taken.ok());
  EXPECT_EQ(taken.error().code, ErrorCode::kAlreadyExists);
  EXPECT_THAT(taken.error().message, HasSubstr(fmt::format("127.0.0.1:{}", port)));
  EXPECT_EQ(second.listen("no such name", 0).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(second.listen("203.0.113.7", 0).error().code, ErrorCode::kInvalidArgument);
}

TEST_F(ServerTest, UsesEveryLoop) {
  std::mutex mutex;
  std::set<EventLoop*> seen;
  const auto port = serve([&](ServerExchange& exchange) -> Task<> {
    EXPECT_TRUE(exchange.loop().on_loop_thread());
    EXPECT_EQ(exchange.peer_address(), "127.0.0.1");
    {
      const std::lock_guard lock(mutex);
      seen.insert(&exchange.loop());
    }
    Response response = Response::text(200, "ok");
    (void)co_await exchange.respond(std::move(response));
  });
  // The kernel spreads connections by a hash of their ports.
  for (int i = 0; i < 64; ++i) {
    RawClient client(port);
    client.send(kGet);
    client.read_until("ok");
  }
  EXPECT_EQ(seen.size(), loops_.size());
}

TEST_F(ServerTest, MayOutliveItsLoops) {
  std::promise<void> started;
  auto loops = std::make_unique<LoopGroup>(2, "short");
  auto held = std::make_shared<int>(0);
  auto server = std::make_unique<Server>(*loops, ServerOptions{}, [&started, held](ServerExchange& exchange) -> Task<> {
    auto mine = held;
    started.set_value();
    co_await exchange.loop().sleep(1h);
  });
  const auto port = server->listen("127.0.0.1", 0);
  RawClient client(*port);
  client.send(kGet);
  started.get_future().wait();
  loops->stop();
  server.reset();
  loops.reset();
  EXPECT_EQ(held.use_count(), 1) << "the handler's frame was not destroyed";
}

TEST_F(ServerTest, ABodyUntilCloseThatIsCutEndsWithAReset) {
  const auto port = serve([](ServerExchange& exchange) -> Task<> {
    ResponseHead head{200, {}};
    const auto started = co_await exchange.start(std::move(head));
    if (!started.ok()) co_return;
    const auto written = co_await exchange.write("part");
    if (!written.ok()) co_return;
    auto go_on = co_await exchange.read_body(100);  // the client has what was written
    exchange.abort();
  });
  for (const char* version : {"1.0", "1.1"}) {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    const std::string request = fmt::format("POST / HTTP/{}\r\nHost: x\r\nContent-Length: 1\r\n\r\n", version);
    ASSERT_EQ(::send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
    std::string got;
    char buffer[4096];
    ssize_t n = 0;
    while (got.find("part") == std::string::npos && (n = ::recv(fd, buffer, sizeof buffer, 0)) > 0) {
      got.append(buffer, static_cast<size_t>(n));
    }
    ASSERT_EQ(::send(fd, "x", 1, MSG_NOSIGNAL), 1);
    do n = ::recv(fd, buffer, sizeof buffer, 0);
    while (n > 0);
    EXPECT_EQ(n, std::string_view(version) == "1.0" ? -1 : 0) << "chunks tell of themselves";
    ::close(fd);
  }
}

}  // namespace
}  // namespace sluice::net
