#include "net/lookup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "net/client.h"
#include "net/server.h"

namespace sluice::net {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

Addresses addresses(std::initializer_list<const char*> texts) {
  Addresses out;
  for (const char* text : texts) out.push_back(asio::ip::make_address(text));
  return out;
}

Handler saying(std::string what) {
  return [what](ServerExchange& exchange) -> Task<> {
    Response response = Response::text(200, what);
    response.headers.add("X-Host", std::string(exchange.request().headers.get("Host").value_or("")));
    (void)co_await exchange.respond(std::move(response));
  };
}

// Servers at addresses of this machine that share a port, and a name that leads to them.
class LookupTest : public ::testing::Test {
 protected:
  LookupTest() {
    port_ = first_.listen("127.0.0.1", 0).value();
    loop_.start();
    ClientOptions options;
    options.addresses_fresh = Duration::zero();
    options.idle_timeout = 1ns;  // each request on a connection of its own
    options.lookup = [this](const std::string& host, auto done) {
      EXPECT_EQ(host, "worker.test");
      ++lookups_;
      if (hangs_) {
        pending_.push_back(done);
      } else {
        done(found_);
      }
    };
    client_ = std::make_unique<Client>(loop_, options);
  }
  ~LookupTest() override {
    std::function<Task<bool>()> drop = [this]() -> Task<bool> {
      client_.reset();
      pending_.clear();
      co_return true;
    };
    loop_.run(std::move(drop));
  }

  std::string ask(ClientTimeouts timeouts = {}) {
    const Url url{.host = "worker.test", .port = port_};
    std::function<Task<Result<Response>>()> once = [&]() -> Task<Result<Response>> {
      auto answer = co_await client_->fetch(url, "GET", "/", {}, "", timeouts);
      co_return std::move(answer);
    };
    const auto answer = loop_.run(std::move(once));
    return answer.ok() ? answer->body : "error: " + answer.error().message;
  }

  LoopGroup loops_{1, "test"};
  Server first_{loops_, {}, saying("first")};
  Server second_{loops_, {}, saying("second")};
  uint16_t port_ = 0;
  EventLoop loop_{"client"};
  std::unique_ptr<Client> client_;
  // Loop thread, or while it does nothing.
  Result<Addresses> found_ = addresses({"127.0.0.1"});
  bool hangs_ = false;
  std::vector<std::function<void(Result<Addresses>)>> pending_;
  int lookups_ = 0;
};

TEST_F(LookupTest, ANameThatMovesIsReachedAtItsNewAddress) {
  ASSERT_TRUE(second_.listen("127.0.0.2", port_).ok());
  EXPECT_EQ(ask(), "first");
  found_ = addresses({"127.0.0.2"});
  EXPECT_EQ(ask(), "second");
}

TEST_F(LookupTest, AddressesAreTriedInTurn) {
  found_ = addresses({"127.0.0.2", "127.0.0.3", "127.0.0.1"});
  EXPECT_EQ(ask(), "first");
  found_ = addresses({"127.0.0.2", "127.0.0.3"});
  EXPECT_THAT(ask(), HasSubstr("Connection refused"));
}

TEST_F(LookupTest, WhatWasKnownCountsWhileTheResolverFails) {
  found_ = Error{ErrorCode::kNotFound, "no such name"};
  EXPECT_EQ(ask(), "error: cannot resolve 'worker.test': no such name");
  found_ = addresses({"127.0.0.1"});
  EXPECT_EQ(ask(), "first");
  found_ = Error{ErrorCode::kUnavailable, "the resolver is down"};
  EXPECT_EQ(ask(), "first");
  EXPECT_EQ(lookups_, 3);
}

TEST_F(LookupTest, ANameThatHasGoneTakesItsAddressesAlong) {
  EXPECT_EQ(ask(), "first");
  found_ = Error{ErrorCode::kNotFound, "no such name"};
  EXPECT_EQ(ask(), "error: cannot resolve 'worker.test': no such name") << "somebody else may be there now";
  found_ = Error{ErrorCode::kUnavailable, "the resolver is down"};
  EXPECT_EQ(ask(), "error: cannot resolve 'worker.test': the resolver is down");
}

TEST_F(LookupTest, ASilentResolverLeavesTimeToConnectToWhatWasKnown) {
  EXPECT_EQ(ask(), "first");
  hangs_ = true;
  EXPECT_EQ(ask({.connect = 200ms}), "first");
  EXPECT_EQ(ask({.connect = 200ms}), "first");
  EXPECT_EQ(lookups_, 2);
}

TEST_F(LookupTest, AnAddressThatCannotBeReachedFromHereSaysNothingOfTheOthers) {
  found_ = addresses({"127.0.0.2", "::1"});  // without IPv6 there is no way to the second
  EXPECT_THAT(ask(), HasSubstr("Connection refused"));
}

TEST_F(LookupTest, AResolverThatHangsIsBounded) {
  hangs_ = true;
  EXPECT_THAT(ask({.connect = 20ms}), HasSubstr("resolving 'worker.test' took longer than 0.02 s"));
  EXPECT_THAT(ask({.connect = 20ms}), HasSubstr("resolving 'worker.test' took longer than 0.02 s"));
  EXPECT_EQ(lookups_, 1) << "who asks while a look-up is under way waits for that one";
}

TEST(NameCacheTest, ConnectionsShareALookUpWhileItIsFresh) {
  EventLoop loop("client");
  loop.start();
  int lookups = 0;
  std::function<Task<bool>()> ask = [&]() -> Task<bool> {
    NameCache names(
        loop,
        [&](const std::string&, auto done) {
          ++lookups;
          done(addresses({"127.0.0.1"}));
        },
        std::chrono::hours(1));
    const TimePoint deadline = std::chrono::steady_clock::now() + 10s;
    bool all = true;
    for (int i = 0; i < 10; ++i) {
      const auto found = co_await names.find("worker.test", deadline, nullptr);
      all = all && found.ok() && found->size() == 1;
    }
    const auto literal = co_await names.find("::1", deadline, nullptr);
    co_return all&& literal.ok() && literal->front().is_v6();
  };
  EXPECT_TRUE(loop.run(std::move(ask)));
  EXPECT_EQ(lookups, 1);
}

TEST(Ipv6Test, R27Ipv6AloneIsEnough) {
  LoopGroup loops(1, "test");
  Server server(loops, {}, saying("six"));
  const auto port = server.listen("::1", 0);
  if (!port.ok()) GTEST_SKIP() << "this machine has no IPv6: " << port.error().message;
  for (const char* host : {"[::1]", "[0:0:0:0:0:0:0:1]"}) {
    const auto url = parse_url(fmt::format("http://{}:{}", host, *port));
    ASSERT_TRUE(url.ok()) << url.error().message;
    const auto answer = blocking_fetch(*url, "GET", "/");
    ASSERT_TRUE(answer.ok()) << answer.error().message;
    EXPECT_EQ(answer->body, "six");
    EXPECT_EQ(answer->headers.get("X-Host"), fmt::format("{}:{}", host, *port));
  }
  Server any(loops, {}, saying("any"));
  const auto both = any.listen("::", 0);
  ASSERT_TRUE(both.ok()) << both.error().message;
  for (const char* host : {"[::1]", "127.0.0.1"}) {
    const auto answer = blocking_fetch(*parse_url(fmt::format("http://{}:{}", host, *both)), "GET", "/");
    ASSERT_TRUE(answer.ok()) << host << ": " << answer.error().message;
    EXPECT_EQ(answer->body, "any");
  }
}

}  // namespace
}  // namespace sluice::net
