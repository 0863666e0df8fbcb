#include "parallel/rendezvous.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zmq.h>

#include <thread>

namespace sluice::parallel {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

constexpr Duration kBound = seconds(30);

std::unique_ptr<RendezvousServer> serve(int size) {
  return std::move(RendezvousServer::serve("127.0.0.1:0", size)).value();
}
Result<RendezvousClient> join(const RendezvousServer& server, int rank, int size,
                              const std::string& fingerprint = "sluice 1") {
  return RendezvousClient::join(
      server.endpoint(),
      {.rank = rank, .size = size, .host = "host" + std::to_string(rank), .fingerprint = fingerprint}, kBound);
}

TEST(RendezvousTest, GivesWhatAnotherHasSetOrWillSet) {
  const auto server = serve(2);
  auto first = join(*server, 0, 2);
  ASSERT_TRUE(first.ok()) << first.error().message;
  const std::vector<char> value = {'a', '\0', '\xff'};
  std::thread other([&] {
    auto second = join(*server, 1, 2);
    ASSERT_TRUE(second.ok());
    EXPECT_EQ(second->get("early").value(), value);
    EXPECT_TRUE(second->set("late", value).ok());
  });
  EXPECT_TRUE(first->set("early", value).ok());
  EXPECT_EQ(first->get("late").value(), value);
  other.join();
}

TEST(RendezvousTest, TellsARankThatDoesNotFit) {
  const auto server = serve(2);
  const auto first = join(*server, 0, 2);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(join(*server, 1, 3).error().message, "rank 1 on host1 counts 3 ranks, the rendezvous 2");
  EXPECT_EQ(join(*server, 0, 2).error().message, "rank 0 on host0: host0 has joined as rank 0 before");
  EXPECT_EQ(join(*server, 1, 2, "sluice 2").error().message,
            "rank 1 on host1 is sluice 2, but rank 0 on host0 is sluice 1");
  EXPECT_TRUE(join(*server, 1, 2).ok());
}

TEST(RendezvousTest, WaitsForAServerThatStartsLater) {
  std::string endpoint = serve(1)->endpoint();  // a port that was free a moment ago
  std::thread later;
  std::unique_ptr<RendezvousServer> server;
  later = std::thread([&] { server = std::move(RendezvousServer::serve(endpoint, 1)).value(); });
  const auto joined = RendezvousClient::join(endpoint, {.rank = 0, .size = 1}, kBound);
  later.join();
  EXPECT_TRUE(joined.ok()) << joined.error().message;
}

TEST(RendezvousTest, WaitsAreBoundedAndSayForWhat) {
  const auto server = serve(2);
  auto client = RendezvousClient::join(server->endpoint(), {.rank = 0, .size = 2}, milliseconds(300));
  ASSERT_TRUE(client.ok());
  const auto value = client->get("rank/1");
  ASSERT_FALSE(value.ok());
  EXPECT_EQ(value.error().code, ErrorCode::kTimeout);
  EXPECT_THAT(value.error().message, HasSubstr("waited 0.3 s for rank/1 at the rendezvous 127.0.0.1:"));
  const auto nobody = RendezvousClient::join("127.0.0.1:1", {.rank = 0, .size = 2}, milliseconds(1));
  ASSERT_FALSE(nobody.ok());
  EXPECT_THAT(nobody.error().message, HasSubstr("for an answer to rank 0 at the rendezvous 127.0.0.1:1"));
}

TEST(RendezvousTest, RefusesWhatIsNoAddress) {
  EXPECT_EQ(RendezvousServer::serve("nonsense", 1).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(RendezvousClient::join("nonsense", {}, kBound).error().code, ErrorCode::kInvalidArgument);
  const auto server = serve(1);
  const auto taken = RendezvousServer::serve(server->endpoint(), 1);
  ASSERT_FALSE(taken.ok());
  EXPECT_THAT(taken.error().message, HasSubstr("Address already in use"));
}

TEST(RendezvousTest, SurvivesNonsense) {
  const auto server = serve(1);
  void* const context = zmq_ctx_new();
  void* const socket = zmq_socket(context, ZMQ_DEALER);
  ASSERT_EQ(zmq_connect(socket, ("tcp://" + server->endpoint()).c_str()), 0);
  for (const std::string& nonsense :
       {std::string(), std::string("\xc1"), std::string("\x80"), std::string(5000, 'x')}) {
    zmq_send(socket, nonsense.data(), nonsense.size(), 0);
    char answer[1000];
    EXPECT_GT(zmq_recv(socket, answer, sizeof(answer), 0), 0);
  }
  zmq_close(socket);
  zmq_ctx_term(context);
  EXPECT_TRUE(join(*server, 0, 1).ok());
}

}  // namespace
}  // namespace sluice::parallel
