#include "net/listen.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "net/server.h"
#include "testing/raw_client.h"

namespace sluice::net {
namespace {

using namespace std::chrono_literals;
using sluice::testing::RawClient;
using ::testing::HasSubstr;

Handler saying(std::string what) {
  return [what](ServerExchange& exchange) -> Task<> {
    Response response = Response::text(200, what);
    (void)co_await exchange.respond(std::move(response));
  };
}

constexpr const char* kGet = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

// Two servers with loops of their own, as two processes have.
TEST(HandOverTest, WhoWaitsInTheQueueIsServedByTheSuccessor) {
  LoopGroup old_loops(2, "old");
  Server old(old_loops, {}, saying("old"));
  const uint16_t port = old.listen("127.0.0.1", 0).value();
  auto sockets = old.listening_sockets();
  EXPECT_EQ(sockets.size(), 2u);
  old.hand_over();
  std::vector<std::unique_ptr<RawClient>> waiting;
  for (int i = 0; i < 20; ++i) {
    waiting.push_back(std::make_unique<RawClient>(port));
    ASSERT_TRUE(waiting.back()->connected());
    waiting.back()->send(kGet);
  }
  LoopGroup new_loops(3, "new");
  Server successor(new_loops, {}, saying("new"));
  EXPECT_EQ(successor.listen("", 0, std::move(sockets)).value(), port);
  for (auto& client : waiting) EXPECT_TRUE(client->wait_for("new"));
  EXPECT_EQ(old.drain(20s), 0u);
  EXPECT_EQ(old.open_connections(), 0u);
}

TEST(HandOverTest, AKeptConnectionGetsOneMoreAnswerAndIsThenClosed) {
  LoopGroup loops(1, "old");
  Server old(loops, {}, saying("old"));
  RawClient client(old.listen("127.0.0.1", 0).value());
  client.send(kGet);
  ASSERT_TRUE(client.wait_for("old"));
  client.take();
  const auto sockets = old.listening_sockets();
  old.hand_over();
  client.send(kGet);
  EXPECT_TRUE(client.wait_for("old"));
  EXPECT_THAT(client.arrived(), HasSubstr("Connection: close\r\n"));
  client.wait_for_end();
  EXPECT_EQ(old.drain(20s), 0u);
}

TEST(HandOverTest, EachSocketIsServedAndEachLoopHasOne) {
  auto three = listen_sockets("127.0.0.1", 0, 3, 10);
  ASSERT_TRUE(three.ok());
  std::vector<Socket> flat;
  for (auto& of_loop : three->sockets) flat.push_back(std::move(of_loop.front()));
  const auto on_two = adopt_sockets(std::move(flat), 2);
  ASSERT_TRUE(on_two.ok());
  EXPECT_EQ(on_two->sockets[0].size() + on_two->sockets[1].size(), 3u);
  EXPECT_EQ(on_two->port, three->port);
  std::vector<Socket> one;
  one.push_back(on_two->sockets[0].front().copy());
  const auto on_four = adopt_sockets(std::move(one), 4);
  ASSERT_TRUE(on_four.ok());
  for (const auto& of_loop : on_four->sockets) EXPECT_EQ(of_loop.size(), 1u);
}

TEST(HandOverTest, WhatIsNoListeningSocketIsRefused) {
  std::vector<Socket> wrong;
  wrong.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const auto adopted = adopt_sockets(std::move(wrong), 1);
  ASSERT_FALSE(adopted.ok());
  EXPECT_THAT(adopted.error().message, HasSubstr("is no listening socket"));
}

}  // namespace
}  // namespace sluice::net
