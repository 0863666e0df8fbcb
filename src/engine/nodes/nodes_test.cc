// Node 0 and the agents' side of the connection, within one process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include "engine/nodes/agent.h"
#include "engine/nodes/check.h"
#include "engine/nodes/identity.h"
#include "engine/nodes/interface.h"
#include "engine/nodes/leader.h"
#include "engine/nodes/link.h"

namespace sluice::engine {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr Duration kBound = std::chrono::seconds(60);

// A free port that nobody is given meanwhile: below those that the system gives, and of this process's own.
uint16_t free_port() {
  static uint32_t next = static_cast<uint32_t>(::getpid()) * 16;
  for (;;) {
    const auto port = static_cast<uint16_t>(10000 + next++ % 22000);
    if (net::listen_sockets("127.0.0.1", port, 1, 1).ok()) return port;
  }
}

EngineOptions options_of(const std::vector<std::string>& more, uint16_t port) {
  std::vector<std::string> flags{"--model-path=/nowhere", "--tp=2", "--nnodes=2",
                                 fmt::format("--dist-init-addr=127.0.0.1:{}", port)};
  flags.insert(flags.end(), more.begin(), more.end());
  return *engine_option_table().parse(flags, true);
}

class NodeLeaderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    port_ = free_port();
    const EngineOptions options = options_of({}, port_);
    auto leader = NodeLeader::listen(options, own_identity(options, ""));
    ASSERT_TRUE(leader.ok()) << leader.error().message;
    leader_ = std::move(*leader);
  }

  NodeLink connect() const { return std::move(NodeLink::connect({"127.0.0.1", port_}, kBound)).value(); }
  json join(NodeLink& link, const std::vector<std::string>& more) const {
    json hello = to_json(own_identity(options_of(more, port_), ""));
    hello["op"] = "join";
    EXPECT_TRUE(link.send(hello).ok());
    return link.receive(kBound, "an answer").value();
  }
  // The next message that is no sign of life.
  static json next(NodeLink& link) {
    for (;;) {
      auto message = link.receive(kBound, "a message");
      if (!message.ok()) return {{"op", message.error().message}};
      if ((*message)["op"] != "alive") return *message;
    }
  }

  uint16_t port_ = 0;
  std::unique_ptr<NodeLeader> leader_;
};

TEST_F(NodeLeaderTest, TakesInTheNodesThatFitAndNamesTheOthersFlags) {
  EXPECT_EQ(leader_->address(), "127.0.0.1");
  EXPECT_EQ(leader_->absent(), "node 1");
  const auto late = leader_->wait_for_all(Duration{0}, -1);
  ASSERT_FALSE(late.ok());
  EXPECT_EQ(late.error().code, ErrorCode::kTimeout);
  EXPECT_THAT(late.error().message, HasSubstr("for node 1 at 127.0.0.1:"));

  auto other = connect();
  const json refusal = join(other, {"--node-rank=1", "--page-size=4", "--port=5"});
  EXPECT_EQ(refusal["op"], "refused");
  EXPECT_FALSE(refusal["for_now"].get<bool>());
  EXPECT_THAT(refusal["why"].get<std::string>(), HasSubstr("--page-size is 1 on node 0 and 4 on node 1 ("));
  auto first = connect();
  EXPECT_THAT(join(first, {})["why"].get<std::string>(), HasSubstr("--node-rank 0 must be from 1 to 1"));

  auto good = connect();
  EXPECT_EQ(join(good, {"--node-rank=1", "--threads=3", "--api-key=secret"})["op"], "joined");
  EXPECT_TRUE(leader_->wait_for_all(kBound, -1).ok());
  EXPECT_EQ(leader_->absent(), "");
  auto twice = connect();
  const json again = join(twice, {"--node-rank=1"});
  EXPECT_TRUE(again["for_now"].get<bool>()) << again;
  EXPECT_THAT(again["why"].get<std::string>(), HasSubstr("node 1 has joined already"));
}

TEST_F(NodeLeaderTest, ARankElsewhereIsStartedSignalledAndSeenToEnd) {
  EXPECT_EQ(leader_->start_rank(1, {.process = 1}).error().message, "node 1 is not there");
  auto node = connect();
  ASSERT_EQ(join(node, {"--node-rank=1"})["op"], "joined");
  ASSERT_TRUE(leader_->wait_for_all(kBound, -1).ok());
  RankSpec spec{.process = 1, .tp_rank = 1, .incarnation = 7, .rendezvous = "127.0.0.1:1"};
  spec.options = options_of({"--api-key=secret"}, port_);
  auto rank = std::move(leader_->start_rank(1, spec)).value();
  const json start = next(node);
  EXPECT_EQ(start["op"], "start");
  EXPECT_EQ(start["spec"].get<std::string>().find("secret"), std::string::npos);
  EXPECT_EQ(rank_spec_from_json(start["spec"].get<std::string>())->rendezvous, "127.0.0.1:1");
  EXPECT_FALSE(rank->poll());
  rank->signal(SIGTERM);
  EXPECT_EQ(next(node), (json{{"op", "signal"}, {"rank", 1}, {"incarnation", 7}, {"signal", SIGTERM}}));
  // Of another start: nobody's business.
  ASSERT_TRUE(
      node.send({{"op", "ended"}, {"rank", 1}, {"incarnation", 6}, {"code", 0}, {"signal", 9}, {"cause", "old"}}).ok());
  EXPECT_EQ(rank->last_seen(), "");
  ASSERT_TRUE(node.send({{"op", "ended"},
                         {"rank", 1},
                         {"incarnation", 7},
                         {"code", 1},
                         {"signal", 0},
                         {"cause", "exit 1: why"},
                         {"seen", "step 9, head"}})
                  .ok());
  const auto status = rank->wait(kBound);
  ASSERT_TRUE(status);
  EXPECT_EQ(status->code, 1);
  EXPECT_EQ(rank->cause(), "exit 1: why");
  EXPECT_EQ(rank->last_seen(), "step 9, head");
  EXPECT_THAT(rank->place(), HasSubstr(", on node 1 ("));
}

TEST_F(NodeLeaderTest, TheRanksOfANodeThatIsLostHaveEnded) {
  std::optional<NodeLink> node = connect();
  ASSERT_EQ(join(*node, {"--node-rank=1"})["op"], "joined");
  ASSERT_TRUE(leader_->wait_for_all(kBound, -1).ok());
  RankSpec spec{.process = 1};
  spec.options = options_of({}, port_);
  const auto rank = std::move(leader_->start_rank(1, spec)).value();
  next(*node);  // to start it
  const json place = {{"rank", 1}, {"incarnation", spec.incarnation}, {"seen", "step 8, layer 3, gather"}};
  ASSERT_TRUE(node->send({{"op", "alive"}, {"ranks", json::array({place})}}).ok());
  node.reset();
  ASSERT_TRUE(rank->wait(kBound));
  EXPECT_THAT(rank->cause(), HasSubstr("at 127.0.0.1) is lost: the connection to 127.0.0.1 has ended"));
  EXPECT_EQ(rank->last_seen(), "step 8, layer 3, gather") << "as its node said last";
  EXPECT_EQ(leader_->absent(), "node 1");
  auto back = connect();
  EXPECT_EQ(join(back, {"--node-rank=1"})["op"], "joined");
}

TEST_F(NodeLeaderTest, AgentsAreToldOfTheEndAndNonsenseIsDropped) {
  auto node = connect();
  ASSERT_EQ(join(node, {"--node-rank=1"})["op"], "joined");
  auto stranger = connect();
  ASSERT_GT(::send(stranger.fd(), "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL), 0);
  EXPECT_THAT(next(stranger)["op"].get<std::string>(), HasSubstr("has ended"));
  leader_.reset();
  EXPECT_EQ(next(node)["op"], "end");
}

TEST(NodeIdentityTest, DifferencesAreNamedFlagByFlag) {
  const auto identity = [](std::vector<std::string> flags) { return own_identity(options_of(flags, 5), ""); };
  const NodeIdentity first = identity({});
  EXPECT_THAT(differences(first, identity({"--node-rank=1", "--host=b", "--threads=2", "--admin-api-key=k"})),
              ElementsAre());
  NodeIdentity other = identity({"--node-rank=1", "--ep=2", "--json-model-override-args={}"});
  other.host_name = "b";
  other.version = "0.0.0";
  EXPECT_THAT(differences(first, other),
              ElementsAre(HasSubstr("the version of sluice is"), "--ep-size is 1 on node 0 and 2 on node 1 (b)",
                          "--json-model-override-args is not given on node 0 and {} on node 1 (b)"));
  EXPECT_EQ(differences(first, *node_identity_from_json(to_json(other))), differences(first, other));
  EXPECT_FALSE(node_identity_from_json({{"node", "x"}}).ok());
  // Flags that are the same may mean something else on another processor.
  NodeIdentity weaker = identity({"--node-rank=1"});
  weaker.flags["dtype"] = "auto (f8 there)";
  EXPECT_THAT(differences(first, weaker), ElementsAre(HasSubstr("--dtype is auto (")));
}

TEST(NodeIdentityTest, AModelIsKnownByItsConfiguration) {
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("sluice-identity-{}", ::getpid());
  const auto model_of = [&](const char* name, const char* config) {
    std::filesystem::create_directories(folder / name);
    std::ofstream(folder / name / "config.json") << config;
    return own_identity(options_of({}, 5), (folder / name).string()).model;
  };
  EXPECT_EQ(model_of("a", "{\"x\": 1}"), model_of("b", "{\"x\": 1}"));
  EXPECT_NE(model_of("a", "{\"x\": 1}"), model_of("b", "{\"x\": 2}"));
  std::filesystem::remove_all(folder);
}

TEST(NodeLinkTest, SaysWhatKeepsItFromConnecting) {
  const auto message = [](const char* host, uint16_t port) {
    return NodeLink::connect({host, port}, std::chrono::seconds(20)).error().message;
  };
  EXPECT_THAT(message("no-such-host.invalid", 5), HasSubstr("the name 'no-such-host.invalid' has no address: "));
  EXPECT_THAT(message("127.0.0.1", free_port()), HasSubstr("refuses: nobody listens there yet, or at another port"));
}

class ClusterCheckTest : public ::testing::Test {
 protected:
  // What the nodes, each with its flags, print.
  std::vector<Result<ClusterCheck>> check(const std::vector<std::vector<std::string>>& flags, Duration bound = kBound) {
    std::vector<std::future<Result<ClusterCheck>>> parts;
    for (size_t node = 0; node < flags.size(); ++node) {
      std::vector<std::string> all = flags[node];
      all.push_back(fmt::format("--node-rank={}", node));
      parts.push_back(std::async(std::launch::async, [this, bound, options = options_of(all, port_)] {
        return check_cluster(options, bound, -1);
      }));
    }
    std::vector<Result<ClusterCheck>> results;
    for (auto& part : parts) results.push_back(part.get());
    return results;
  }

  const uint16_t port_ = free_port();
};

TEST_F(ClusterCheckTest, NodesThatFitPassOnEachOfThem) {
  const auto results = check({{"--tp=3", "--nnodes=3"}, {"--tp=3", "--nnodes=3"}, {"--tp=3", "--nnodes=3"}});
  for (const auto& result : results) {
    ASSERT_TRUE(result.ok()) << result.error().message;
    EXPECT_TRUE(result->passed) << result->table;
    EXPECT_EQ(result->table, results[0]->table);
  }
  EXPECT_THAT(results[0]->table, HasSubstr("The nodes can be one instance."));
  EXPECT_THAT(results[0]->table, ::testing::ContainsRegex("\n2 .* same +same +[0-9.]+ ms +[0-9.]+ ms +-\n"));
}

TEST_F(ClusterCheckTest, WhatDiffersIsNamed) {
  const auto results = check({{}, {"--enable-mixed-chunk"}});
  for (const auto& result : results) {
    ASSERT_TRUE(result.ok()) << result.error().message;
    EXPECT_FALSE(result->passed);
    EXPECT_THAT(result->table, HasSubstr("DIFFERS"));
    EXPECT_THAT(result->table, HasSubstr("\n--enable-mixed-chunk is false on node 0 and true on node 1 ("));
  }
}

TEST_F(ClusterCheckTest, ANodeThatDoesNotComeIsNamed) {
  const auto results = check({{}}, std::chrono::milliseconds(50));
  ASSERT_TRUE(results[0].ok()) << results[0].error().message;
  EXPECT_FALSE(results[0]->passed);
  EXPECT_THAT(results[0]->table, HasSubstr("node 1 was not seen within 0 s"));
}

TEST_F(ClusterCheckTest, ANodeThatLeftMayComeAgain) {
  const std::vector<std::string> flags{"--tp=3", "--nnodes=3"};
  const auto node = [&](int64_t rank) {
    std::vector<std::string> all = flags;
    all.push_back(fmt::format("--node-rank={}", rank));
    return std::async(std::launch::async,
                      [options = options_of(all, port_)] { return check_cluster(options, kBound, -1); });
  };
  auto first = node(0);
  {
    auto link = NodeLink::connect({"127.0.0.1", port_}, kBound);
    const TimePoint end = real_clock().now() + kBound;
    while (!link.ok() && real_clock().now() < end) link = NodeLink::connect({"127.0.0.1", port_}, kBound);
    ASSERT_TRUE(link.ok()) << link.error().message;
    std::vector<std::string> all = flags;
    all.push_back("--node-rank=1");
    json hello = to_json(own_identity(options_of(all, port_), ""));
    hello["op"] = "check";
    ASSERT_TRUE(link->send(hello).ok());
  }
  auto second = node(1), third = node(2);
  const auto result = first.get();
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_TRUE(result->passed) << result->table;
  EXPECT_TRUE(second.get().ok() && third.get().ok());
}

TEST_F(ClusterCheckTest, ANodeThatWaitsForOthersEndsWhenItIsTold) {
  // A node 0 that takes it in, and waits for a third.
  const net::Socket listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{
      .sin_family = AF_INET, .sin_port = htons(port_), .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_zero = {}};
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  int stop[2];
  ASSERT_EQ(::pipe2(stop, O_CLOEXEC), 0);
  auto node =
      std::async(std::launch::async, [&, options = options_of({"--tp=3", "--nnodes=3", "--node-rank=1"}, port_)] {
        return check_cluster(options, kBound, stop[0]);
      });
  const net::Socket link(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  char hello[4096];
  EXPECT_GT(::recv(link.get(), hello, sizeof hello, 0), 0);
  EXPECT_EQ(::write(stop[1], "x", 1), 1);
  EXPECT_EQ(node.get().error().code, ErrorCode::kCancelled);
  for (const int end : stop) ::close(end);
}

TEST_F(ClusterCheckTest, R27AWrongAddressIsNamedWhereItIsWrong) {
  EngineOptions options = options_of({"--node-rank=1"}, port_);
  const auto refused = check_cluster(options, Duration{0}, -1);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("refuses: nobody listens there yet, or at another port"));
  options.dist_init_addr = "no-such-host.invalid:5000";
  EXPECT_THAT(check_cluster(options, Duration{0}, -1).error().message,
              HasSubstr("the name 'no-such-host.invalid' has no"));
  options.node_rank = 0;
  options.dist_init_addr = "192.0.2.1:5000";
  EXPECT_THAT(check_cluster(options, Duration{0}, -1).error().message,
              ::testing::AllOf(HasSubstr("--dist-init-addr 192.0.2.1:5000 must be an address of node 0"),
                               HasSubstr("the interfaces of this host are lo (")));
}

class InterfaceTest : public ::testing::Test {
 protected:
  Result<std::string> address(std::string_view name, std::string_view like = "10.0.0.1") const {
    return address_of_interface(host_, name, like);
  }
  std::string why_not(std::string_view name, ErrorCode code, std::string_view like = "10.0.0.1") const {
    const auto refused = address(name, like);
    if (refused.ok()) return "it is taken, at " + *refused;
    EXPECT_EQ(refused.error().code, code) << refused.error().message;
    EXPECT_THAT(refused.error().message,
                HasSubstr("the interfaces of this host are lo (127.0.0.1, ::1), eth0 (10.0.0.2, 10.0.0.3), eth1 "
                          "(fd00::2), eth2 (down), eth3 (no carrier), ib0 (no address)"));
    return refused.error().message;
  }

  const std::vector<NetworkInterface> host_{
      {.name = "lo", .up = true, .addresses = {"127.0.0.1", "::1"}, .loopback = true},
      {.name = "eth0", .up = true, .addresses = {"10.0.0.2", "10.0.0.3"}},
      {.name = "eth1", .up = true, .addresses = {"fd00::2"}},
      {.name = "eth2", .up = false, .addresses = {"10.0.2.2"}},
      {.name = "eth3", .up = true, .addresses = {"10.0.3.2"}, .carrier = false},
      {.name = "ib0", .up = true, .addresses = {}}};
};

TEST_F(InterfaceTest, R27OnlyOneThatHasAnAddressOfTheNodesFamilyIsTaken) {
  EXPECT_EQ(*address("eth0"), "10.0.0.2");
  EXPECT_EQ(*address("eth1", ""), "fd00::2");
  const auto unavailable = ErrorCode::kUnavailable, bad = ErrorCode::kBadOption;
  EXPECT_THAT(why_not("eth9", unavailable),
              HasSubstr("--gloo-socket-ifname eth9 (or GLOO_SOCKET_IFNAME): there is no such"));
  EXPECT_THAT(why_not("eth1", unavailable), HasSubstr("it has no IPv4 address, and nodes join at 10.0.0.1"));
  EXPECT_THAT(why_not("eth2", unavailable), HasSubstr("it is down"));
  EXPECT_THAT(why_not("eth3", unavailable), HasSubstr("it has no carrier: it is unplugged"));
  EXPECT_THAT(why_not("eth0,eth1", bad), HasSubstr("one interface is used"));
  EXPECT_THAT(why_not("ib0", unavailable, ""), HasSubstr("no address by which other hosts could reach it"));
}

TEST_F(InterfaceTest, R27TheLoopbackIsOfNodesThatJoinByIt) {
  EXPECT_EQ(*address("lo", "127.0.0.2"), "127.0.0.1");
  EXPECT_EQ(*address("lo", "::1"), "::1");
  EXPECT_EQ(*address("lo", ""), "127.0.0.1") << "by what nodes join is not known yet";
  EXPECT_THAT(
      why_not("lo", ErrorCode::kBadOption),
      HasSubstr("--gloo-socket-ifname lo (or GLOO_SOCKET_IFNAME): it leads to this host alone, and nodes join at "
                "10.0.0.1"));
  EXPECT_THAT(why_not("lo", ErrorCode::kBadOption, "fd00::1"), HasSubstr("nodes join at fd00::1"));
  // Before nodes meet, by what --dist-init-addr says.
  EngineOptions options = options_of({"--gloo-socket-ifname=lo"}, 5);
  const auto interfaces = [&] { return host_; };
  EXPECT_TRUE(check_interface(options, interfaces).ok());
  for (const char* address : {"10.0.0.1:5", "[fd00::1]:5"}) {
    options.dist_init_addr = address;
    const auto checked = check_interface(options, interfaces);
    ASSERT_FALSE(checked.ok()) << address;
    EXPECT_EQ(checked.error().code, ErrorCode::kBadOption);
    EXPECT_THAT(checked.error().message, HasSubstr("it leads to this host alone"));
  }
  options.dist_init_addr = "node-0.example:5";
  EXPECT_TRUE(check_interface(options, interfaces).ok());
  EXPECT_EQ(rank_address(options, "10.0.0.2", interfaces).error().code, ErrorCode::kBadOption);
}

TEST_F(InterfaceTest, R27WithoutAChoiceNodesDoNotJoinByACardThatIsUnplugged) {
  const auto interfaces = [&] { return host_; };
  const EngineOptions options = options_of({}, 5);
  ASSERT_EQ(::unsetenv("GLOO_SOCKET_IFNAME"), 0);
  for (const char* fine : {"10.0.0.3", "127.0.0.1", "192.0.2.1"}) {
    EXPECT_EQ(*rank_address_at_start(options, fine, interfaces), fine);
  }
  const auto refused = rank_address_at_start(options, "10.0.3.2", interfaces);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kBadOption);
  EXPECT_THAT(refused.error().message,
              HasSubstr("nodes join by 10.0.3.2, which is of the interface eth3, and it has no "
                        "carrier"));
  EXPECT_EQ(rank_address(options, "10.0.3.2", interfaces).error().code, ErrorCode::kUnavailable) << "it may come back";
  EXPECT_THAT(check_reached(host_, "10.0.2.2").error().message, HasSubstr("interface eth2, and it is down"));
}

// Some systems have the host's own name in /etc/hosts, as 127.0.1.1.
TEST_F(InterfaceTest, R27ANameOfThisHostAloneIsNoneOfNode0) {
  EXPECT_TRUE(check_name("gpu-a", "10.0.0.1").ok());
  EXPECT_TRUE(check_name("localhost", "127.0.0.1").ok());
  EXPECT_TRUE(check_name("127.0.1.1", "127.0.1.1").ok());
  EXPECT_TRUE(check_name("::1", "::1").ok());
  for (const char* loopback : {"127.0.1.1", "::1"}) {
    const auto refused = check_name("gpu-a", loopback);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code, ErrorCode::kBadOption);
    EXPECT_THAT(refused.error().message, HasSubstr(fmt::format("the name gpu-a is {}, by which no other", loopback)));
  }
}

// Of the host that the test runs on: the loopback is there, is known for what it is, and runs.
TEST_F(InterfaceTest, R27TheLoopbackOfThisHostIsKnown) {
  const auto found = network_interfaces();
  const auto lo = std::ranges::find_if(found, &NetworkInterface::loopback);
  ASSERT_NE(lo, found.end()) << in_words(found);
  EXPECT_TRUE(lo->up && lo->carrier) << in_words(found);
  EXPECT_THAT(lo->addresses, ::testing::Contains("127.0.0.1"));
}

TEST_F(InterfaceTest, R27TheFlagIsTakenBeforeTheVariable) {
  EngineOptions options = options_of({}, 5);
  ASSERT_EQ(::unsetenv("GLOO_SOCKET_IFNAME"), 0);
  EXPECT_EQ(*rank_address(options, "127.0.0.2"), "127.0.0.2");
  ASSERT_EQ(::setenv("GLOO_SOCKET_IFNAME", "lo", 1), 0);
  EXPECT_EQ(*rank_address(options, "127.0.0.2"), "127.0.0.1");
  options.gloo_socket_ifname = "no-such";
  EXPECT_THAT(check_interface(options).error().message, HasSubstr("--gloo-socket-ifname no-such"));
  ::unsetenv("GLOO_SOCKET_IFNAME");
}

TEST_F(InterfaceTest, R27IsOfSeveralHosts) {
  const auto parsed = engine_option_table().parse({"--model-path=/nowhere", "--gloo-socket-ifname=lo"}, true);
  const auto checked = parsed.ok() ? check_engine_options(*parsed) : Result<void>(parsed.error());
  ASSERT_FALSE(checked.ok());
  EXPECT_THAT(checked.error().message, HasSubstr("--gloo-socket-ifname lo is of --nnodes 2 or more"));
}

TEST_F(NodeLeaderTest, R27RanksAreAtTheAddressOfTheInterfaceThatIsChosen) {
  const uint16_t port = free_port();
  EngineOptions options = options_of({"--gloo-socket-ifname=lo"}, port);
  options.dist_init_addr = fmt::format("127.0.0.2:{}", port);  // of the same network, and no address of an interface
  const auto leader = NodeLeader::listen(options, own_identity(options, ""));
  ASSERT_TRUE(leader.ok()) << leader.error().message;
  EXPECT_EQ((*leader)->address(), "127.0.0.1");
  options.gloo_socket_ifname = "no-such";
  options.dist_init_addr = fmt::format("127.0.0.2:{}", free_port());
  const auto refused = NodeLeader::listen(options, own_identity(options, ""));
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("there is no such interface; the interfaces of this host are lo ("));
}

// Cards of both hosts that reset cut the agent off, and are still without a carrier when it reaches node 0 by another
// way.
TEST(NodeAgentTest, R27AnInterfaceThatIsUnpluggedWhileItJoinsAgainIsWaitedFor) {
  const uint16_t port = free_port();
  const auto listening = net::listen_sockets("127.0.0.1", port, 1, 8);
  ASSERT_TRUE(listening.ok());
  const auto next_connection = [&]() -> std::optional<NodeLink> {
    pollfd come{listening->sockets[0][0].get(), POLLIN, 0};
    const auto bound = std::chrono::duration_cast<std::chrono::milliseconds>(kBound).count();
    if (::poll(&come, 1, static_cast<int>(bound)) != 1) return std::nullopt;
    return NodeLink(net::Socket(::accept4(come.fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)));
  };
  const std::string folder = fmt::format("{}/sluice-agent-{}", ::testing::TempDir(), ::getpid());
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/config.json") << "{}";
  EngineOptions options = options_of({"--node-rank=1", "--gloo-socket-ifname=ib0", "--port=0"}, port);
  options.model_path = folder;

  std::atomic<bool> up{true};
  std::atomic<int> asked{0};
  const auto interfaces = [&]() -> std::vector<NetworkInterface> {
    ++asked;
    return {{.name = "ib0", .up = true, .addresses = {"127.0.0.3"}, .carrier = up}};
  };
  auto agent = NodeAgent::start(options, {}, interfaces);
  ASSERT_TRUE(agent.ok()) << agent.error().message;
  int stop[2];
  ASSERT_EQ(::pipe(stop), 0);
  auto life = std::async(std::launch::async, [&] { return (*agent)->run(stop[0]); });
  const auto say_joined = [](NodeLink& link) {
    EXPECT_EQ(link.receive(kBound, "a node").value()["op"], "join");
    EXPECT_TRUE(link.send({{"op", "joined"}}).ok());
  };
  // Asked for at the start and once to join: what the log says of it is what it has joined with.
  auto first = next_connection();
  if (first) {
    say_joined(*first);
    EXPECT_EQ(first->receive(kBound, "a sign of life").value()["op"], "alive");
  }
  EXPECT_EQ(asked, 2);
  up = false;
  first.reset();
  if (auto down = next_connection()) {
    EXPECT_EQ(down->receive(kBound, "its end").error().code, ErrorCode::kReset);
  }
  up = true;
  auto again = next_connection();
  EXPECT_TRUE(again.has_value()) << "it has ended";
  if (again) {
    say_joined(*again);
    EXPECT_TRUE(again->send({{"op", "end"}}).ok());
  }
  EXPECT_EQ(::write(stop[1], "x", 1), 1);
  EXPECT_TRUE(life.get().ok());
  ::close(stop[0]);
  ::close(stop[1]);
  std::filesystem::remove_all(folder);
}

// Each host has its own interfaces: one may name one and the other none.
TEST_F(ClusterCheckTest, R27ShowsTheInterfaceThatIsChosenAndNamesAWrongOne) {
  const auto results = check({{}, {"--gloo-socket-ifname=lo"}});
  for (const auto& result : results) {
    ASSERT_TRUE(result.ok()) << result.error().message;
    EXPECT_TRUE(result->passed) << result->table;
    EXPECT_THAT(result->table, ::testing::ContainsRegex("\n1 [^\n]* 127.0.0.1 \\(lo\\) [^\n]* ms +-\n"));
    EXPECT_THAT(result->table, ::testing::Not(::testing::ContainsRegex("\n0 [^\n]*\\(lo\\)")));
  }
  for (const int64_t node : {0, 1}) {
    EngineOptions options = options_of({fmt::format("--node-rank={}", node)}, port_);
    options.gloo_socket_ifname = "no-such";
    const auto refused = check_cluster(options, Duration{0}, -1);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code, ErrorCode::kBadOption);
    EXPECT_THAT(refused.error().message, HasSubstr("there is no such interface"));
  }
}

TEST(JudgeClusterTest, R27NamesAPathThatFailsAndAddressesOfTwoFamilies) {
  std::vector<CheckedNode> nodes(2);
  for (size_t i = 0; i < 2; ++i) {
    nodes[i] = {.node = static_cast<int64_t>(i),
                .seen = true,
                .address = i == 0 ? "10.0.0.1" : "fd00::2",
                .identity = {},
                .paths = {}};
    nodes[i].identity.node = nodes[i].node;
  }
  nodes[0].paths = {{.to = 1, .took = {}, .problem = "[fd00::2]:99: Network is unreachable"}};
  nodes[1].paths = {{.to = 0, .took = std::chrono::microseconds(1500), .problem = {}}};
  const ClusterCheck check = judge_cluster(nodes, kBound);
  EXPECT_FALSE(check.passed);
  EXPECT_THAT(check.table, HasSubstr("from node 0 to node 1: [fd00::2]:99: Network is unreachable"));
  EXPECT_THAT(check.table, HasSubstr("node 1 is at fd00::2, node 0 at 10.0.0.1: give --dist-init-addr an address"));
  EXPECT_THAT(check.table, HasSubstr("1.50 ms"));
}

}  // namespace
}  // namespace sluice::engine
