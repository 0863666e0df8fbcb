// ClientExchange::wait_some(): a look at the clock that loses nothing.
#include <gtest/gtest.h>

#include <boost/asio/redirect_error.hpp>

#include "net/client.h"
#include "net/server.h"
#include "net/stream.h"

namespace sluice::net {
namespace {

using namespace std::chrono_literals;

// A server that sends one part, then the next when `go` has been called.
class WaitSomeTest : public testing::Test {
 protected:
  Task<> serve(ServerExchange& exchange) {
    ResponseHead head{200, {}};
    co_await exchange.start(std::move(head));
    co_await exchange.write("one");
    auto gate = std::make_shared<Timer>(exchange.loop().executor(), TimePoint::max());
    gate_ = gate;
    exchange.on_client_gone([gate] { gate->expires_at(TimePoint{}); });
    boost::system::error_code ended;
    co_await gate->async_wait(asio::redirect_error(use_task, ended));
    co_await exchange.write("two");
    co_await exchange.finish();
  }
  void go() {
    loops_[0].post([this] { gate_->cancel(); });
  }

  LoopGroup loops_{1};
  std::shared_ptr<Timer> gate_;  // loop thread
  Server server_{loops_, {}, [this](ServerExchange& exchange) { return serve(exchange); }};
  Url url_ = parse_url(fmt::format("http://127.0.0.1:{}", server_.listen("127.0.0.1", 0).value())).value();
};

TEST_F(WaitSomeTest, SaysWhetherThereIsNewsAndLosesNone) {
  EventLoop loop("client");
  loop.start();
  std::function<Task<std::string>()> story = [&]() -> Task<std::string> {
    std::string said;
    Client client(loop);
    RequestHead head{.method = "GET", .target = "/"};
    auto sent = co_await client.send(url_, std::move(head), "");
    const auto exchange = std::move(sent).value();
    auto answered = co_await exchange->read_head();
    if (!answered.ok()) co_return answered.error().message;
    auto part = co_await exchange->read_some();
    said += *part;
    for (int i = 0; i < 3; ++i) {
      const bool news = co_await exchange->wait_some(2ms);
      said += news ? " news" : " quiet";
    }
    said += exchange->read_now() ? " more" : " nothing";
    go();
    const bool news = co_await exchange->wait_some(20s);
    said += news ? " news " : " quiet ";
    auto here = exchange->read_now();
    said += here ? **here : "nothing";
    part = co_await exchange->read_some();
    const bool after = co_await exchange->wait_some(20s);
    co_return said + (part->empty() && after ? " end" : " more");
  };
  EXPECT_EQ(loop.run(std::move(story)), "one quiet quiet quiet nothing news two end");
}

TEST_F(WaitSomeTest, DoesNotMakeTheSilenceLonger) {
  EventLoop loop("client");
  loop.start();
  std::function<Task<std::string>()> story = [&]() -> Task<std::string> {
    Client client(loop);
    RequestHead head{.method = "GET", .target = "/"};
    const ClientTimeouts timeouts{.silence = 40ms};
    auto sent = co_await client.send(url_, std::move(head), "", timeouts);
    const auto exchange = std::move(sent).value();
    auto answered = co_await exchange->read_head();
    if (!answered.ok()) co_return answered.error().message;
    auto part = co_await exchange->read_some();
    int quiet = 0;
    for (;;) {
      const bool news = co_await exchange->wait_some(10ms);
      if (news || ++quiet > 100) break;
    }
    part = co_await exchange->read_some();
    co_return fmt::format("{} {}", quiet, part.ok() ? "bytes" : to_string(part.error().code));
  };
  EXPECT_EQ(loop.run(std::move(story)), fmt::format("3 {}", to_string(ErrorCode::kTimeout)));
}

}  // namespace
}  // namespace sluice::net
