#include "net/tls.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "net/client.h"
#include "net/server.h"
#include "testing/certificates.h"
#include "testing/raw_client.h"
#include "testing/raw_listener.h"

namespace sluice::net {
namespace {

using namespace std::chrono_literals;
using sluice::testing::CertificateFolder;
using sluice::testing::RawClient;
using ::testing::HasSubstr;

Task<> echo(ServerExchange& exchange) {
  auto body = co_await exchange.read_body(64 << 20);
  Response response = Response::text(200, body.ok() ? *body : body.error().message);
  (void)co_await exchange.respond(std::move(response));
}

class TlsTest : public ::testing::Test {
 protected:
  TlsTest() {
    folder_.make_authority("authority");
    folder_.make("server", "authority", "127.0.0.1");
  }

  TlsFiles files(TlsFiles::Role role, const std::string& name, std::vector<std::string> authorities) {
    TlsFiles made{.role = role};
    if (!name.empty()) made.certificate = folder_.path(name + ".pem");
    if (!name.empty()) made.key = folder_.path(name + ".key");
    for (const std::string& authority : authorities) made.authorities.push_back(folder_.path(authority + ".pem"));
    return made;
  }
  void serve(Handler handler = echo, ServerOptions options = {}, std::vector<std::string> client_authorities = {}) {
    shown_ = TlsContext::load(files(TlsFiles::Role::kServer, "server", std::move(client_authorities))).value();
    options.tls = shown_;
    server_ = std::make_unique<Server>(loops_, options, std::move(handler));
    url_ = parse_url(fmt::format("https://127.0.0.1:{}", server_->listen("127.0.0.1", 0).value())).value();
  }
  ClientOptions trusting(const std::string& authority = "authority", const std::string& own = "") {
    return {.tls = TlsContext::load(files(TlsFiles::Role::kClient, own, {authority})).value()};
  }
  Result<Response> post(std::string body, ClientOptions options, ClientTimeouts timeouts = {}) {
    return blocking_fetch(url_, "POST", "/", {}, std::move(body), timeouts, std::move(options));
  }
  std::string why_not(ClientOptions options) {
    const auto answer = post("x", std::move(options));
    EXPECT_FALSE(answer.ok());
    return answer.ok() ? "it worked" : answer.error().message;
  }

  CertificateFolder folder_;
  LoopGroup loops_{2, "test"};
  std::shared_ptr<TlsContext> shown_;
  std::unique_ptr<Server> server_;
  Url url_;
};

TEST_F(TlsTest, BodiesOfAnySizeGoBothWays) {
  serve();
  for (const size_t size : {0u, 1u, 16384u, 16385u, 5'000'000u}) {
    std::string body(size, 'x');
    for (size_t i = 0; i < size; i += 97) body[i] = static_cast<char>('a' + i % 23);
    const auto answer = post(body, trusting());
    ASSERT_TRUE(answer.ok()) << answer.error().message;
    EXPECT_TRUE(answer->body == body) << size;
  }
}

TEST_F(TlsTest, AConnectionIsKeptAndServesTheNextRequest) {
  serve();
  EventLoop loop("client");
  loop.start();
  std::function<Task<int>()> requests = [&]() -> Task<int> {
    Client client(loop, trusting());
    int reused = 0;
    for (int i = 0; i < 3; ++i) {
      RequestHead head{.method = "POST", .target = "/"};
      auto sent = co_await client.send(url_, std::move(head), "x");
      if (!sent.ok()) co_return -1;
      reused += (*sent)->reused() ? 1 : 0;
      const auto answer = co_await (*sent)->read_head();
      const auto body = co_await (*sent)->read_all();
      if (!answer.ok() || !body.ok()) co_return -1;
    }
    co_return reused;
  };
  EXPECT_EQ(loop.run(std::move(requests)), 2);
}

TEST_F(TlsTest, ChunksArriveOneByOneAndAFastWriterWaitsForTheReader) {
  constexpr size_t kPieces = 400, kPiece = 100'000;
  serve([](ServerExchange& exchange) -> Task<> {
    ResponseHead head;
    (void)co_await exchange.start(std::move(head));
    const std::string piece(kPiece, 'y');
    for (size_t i = 0; i < kPieces; ++i) {
      const auto written = co_await exchange.write(piece);
      if (!written.ok()) co_return;
    }
    (void)co_await exchange.finish();
  });
  const auto answer = post("", trusting());
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  EXPECT_EQ(answer->body.size(), kPieces * kPiece);
  EXPECT_EQ(answer->body.find_first_not_of('y'), std::string::npos);
}

TEST_F(TlsTest, AClientThatReadsNothingIsCutOffAfterTheBound) {
  std::promise<ErrorCode> ended;
  serve(
      [&](ServerExchange& exchange) -> Task<> {
        ResponseHead head;
        (void)co_await exchange.start(std::move(head));
        const std::string piece(1 << 20, 'y');
        for (;;) {
          const auto written = co_await exchange.write(piece);
          if (written.ok()) continue;
          ended.set_value(written.error().code);
          co_return;
        }
      },
      {.write_stall_timeout = 50ms});
  EventLoop loop("client");
  loop.start();
  Client client(loop, trusting());
  std::unique_ptr<ClientExchange> kept;
  std::function<Task<bool>()> begin = [&]() -> Task<bool> {
    RequestHead head{.method = "GET", .target = "/"};
    auto sent = co_await client.send(url_, std::move(head), "");
    if (sent.ok()) kept = std::move(*sent);
    co_return kept != nullptr;
  };
  ASSERT_TRUE(loop.run(std::move(begin)));
  auto future = ended.get_future();
  ASSERT_EQ(future.wait_for(20s), std::future_status::ready);
  EXPECT_EQ(future.get(), ErrorCode::kTimeout);
  std::function<Task<bool>()> end = [&]() -> Task<bool> {
    kept.reset();
    co_return true;
  };
  loop.run(std::move(end));
}

TEST_F(TlsTest, AnAnswerThatIsCutOffIsAnError) {
  serve([](ServerExchange& exchange) -> Task<> {
    ResponseHead head;
    (void)co_await exchange.start(std::move(head));
    (void)co_await exchange.write("half");
    exchange.abort();
  });
  const auto answer = post("", trusting());
  ASSERT_FALSE(answer.ok());
  EXPECT_EQ(answer.error().code, ErrorCode::kReset);
}

TEST_F(TlsTest, TheHandlerLearnsThatTheClientHasGone) {
  std::promise<void> at_work, gone;
  serve([&](ServerExchange& exchange) -> Task<> {
    exchange.on_client_gone([&] { gone.set_value(); });
    at_work.set_value();
    while (!exchange.client_gone()) co_await exchange.loop().sleep(1ms);
  });
  EventLoop loop("client");
  loop.start();
  std::function<Task<bool>()> leave = [&]() -> Task<bool> {
    Client client(loop, trusting());
    RequestHead head{.method = "GET", .target = "/"};
    auto sent = co_await client.send(url_, std::move(head), "");
    if (!sent.ok()) co_return false;
    at_work.get_future().wait();
    (*sent)->close();
    co_return true;
  };
  ASSERT_TRUE(loop.run(std::move(leave)));
  EXPECT_EQ(gone.get_future().wait_for(20s), std::future_status::ready);
}

TEST_F(TlsTest, ACertificateThatIsNotTrustedIsRefusedWithTheReason) {
  folder_.make_authority("other");
  serve();
  EXPECT_THAT(why_not(trusting("other")), HasSubstr("handshake with " + url_.authority() + " failed: unable to get"));
  EXPECT_THAT(why_not({}), HasSubstr("unable to get local issuer certificate"));
  folder_.make("server", "authority", "example.org");
  ASSERT_TRUE(shown_->reload_if_changed().value());
  EXPECT_THAT(why_not(trusting()), HasSubstr("IP address mismatch"));
  ClientOptions by_name = trusting();
  by_name.lookup = [](const std::string&, auto done) { done(Addresses{asio::ip::make_address("127.0.0.1")}); };
  url_.host = "example.com";
  EXPECT_THAT(why_not(by_name), HasSubstr("hostname mismatch"));
  url_.host = "example.org";
  EXPECT_TRUE(post("x", by_name).ok());
  folder_.make("server", "authority", "example.org", -1);
  ASSERT_TRUE(shown_->reload_if_changed().value());
  EXPECT_THAT(why_not(by_name), HasSubstr("certificate has expired"));
}

TEST_F(TlsTest, AServerThatAsksForCertificatesGetsThem) {
  folder_.make("client", "authority", "client");
  folder_.make_authority("other");
  folder_.make("stranger", "other", "client");
  serve(echo, {}, {"authority"});
  EXPECT_TRUE(post("x", trusting("authority", "client")).ok());
  EXPECT_THAT(why_not(trusting()), HasSubstr("certificate required"));
  EXPECT_THAT(why_not(trusting("authority", "stranger")), HasSubstr("unknown ca"));
}

// The server refuses the client's certificate and resets the connection before the client writes what it has to say.
TEST_F(TlsTest, TheReasonIsFoundThoughTheSocketTakesNothingMore) {
  folder_.make_authority("clients");
  const auto server = TlsContext::load(files(TlsFiles::Role::kServer, "server", {"clients"})).value();
  const auto client = TlsContext::load(files(TlsFiles::Role::kClient, "", {"authority"})).value();
  sluice::testing::RawListener listener;
  const int near = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ASSERT_EQ(::connect(near, reinterpret_cast<const sockaddr*>(&listener.address()), sizeof(sockaddr_in)), 0);
  const int far = ::accept(listener.fd(), nullptr, nullptr);
  for (const int fd : {near, far}) ASSERT_EQ(::fcntl(fd, F_SETFL, O_NONBLOCK), 0);
  auto accepted = server->accept(far);
  auto connected = client->connect(near, "127.0.0.1");
  Io refused = Io::kWouldBlock;
  while (refused == Io::kWouldBlock) {
    if (!connected->established()) {
      ASSERT_NE(connected->handshake(), Io::kReset) << connected->error();
    }
    refused = accepted->handshake();
  }
  ASSERT_EQ(refused, Io::kReset);
  ASSERT_TRUE(connected->established());
  const linger at_once{.l_onoff = 1, .l_linger = 0};
  ASSERT_EQ(::setsockopt(far, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
  ::close(far);
  std::string text = "hello";
  iovec all{text.data(), text.size()};
  std::span<iovec> parts(&all, 1);
  EXPECT_EQ(connected->write(parts), Io::kReset);
  EXPECT_THAT(connected->error(), HasSubstr("certificate required"));
  ::close(near);
}

TEST_F(TlsTest, R21CertificatesThatChangeAreUsedByNewConnectionsAndBrokenOnesAreNot) {
  serve();
  EventLoop loop("client");
  loop.start();
  auto client = std::make_unique<Client>(loop, trusting());
  std::function<Task<bool>()> request = [&]() -> Task<bool> {
    const auto answer = co_await client->fetch(url_, "POST", "/", {}, "x");
    co_return answer.ok();
  };
  ASSERT_TRUE(loop.run(request));
  EXPECT_FALSE(shown_->reload_if_changed().value()) << "nothing has changed";

  folder_.write("server.pem", "no certificate");
  const auto broken = shown_->reload_if_changed();
  ASSERT_FALSE(broken.ok());
  EXPECT_THAT(broken.error().message, HasSubstr("server.pem is no certificate in PEM form"));
  EXPECT_FALSE(shown_->reload_if_changed().value()) << "it is said once";
  EXPECT_TRUE(post("x", trusting()).ok()) << "the old one stays";

  folder_.make_authority("next");
  folder_.make("server", "next", "127.0.0.1");
  EXPECT_TRUE(shown_->reload_if_changed().value());
  EXPECT_TRUE(loop.run(request)) << "a connection that is there goes on";
  EXPECT_TRUE(post("x", trusting("next")).ok());
  EXPECT_FALSE(post("x", trusting()).ok());
  std::function<Task<bool>()> drop = [&]() -> Task<bool> {
    client.reset();
    co_return true;
  };
  loop.run(std::move(drop));
}

TEST_F(TlsTest, FilesThatCannotBeUsedAreNamed) {
  const auto why = [&](TlsFiles files) { return TlsContext::load(std::move(files)).error().message; };
  EXPECT_THAT(why(files(TlsFiles::Role::kServer, "nothing", {})), HasSubstr("nothing.pem: No such file"));
  folder_.make("second", "authority", "x");
  auto mixed = files(TlsFiles::Role::kServer, "server", {});
  mixed.key = folder_.path("second.key");
  EXPECT_THAT(why(mixed), HasSubstr("does not belong to the certificate"));
  mixed.key = folder_.path("server.pem");
  EXPECT_THAT(why(mixed), HasSubstr("server.pem is no private key in PEM form"));
  folder_.write("empty.pem", "");
  EXPECT_THAT(why(files(TlsFiles::Role::kClient, "", {"empty"})), HasSubstr("empty.pem is no certificate"));
}

TEST_F(TlsTest, PlainHttpIsToldToUseTls) {
  serve();
  RawClient client(url_.port);
  client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_TRUE(client.wait_for("use https://"));
  EXPECT_THAT(client.arrived(), HasSubstr("HTTP/1.1 400 "));
  client.wait_for_end();
}

TEST_F(TlsTest, AHandshakeThatDoesNotEndIsEndedAndDelaysNobody) {
  serve(echo, {.head_timeout = 300ms});
  RawClient silent(url_.port), half(url_.port);
  half.send(std::string("\x16\x03\x01\x02\x00\x01", 6));
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(post("x", trusting()).ok());
  silent.wait_for_end();
  half.wait_for_end();
}

TEST_F(TlsTest, AServerThatDoesNotSpeakTlsIsSaidToBeOne) {
  Server plain(loops_, {.head_timeout = 100ms}, echo);
  url_ = parse_url(fmt::format("https://127.0.0.1:{}", plain.listen("127.0.0.1", 0).value())).value();
  EXPECT_THAT(why_not(trusting()), HasSubstr("does not speak TLS"));
  const auto silent = listen_sockets("127.0.0.1", 0, 1, 10);
  ASSERT_TRUE(silent.ok());
  url_.port = silent->port;
  const auto answer = post("x", trusting(), {.connect = 50ms});
  ASSERT_FALSE(answer.ok());
  EXPECT_EQ(answer.error().code, ErrorCode::kTimeout);
  EXPECT_THAT(answer.error().message, HasSubstr("the TLS handshake took longer than 0.05 s"));
}

}  // namespace
}  // namespace sluice::net
