#include "net/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <latch>

#include "base/rng.h"
#include "net/client.h"

namespace sluice::net {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

// A client as rough as a test needs it: bytes out, bytes in, bounded waits.
class RawClient {
 public:
  explicit RawClient(uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  ~RawClient() { close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return connected_; }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  void reset() {
    const linger hard{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close();
  }
  void shutdown_write() { ::shutdown(fd_, SHUT_WR); }
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }
  // Reads until what arrived contains `text`; returns all of it. Ends early at the end of the stream or after 5 s.
  std::string read_until(std::string_view text) {
    while (in_.find(text) == std::string::npos && receive()) {
    }
    return std::exchange(in_, {});
  }
  std::string read_to_end() {
    while (receive()) {
    }
    return std::exchange(in_, {});
  }
  bool at_end() const { return at_end_; }

 private:
  bool receive() {
    pollfd poll{fd_, POLLIN, 0};
    if (::poll(&poll, 1, 5000) != 1) return false;
    char buffer[65536];
    const ssize_t n = ::recv(fd_, buffer, sizeof buffer, 0);
    at_end_ = n <= 0;
    if (n > 0) in_.append(buffer, static_cast<size_t>(n));
    return n > 0;
  }

  int fd_;
  bool connected_ = false;
  bool at_end_ = false;
  std::string in_;
};

class ServerTest : public testing::Test {
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

TEST_F(ServerTest, ServesOurOwnClient) {
  const auto port = serve(echo);
  const auto url = parse_url(fmt::format("http://127.0.0.1:{}", port));
  const auto response = blocking_fetch(*url, "POST", "/x", {}, "body");
  ASSERT_TRUE(response.ok()) << response.error().message;
  EXPECT_EQ(response->status, 200);
  EXPECT_EQ(response->body, "POST /x [body]");
}

}  // namespace
}  // namespace sluice::net
