#include "net/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <thread>

#include "base/rng.h"
#include "net/server.h"
#include "testing/raw_listener.h"

namespace sluice::net {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

// A server that does exactly what a test says, on a thread of its own. Waits are bounded.
class ScriptedServer {
 public:
  class Peer {
   public:
    explicit Peer(int fd) : fd_(fd) {}
    ~Peer() { close(); }
    Peer(const Peer&) = delete;
    Peer& operator=(const Peer&) = delete;
    void close() {
      if (fd_ >= 0) ::close(std::exchange(fd_, -1));
    }
    void reset() {
      const linger hard{1, 0};
      ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
      close();
    }
    void send(std::string_view bytes) {
      while (!bytes.empty()) {
        const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (n <= 0) return;
        bytes.remove_prefix(static_cast<size_t>(n));
      }
    }
    // Up to and with `text`; empty at the end of the stream or after 5 s.
    std::string read_until(std::string_view text) {
      for (;;) {
        const auto at = in_.find(text);
        if (at != std::string::npos) {
          std::string got = in_.substr(0, at + text.size());
          in_.erase(0, at + text.size());
          return got;
        }
        pollfd poll{fd_, POLLIN, 0};
        char buffer[4096];
        if (::poll(&poll, 1, 5000) != 1) return {};
        const ssize_t n = ::recv(fd_, buffer, sizeof buffer, 0);
        if (n <= 0) return {};
        in_.append(buffer, static_cast<size_t>(n));
      }
    }

   private:
    int fd_;
    std::string in_;
  };

  // `script` gets each connection in turn, with its number from 0.
  explicit ScriptedServer(std::function<void(Peer&, int)> script) {
    url = *parse_url(listener_.url());
    thread_ = std::thread([this, script = std::move(script)] {
      for (int i = 0;; ++i) {
        const int fd = ::accept(listener_.fd(), nullptr, nullptr);
        if (fd < 0) return;
        const int one = 1;
        ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        current_ = ::dup(fd);
        Peer peer(fd);
        script(peer, i);
        ::close(current_.exchange(-1));
      }
    });
  }
  ~ScriptedServer() {
    listener_.shutdown();
    // Ends a wait of the script. The descriptor is a copy: the script may have closed its own.
    ::shutdown(current_, SHUT_RDWR);
    thread_.join();
  }

  Url url;

 private:
  sluice::testing::RawListener listener_;
  std::atomic<int> current_{-1};
  std::thread thread_;
};

RequestHead get(std::string target = "/") {
  RequestHead head;
  head.method = "GET";
  head.target = std::move(target);
  return head;
}

class ClientTest : public ::testing::Test {
 protected:
  ClientTest() : loop_("client") { loop_.start(); }
  // The client lives and dies on its loop.
  void TearDown() override {
    on_loop<void>([&]() -> Task<> {
      client_.reset();
      co_return;
    });
  }

  template <class T>
  T on_loop(std::function<Task<T>()> coroutine) {
    return loop_.run<T>(std::move(coroutine));
  }
  Client& client(ClientOptions options = {}) {
    if (!client_) client_.emplace(loop_, options);
    return *client_;
  }
  Result<Response> fetch(const Url& url, std::string method = "GET", std::string body = {},
                         ClientTimeouts timeouts = {}) {
    return on_loop<Result<Response>>([&]() -> Task<Result<Response>> {
      Headers headers;
      auto response = co_await client().fetch(url, method, "/", headers, body, timeouts);
      co_return std::move(response);
    });
  }
  // Waits until the loop sees it so.
  bool becomes(const std::function<bool()>& condition) {
    return on_loop<bool>([&]() -> Task<bool> {
      for (int i = 0; i < 3000; ++i) {
        if (condition()) co_return true;
        co_await loop_.sleep(1ms);
      }
      co_return false;
    });
  }

  EventLoop loop_;
  std::optional<Client> client_;
};

void serve_forever(ScriptedServer::Peer& peer, std::string_view answer) {
  while (!peer.read_until("\r\n\r\n").empty()) peer.send(answer);
}

TEST_F(ClientTest, ReusesItsConnectionAndCounts) {
  ScriptedServer server([](auto& peer, int) { serve_forever(peer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); });
  for (int i = 0; i < 3; ++i) {
    const bool reused = on_loop<bool>([&, i]() -> Task<bool> {
      auto sent = co_await client().send(server.url, get(), {});
      EXPECT_TRUE(sent.ok());
      EXPECT_EQ(client().busy_connections(server.url), 1u);
      auto exchange = std::move(*sent);
      EXPECT_FALSE(exchange->answered());
      auto head = co_await exchange->read_head();
      EXPECT_TRUE(head.ok() && head->status == 200 && exchange->answered());
      auto body = co_await exchange->read_all();
      EXPECT_EQ(*body, "ok");
      EXPECT_EQ(client().idle_connections(server.url), 1u);
      EXPECT_EQ(client().busy_connections(server.url), 0u);
      co_return exchange->reused();
    });
    EXPECT_EQ(reused, i > 0);
  }
  on_loop<void>([&]() -> Task<> {
    client().forget(server.url);
    EXPECT_EQ(client().idle_connections(server.url), 0u);
    co_return;
  });
}

TEST_F(ClientTest, SendsHeadAndBodyAsTold) {
  std::promise<std::string> seen;
  ScriptedServer server([&](auto& peer, int) {
    seen.set_value(peer.read_until("body"));
    peer.send("HTTP/1.1 204 No Content\r\n\r\n");
  });
  Url url = server.url;
  url.path = "/prefix";
  const auto response = on_loop<Result<Response>>([&]() -> Task<Result<Response>> {
    Headers headers{{"X-A", "1"}, {"Content-Length", "999"}};
    auto got = co_await client().fetch(url, "POST", "/x?y=z", headers, "body");
    co_return std::move(got);
  });
  ASSERT_TRUE(response.ok()) << response.error().message;
  EXPECT_EQ(response->status, 204);
  EXPECT_EQ(seen.get_future().get(), fmt::format("POST /prefix/x?y=z HTTP/1.1\r\nX-A: 1\r\nHost: {}\r\n"
                                                 "Content-Length: 4\r\n\r\nbody",
                                                 url.authority()));
}

TEST_F(ClientTest, ReadsAnyFramingUnderRandomSplits) {
  const uint64_t seed = 23;
  Rng rng(seed);
  const std::string body = "data: one\n\ndata: two\n\ndata: [DONE]\n\n";
  std::string chunks;
  for (size_t i = 0; i < body.size(); i += 7) {
    const auto piece = body.substr(i, 7);
    chunks += fmt::format("{:X};x=y\r\n{}\r\n", piece.size(), piece);
  }
  const std::vector<std::string> answers = {
      "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks +
          "0\r\nTrailer: t\r\n\r\n",
      fmt::format("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}", body.size(), body),
      "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body,
      "HTTP/1.0 200 OK\r\n\r\n" + body,
  };
  ScriptedServer server([&](auto& peer, int) {
    while (!peer.read_until("\r\n\r\n").empty()) {
      const size_t kind = rng.below(answers.size());
      std::string_view rest = answers[kind];
      while (!rest.empty()) {
        const size_t n = std::min<size_t>(rest.size(), 1 + rng.below(40));
        peer.send(rest.substr(0, n));
        rest.remove_prefix(n);
        if (rng.below(4) == 0) std::this_thread::yield();
      }
      if (kind >= 2) return;
    }
  });
  for (int i = 0; i < 100; ++i) {
    const auto response = fetch(server.url);
    ASSERT_TRUE(response.ok()) << "seed " << seed << " round " << i << ": " << response.error().message;
    EXPECT_EQ(response->body, body);
  }
}

// Its buffer is small while events are, and grows with them.
TEST_F(ClientTest, AStreamOfSmallEventsMayBringLargeOnesAndItsConnectionAnyAnswer) {
  const std::string large(300'000, 'l');
  std::vector<std::promise<void>> read(4);
  ScriptedServer server([&](auto& peer, int) {
    peer.read_until("\r\n\r\n");
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (auto& one : read) {
      peer.send("5\r\nsmall\r\n");
      one.get_future().wait();
    }
    peer.send(fmt::format("{:x}\r\n{}\r\n5\r\nsmall\r\n0\r\n\r\n", large.size(), large));
    peer.read_until("\r\n\r\n");
    peer.send(fmt::format("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}", large.size(), large));
  });
  on_loop<void>([&]() -> Task<> {
    auto sent = co_await client().send(server.url, get(), {});
    auto exchange = std::move(*sent);
    (void)co_await exchange->read_head();
    std::string all;
    for (;;) {
      auto more = co_await exchange->read_some();
      EXPECT_TRUE(more.ok());
      if (!more.ok() || more->empty()) break;
      all.append(*more);
      if (all.size() % 5 == 0 && all.size() <= 5 * read.size()) read[all.size() / 5 - 1].set_value();
    }
    EXPECT_EQ(all, "smallsmallsmallsmall" + large + "small");
  });
  const auto next = fetch(server.url);
  ASSERT_TRUE(next.ok()) << next.error().message;
  EXPECT_EQ(next->body, large);
}

TEST_F(ClientTest, HandsOutBytesAsTheyArrive) {
  std::promise<void> read;
  ScriptedServer server([&](auto& peer, int) {
    peer.read_until("\r\n\r\n");
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n01234");
    read.get_future().wait();  // the chunk is not whole, and its bytes are not held back
    peer.send("56789\r\n2\r\nab\r\n0\r\n\r\n");
    peer.read_until("never");
  });
  on_loop<void>([&]() -> Task<> {
    auto sent = co_await client().send(server.url, get(), {});
    auto exchange = std::move(*sent);
    (void)co_await exchange->read_head();
    auto first = co_await exchange->read_some();
    EXPECT_EQ(*first, "01234");
    read.set_value();
    std::string rest;
    for (;;) {
      auto more = co_await exchange->read_some();
      EXPECT_TRUE(more.ok());
      if (!more.ok() || more->empty()) break;
      rest.append(*more);
    }
    EXPECT_EQ(rest, "56789ab");
    auto end = co_await exchange->read_some();
    EXPECT_TRUE(end.ok() && end->empty()) << "an end stays an end";
  });
}

TEST_F(ClientTest, NoticesIdleConnectionsThatEnd) {
  std::promise<void> close_now;
  auto may_close = close_now.get_future().share();
  ScriptedServer server([may_close](auto& peer, int i) {
    peer.read_until("\r\n\r\n");
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    if (i == 0) may_close.wait();
    if (i == 1) {
      peer.send("unasked");
      peer.read_until("never");
    }
    if (i == 2) peer.reset();
  });
  EXPECT_TRUE(fetch(server.url).ok());
  EXPECT_TRUE(becomes([&] { return client().idle_connections(server.url) == 1; }));
  close_now.set_value();
  EXPECT_TRUE(becomes([&] { return client().idle_connections(server.url) == 0; })) << "closed";
  EXPECT_TRUE(fetch(server.url).ok());
  EXPECT_TRUE(becomes([&] { return client().idle_connections(server.url) == 0; })) << "unasked bytes";
  EXPECT_TRUE(fetch(server.url).ok());
  EXPECT_TRUE(becomes([&] { return client().idle_connections(server.url) == 0; })) << "reset";
}

TEST_F(ClientTest, NeverSendsOnAConnectionKnownToBeDead) {
  // Closed right after the answer: the news is in the kernel when the next request comes.
  ScriptedServer server([](auto& peer, int) {
    peer.read_until("\r\n\r\n");
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
  });
  for (int i = 0; i < 50; ++i) {
    const auto response = fetch(server.url);
    ASSERT_TRUE(response.ok()) << i << ": " << response.error().message;
  }
}

TEST_F(ClientTest, SaysWhatAReplayNeedsToKnow) {
  ScriptedServer server([](auto& peer, int) {
    peer.read_until("\r\n\r\n");
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    peer.read_until("\r\n\r\n");  // a second request: read, and never answered
  });
  EXPECT_TRUE(fetch(server.url, "POST").ok());
  on_loop<void>([&]() -> Task<> {
    RequestHead head = get();
    head.method = "POST";
    auto sent = co_await client().send(server.url, head, {});
    EXPECT_TRUE(sent.ok());
    auto exchange = std::move(*sent);
    auto answer = co_await exchange->read_head();
    EXPECT_FALSE(answer.ok());
    EXPECT_TRUE(answer.ok() || answer.error().code == ErrorCode::kReset);
    EXPECT_TRUE(exchange->reused());
    EXPECT_FALSE(exchange->answered());
  });
  EXPECT_TRUE(fetch(server.url, "POST").ok());
  EXPECT_TRUE(fetch(server.url, "GET").ok()) << "a GET is repeated on a fresh connection";
}

// While a body is sent that no buffer takes at once. The server has not got the request whole, so even a POST is sent
// again, and not on another connection that has been idle for as long.
TEST_F(ClientTest, AKeptConnectionThatEndsWhileTheRequestIsSentIsReplacedByAFreshOne) {
  std::atomic<int> connections{0};
  ScriptedServer server([&](auto& peer, int) {
    ++connections;
    peer.read_until("end\r\n\r\n");
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    peer.read_until("POST");  // the next request, of which the rest is not read
  });
  ASSERT_TRUE(fetch(server.url, "POST", "end\r\n\r\n").ok());
  const auto response = fetch(server.url, "POST", std::string(12 << 20, 'x') + "end\r\n\r\n");
  ASSERT_TRUE(response.ok()) << response.error().message;
  EXPECT_EQ(connections, 2);
}

TEST_F(ClientTest, ClosesIdleConnectionsAfterTheirTime) {
  ScriptedServer server([](auto& peer, int) { serve_forever(peer, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"); });
  ClientOptions options;
  options.idle_timeout = 20ms;
  client(options);
  EXPECT_TRUE(fetch(server.url).ok());
  EXPECT_TRUE(becomes([&] { return client().idle_connections(server.url) == 1; }));
  EXPECT_TRUE(becomes([&] { return client().idle_connections(server.url) == 0; }));
  EXPECT_TRUE(fetch(server.url).ok());
  EXPECT_TRUE(becomes([&] { return client().idle_connections(server.url) == 0; })) << "the sweep goes on";
}

TEST_F(ClientTest, ClosesIdleConnectionsOfAllHostsInAnyOrderOfTheirUse) {
  const auto serve = [](auto& peer, int) { serve_forever(peer, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"); };
  ScriptedServer one(serve), two(serve);
  ClientOptions options;
  options.idle_timeout = 20ms;
  client(options);
  for (const Url& url : {one.url, two.url, one.url, one.url, two.url}) EXPECT_TRUE(fetch(url).ok());
  EXPECT_TRUE(becomes([&] { return client().idle_connections(one.url) + client().idle_connections(two.url) == 0; }));
  EXPECT_TRUE(fetch(one.url).ok()) << "on a fresh one";
}

TEST_F(ClientTest, NamesHostAndPhaseInItsErrors) {
  Url nobody = *parse_url("http://127.0.0.1:1");
  const auto refused = fetch(nobody);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kRefused);
  EXPECT_THAT(refused.error().message, HasSubstr("connect to 127.0.0.1:1: Connection refused"));

  Url nowhere = *parse_url("http://no..such..host:80");
  const auto unknown = fetch(nowhere);
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(unknown.error().message, HasSubstr("no..such..host"));
}

TEST_F(ClientTest, BoundsEachPhase) {
  ScriptedServer silent([](auto& peer, int) {
    peer.read_until("\r\n\r\n");
    peer.read_until("never");
  });
  ClientTimeouts timeouts;
  timeouts.head = 20ms;
  const auto no_head = fetch(silent.url, "GET", "", timeouts);
  ASSERT_FALSE(no_head.ok());
  EXPECT_EQ(no_head.error().code, ErrorCode::kTimeout);
  EXPECT_EQ(no_head.error().message,
            silent.url.authority() + ": waiting for the response head took longer than 0.02 s");

  ScriptedServer stalls([](auto& peer, int) {
    peer.read_until("\r\n\r\n");
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    peer.read_until("never");
  });
  timeouts.head = 10s;
  timeouts.silence = 20ms;
  const auto no_body = fetch(stalls.url, "GET", "", timeouts);
  ASSERT_FALSE(no_body.ok());
  EXPECT_EQ(no_body.error().code, ErrorCode::kTimeout);
  EXPECT_THAT(no_body.error().message, HasSubstr("reading the response body took longer than 0.02 s"));

  std::promise<void> done;
  ScriptedServer deaf([&](auto& peer, int) {
    peer.read_until("\r\n\r\n");
    done.get_future().wait();
  });
  const auto no_read = fetch(deaf.url, "POST", std::string(32 << 20, 'x'), timeouts);
  done.set_value();
  ASSERT_FALSE(no_read.ok());
  EXPECT_EQ(no_read.error().code, ErrorCode::kTimeout);
  EXPECT_THAT(no_read.error().message, HasSubstr("sending the request took longer than"));

  const sluice::testing::FullListener unreachable;
  timeouts.connect = 20ms;
  timeouts.head = 20ms;
  const auto no_connection = fetch(*parse_url(unreachable.url()), "GET", "", timeouts);
  ASSERT_FALSE(no_connection.ok());
  EXPECT_EQ(no_connection.error().code, ErrorCode::kTimeout);
  EXPECT_THAT(no_connection.error().message, HasSubstr("connecting took longer than 0.02 s"));
}

TEST_F(ClientTest, CloseEndsAWaitingCall) {
  ScriptedServer server([](auto& peer, int) {
    peer.read_until("\r\n\r\n");
    peer.read_until("never");
  });
  on_loop<void>([&]() -> Task<> {
    auto sent = co_await client().send(server.url, get(), {});
    EXPECT_TRUE(sent.ok());
    auto exchange = std::move(*sent);
    ClientExchange* raw = exchange.get();
    loop_.post([raw] {
      raw->close();
      raw->close();
    });
    auto head = co_await exchange->read_head();
    EXPECT_FALSE(head.ok());
    EXPECT_TRUE(head.ok() || head.error().code == ErrorCode::kCancelled);
    auto more = co_await exchange->read_some();
    EXPECT_FALSE(more.ok());
    exchange.reset();
    EXPECT_EQ(client().busy_connections(server.url), 0u);
    EXPECT_EQ(client().idle_connections(server.url), 0u);
  });
}

TEST_F(ClientTest, CloseEndsASendThatWaits) {
  std::promise<void> done;
  ScriptedServer deaf([&](auto& peer, int) {
    peer.read_until("\r\n\r\n");
    done.get_future().wait();
  });
  on_loop<void>([&]() -> Task<> {
    RequestHead head = get();
    head.method = "POST";
    const std::string body(32 << 20, 'x');
    ClientExchange* raw = nullptr;
    std::function<void(ClientExchange&)> keep = [&](ClientExchange& exchange) { raw = &exchange; };
    loop_.spawn([&]() -> Task<> {
      co_await loop_.sleep(10ms);
      raw->close();
    });
    ClientTimeouts timeouts;
    auto sent = co_await client().send(deaf.url, head, body, timeouts, keep);
    EXPECT_FALSE(sent.ok());
    EXPECT_TRUE(sent.ok() || sent.error().code == ErrorCode::kCancelled);
    EXPECT_EQ(client().busy_connections(deaf.url), 0u);
  });
  done.set_value();
}

TEST_F(ClientTest, DropsTheConnectionOfAnAnswerNobodyReads) {
  std::promise<bool> ended;
  ScriptedServer server([&](auto& peer, int) {
    peer.read_until("\r\n\r\n");
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    ended.set_value(peer.read_until("never").empty());
  });
  on_loop<void>([&]() -> Task<> {
    auto sent = co_await client().send(server.url, get(), {});
    auto exchange = std::move(*sent);
    (void)co_await exchange->read_head();
    exchange.reset();
    EXPECT_EQ(client().idle_connections(server.url), 0u);
  });
  EXPECT_TRUE(ended.get_future().get());
}

TEST_F(ClientTest, RefusesBrokenAnswers) {
  struct Case {
    std::string answer;
    ErrorCode code;
  };
  const std::vector<Case> cases = {
      {"nonsense\r\n\r\n", ErrorCode::kProtocol},
      {"HTTP/1.1 200 OK\r\nX: " + std::string(70000, 'x') + "\r\n\r\n", ErrorCode::kTooLarge},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ErrorCode::kProtocol},
      {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", ErrorCode::kReset},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", ErrorCode::kReset},
      {"HTTP/1.1 200", ErrorCode::kReset},
      {"", ErrorCode::kReset},
  };
  ScriptedServer server([&](auto& peer, int i) {
    peer.read_until("\r\n\r\n");
    peer.send(cases[static_cast<size_t>(i)].answer);
  });
  for (const auto& c : cases) {
    const auto response = fetch(server.url);
    ASSERT_FALSE(response.ok()) << c.answer.substr(0, 100);
    EXPECT_EQ(response.error().code, c.code) << response.error().message;
    EXPECT_THAT(response.error().message, HasSubstr(server.url.authority()));
  }
}

TEST_F(ClientTest, BoundsAWholeBody) {
  ScriptedServer server(
      [](auto& peer, int) { serve_forever(peer, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789"); });
  on_loop<void>([&]() -> Task<> {
    auto sent = co_await client().send(server.url, get(), {});
    auto exchange = std::move(*sent);
    (void)co_await exchange->read_head();
    auto body = co_await exchange->read_all(8);
    EXPECT_FALSE(body.ok());
    EXPECT_TRUE(body.ok() || body.error().code == ErrorCode::kTooLarge);
  });
}

TEST_F(ClientTest, HearsAnAnswerThatComesBeforeTheRequestIsWhole) {
  ScriptedServer server([](auto& peer, int) {
    peer.read_until("\r\n\r\n");
    peer.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig");
    while (!peer.read_until("xxxxxxxxxxxxxxxx").empty()) {
    }
  });
  ClientTimeouts timeouts;
  timeouts.silence = 5s;
  const auto response = fetch(server.url, "POST", std::string(4 << 20, 'x'), timeouts);
  ASSERT_TRUE(response.ok()) << response.error().message;
  EXPECT_EQ(response->status, 413);
}

TEST_F(ClientTest, HeadHasNoBody) {
  ScriptedServer server([](auto& peer, int) { serve_forever(peer, "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n"); });
  for (int i = 0; i < 2; ++i) {
    const auto response = fetch(server.url, "HEAD");
    ASSERT_TRUE(response.ok()) << response.error().message;
    EXPECT_EQ(response->body, "");
    EXPECT_EQ(response->headers.get("content-length"), "50");
  }
  EXPECT_TRUE(becomes([&] { return client().idle_connections(server.url) == 1; }));
}

TEST_F(ClientTest, ManyAtOnceToOurServer) {
  LoopGroup loops(2, "server");
  Server server(loops, {}, [](ServerExchange& exchange) -> Task<> {
    auto body = co_await exchange.read_body(1 << 20);
    co_await exchange.loop().sleep(1ms);
    Response response = Response::text(200, body.ok() ? *body : "");
    (void)co_await exchange.respond(std::move(response));
  });
  const auto port = server.listen("localhost", 0);
  ASSERT_TRUE(port.ok());
  const Url url = *parse_url(fmt::format("http://localhost:{}", *port));
  constexpr int kTasks = 50;
  constexpr int kRequests = 10;
  int right = 0;
  int done = 0;
  on_loop<void>([&]() -> Task<> {
    for (int t = 0; t < kTasks; ++t) {
      loop_.spawn([&, t]() -> Task<> {
        for (int i = 0; i < kRequests; ++i) {
          const std::string body = fmt::format("{}-{}", t, i);
          Headers headers;
          const auto response = co_await client().fetch(url, "POST", "/", headers, body);
          EXPECT_TRUE(response.ok()) << (response.ok() ? "" : response.error().message);
          right += response.ok() && response->body == body;
        }
        ++done;
      });
    }
    for (int i = 0; i < 5000 && done < kTasks; ++i) co_await loop_.sleep(2ms);
    EXPECT_LE(client().idle_connections(url), static_cast<size_t>(kTasks));
  });
  EXPECT_EQ(done, kTasks);
  EXPECT_EQ(right, kTasks * kRequests);
}

}  // namespace
}  // namespace sluice::net
