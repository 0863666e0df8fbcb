// The scenarios of docs/results/reliability.md that need a fleet, each under its id: over real sockets, with a clock
// that stands still unless a test moves it.
#include <algorithm>
#include <array>
#include <atomic>
#include <set>
#include <thread>

#include "base/rng.h"
#include "gateway/gateway_fixture.h"
#include "gateway/scripted_worker_fixture.h"
#include "testing/raw_listener.h"
#include "testing/seed.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using ::testing::Not;

class ReliabilityTest : public GatewayFixture {
 protected:
  using Clients = std::vector<std::unique_ptr<RawClient>>;

  double faults() { return metric("smg_worker_cb_outcomes_total", {"failure"}); }
  double retries() { return metric("smg_worker_retries_total"); }
  double opened() { return metric("smg_worker_cb_transitions_total"); }
  void add(Clients& clients, const std::string& body) {
    ++sent_;
    clients.push_back(std::make_unique<RawClient>(gateway_->port()));
    clients.back()->post("/generate", body);
  }
  // What the engines of the fleet have, running or waiting.
  int64_t held() const {
    int64_t sum = 0;
    for (const auto& one : workers_) sum += one->load().running + one->load().waiting;
    return sum;
  }
  // Steps manual workers until they have nothing to do.
  void finish() {
    EXPECT_TRUE(eventually([&] {
      int64_t left = 0;
      for (const auto& one : workers_) {
        for (int i = 0; i < 50; ++i) one->step();
        left += one->active();
      }
      return left == 0;
    }));
  }
  static bool served_by(const std::string& answer, const SimWorker& worker) {
    return answer.find("x-smg-routed-worker-id: " + worker.url() + "\r\n") != std::string::npos;
  }
  static int events(const std::string& answer) {
    int found = 0;
    for (size_t at = 0; (at = answer.find("data: {", at)) != std::string::npos; ++at) ++found;
    return found;
  }
};

// --- failures ------------------------------------------------------------------------------------------------------

// Of 24 requests a third is with the worker that is killed. Its streams have begun and end with an error event; what
// has not begun moves on; the others and whoever comes later notice nothing.
TEST_F(ReliabilityTest, AClientThatLeavesTheQueueBehindALargeBodyGivesItsPlaceBack) {
  SimWorker& one = worker();
  start({"--max-concurrent-requests", "1", "--queue-size", "1"});
  one.set_fault({.kind = Kind::kStall});
  RawClient first(gateway_->port());
  first.post("/generate", body_of("x"));
  ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
  RawClient second(gateway_->port());
  second.post("/generate", body_of(std::string((256 << 10) + 1000, 'y')));
  ASSERT_TRUE(eventually([&] { return metric("smg_admission_queue_depth") == 1; }));
  second.leave();
  EXPECT_TRUE(eventually([&] { return metric("smg_admission_queue_depth") == 0; }));
  first.leave();
  EXPECT_TRUE(eventually([&] { return in_flight() == 0; }));
  EXPECT_EQ(one.counters().generations, 1);
}

TEST_F(ReliabilityTest, R1AKilledWorkerFailsItsOwnStreamsAndNothingElse) {
  for (int i = 0; i < 3; ++i) worker({.manual = true});
  SimWorker& dies = *workers_[1];
  start({"--policy", "round_robin"});
  Clients streams, wholes;
  for (int i = 0; i < 12; ++i) {
    add(streams, body_of("stream", true, 40));
    add(wholes, body_of("whole", false, 40));
  }
  ASSERT_TRUE(eventually([&] { return held() == 24; }));
  for (const auto& one : workers_) one->step();
  std::vector<RawClient*> cut, going;
  for (const auto& stream : streams) {
    (served_by(stream->read_until("data: {"), dies) ? cut : going).push_back(stream.get());
  }
  ASSERT_FALSE(cut.empty());
  ASSERT_FALSE(going.empty());

  dies.stop();
  for (RawClient* stream : cut) {
    EXPECT_THAT(stream->read_until("0\r\n\r\n"), HasSubstr("\"stream_error\""));
    EXPECT_THAT(stream->read_until("0\r\n\r\n"), Not(HasSubstr("[DONE]")));
  }
  for (int i = 0; i < 9; ++i) add(wholes, body_of("late", false, 4));
  ASSERT_TRUE(eventually([&] { return held() == static_cast<int64_t>(going.size() + wholes.size()); }));
  finish();
  for (const auto& whole : wholes) EXPECT_THAT(whole->read_until("meta_info"), HasSubstr(" 200 OK"));
  for (RawClient* stream : going) {
    const std::string answer = stream->read_until("[DONE]");
    EXPECT_THAT(answer, HasSubstr("[DONE]"));
    EXPECT_THAT(answer, Not(HasSubstr("stream_error")));
  }
  EXPECT_EQ(metric("smg_stream_aborts_total", {"worker\""}), static_cast<double>(cut.size()));
  expect_settled();
}

TEST_F(ReliabilityTest, R2ARestartedWorkerIsCreditedWithNothingOfItsOldCache) {
  SimWorker& one = worker();
  start();
  std::string prompt;
  for (int i = 0; i < 200; ++i) prompt += fmt::format("word{} ", i);
  const auto predicted = [&] { return metric("smg_worker_predicted_cached_tokens_total"); };
  const auto ask = [&](const char* question) { ASSERT_EQ(generate(prompt + question)->status, 200); };
  ask("first");
  ASSERT_TRUE(eventually([&] { return metric("smg_prefix_index_nodes") > 1; }));
  ask("second");
  ASSERT_TRUE(eventually([&] { return predicted() > 0; }));

  one.stop();
  gateway_->worker_ended(one.url());
  ASSERT_TRUE(one.restart().ok());
  gateway_->worker_started(one.url());
  const Json now = workers_json()[0];
  EXPECT_EQ(now["generation"], 1);
  EXPECT_EQ(now["load"], 0);
  EXPECT_EQ(now["load_tokens"], 0);
  const double before = predicted();
  ask("third");
  EXPECT_TRUE(eventually([&] { return metric("smg_router_requests_total") == 3; }));
  EXPECT_EQ(predicted(), before) << "the cache is empty";
  ask("fourth");
  EXPECT_TRUE(eventually([&] { return predicted() > before; })) << "and fills again";
  expect_settled();
}

TEST_F(ReliabilityTest, R2AProcessThatRefusedForAMomentKeepsItsCacheAndItsRestartIsSeenLater) {
  SimWorker& one = worker({.names_process = true, .keeps_name = true});
  start({"--disable-retries"});
  const auto generation = [&] { return workers_json()[0]["generation"].get<int>(); };
  const auto checks = [&](const char* result) { return metric("smg_worker_health_checks_total", {result}); };
  const auto await_check = [&](const char* result) {
    const double before = checks(result);
    return eventually([&] {
      clock_.advance(5s);
      return checks(result) > before;
    });
  };
  ASSERT_EQ(generate()->status, 200);
  one.stop();
  clock_.advance(60s);
  EXPECT_EQ(generate()->status, 502);
  ASSERT_TRUE(await_check("error"));
  ASSERT_TRUE(one.restart().ok());
  ASSERT_TRUE(await_check("success"));
  ASSERT_TRUE(eventually([&] {
    clock_.advance(1s);
    return generate()->status == 200;
  }));
  EXPECT_EQ(generation(), 0) << "it is the process that it was";
  one.stop();
  one.rename();
  ASSERT_TRUE(one.restart().ok());
  ASSERT_TRUE(eventually([&] {
    clock_.advance(1s);
    (void)generate();
    return generation() == 1;
  })) << "and the next one is another";
  expect_settled();
}

// Nobody says that it has restarted, and no health check meets it: its answers do.
TEST_F(ReliabilityTest, R2ARestartBetweenTwoHealthChecksIsSeenByTheFirstAnswerThatNamesItsProcess) {
  SimWorker& one = worker({.names_process = true});
  start();
  std::string prompt;
  for (int i = 0; i < 200; ++i) prompt += fmt::format("word{} ", i);
  const auto predicted = [&] { return metric("smg_worker_predicted_cached_tokens_total"); };
  const auto generation = [&] { return workers_json()[0]["generation"].get<int>(); };
  const auto ask = [&](const char* question) {
    ASSERT_EQ(generate(prompt + question)->status, 200);
    ASSERT_TRUE(eventually([&] { return metric("smg_router_requests_total") == sent_; }));
  };
  ask("first");
  ASSERT_TRUE(eventually([&] { return metric("smg_prefix_index_nodes") > 1; }));
  ask("second");
  ASSERT_GT(predicted(), 0);
  EXPECT_EQ(generation(), 0);

  one.stop();
  ASSERT_TRUE(one.restart().ok());
  const double checks = metric("smg_worker_health_checks_total");
  ask("third");
  ASSERT_TRUE(eventually([&] { return generation() == 1; }));
  const double before = predicted();
  ask("fourth");
  EXPECT_EQ(predicted(), before) << "nothing is believed of its cache";
  ask("fifth");
  EXPECT_GT(predicted(), before) << "and then what it has computed since";
  EXPECT_EQ(generation(), 1);
  EXPECT_EQ(metric("smg_worker_health_checks_total"), checks) << "nobody has looked";
  // And where a check comes first: a new key has one made soon.
  one.stop();
  ASSERT_TRUE(one.restart().ok());
  const std::string path = "/workers/" + workers_json()[0]["id"].get<std::string>();
  int keys = 0;
  ASSERT_TRUE(eventually([&] {
    clock_.advance(1s);
    EXPECT_EQ(call("PATCH", path, Json{{"api_key", std::to_string(++keys)}}.dump())->status, 202);
    return generation() == 2;
  }));
  const double then = predicted();
  ask("sixth");
  EXPECT_EQ(predicted(), then);
  EXPECT_EQ(generation(), 2);
  expect_settled();
}

TEST_F(ReliabilityTest, AFaultIsLookedIntoAtOnce) {
  SimWorker& one = worker();
  start({"--disable-retries"});
  const auto checks = [&] { return metric("smg_worker_health_checks_total", {"success"}); };
  ASSERT_TRUE(eventually([&] { return checks() == 1; }));
  clock_.advance(10s);
  one.set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  EXPECT_EQ(generate()->status, 500);
  EXPECT_TRUE(eventually([&] { return checks() == 2; })) << "this clock does not go on: no second passes by it";
  one.set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  EXPECT_EQ(generate()->status, 500);
  clock_.advance(1s);
  EXPECT_TRUE(eventually([&] { return checks() == 3; })) << "and the next one a second later";
}

// Nobody says that it has restarted, but a health check was refused in between. The clock makes the checks due; a fault
// of a request wakes whoever makes them.
TEST_F(ReliabilityTest, R2ARestartThatNobodyReportsIsSeenByTheHealthChecks) {
  SimWorker& one = worker();
  start({"--disable-retries", "--cb-failure-threshold", "2", "--runtime-worker-threads", "1"});
  std::string prompt;
  for (int i = 0; i < 200; ++i) prompt += fmt::format("word{} ", i);
  const auto checks = [&](const char* result) { return metric("smg_worker_health_checks_total", {result}); };
  const auto generation = [&] { return workers_json()[0]["generation"].get<int>(); };
  // A check is counted before the time of the next is set, so that may be later than the clock was when it was seen.
  const auto as_time_passes = [&](const auto& holds) {
    return eventually([&] {
      clock_.advance(1s);
      return holds();
    });
  };
  ASSERT_EQ(generate(prompt)->status, 200);
  ASSERT_TRUE(eventually([&] { return metric("smg_prefix_index_nodes") > 1; }));

  one.stop();
  clock_.advance(60s);
  EXPECT_EQ(generate()->status, 502);
  ASSERT_TRUE(eventually([&] { return checks("error") > 0; }));
  EXPECT_EQ(generation(), 0) << "it may be back with nothing lost";
  ASSERT_TRUE(one.restart().ok());
  one.set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  clock_.advance(60s);
  EXPECT_EQ(generate()->status, 500);
  ASSERT_TRUE(as_time_passes([&] { return generation() == 1; }));
  const double predicted = metric("smg_worker_predicted_cached_tokens_total");
  EXPECT_EQ(generate(prompt)->status, 200) << "the breaker, which two faults have opened, is that of the new process";
  EXPECT_TRUE(eventually([&] { return metric("smg_router_requests_total") == sent_; }));
  EXPECT_EQ(metric("smg_worker_predicted_cached_tokens_total"), predicted) << "the cache is empty";

  one.set_health({.status = 503});
  one.set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  const double failed = checks("error");
  clock_.advance(60s);
  EXPECT_EQ(generate()->status, 500);
  ASSERT_TRUE(as_time_passes([&] { return checks("error") > failed; }));
  one.set_health({});
  one.set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  const double passed = checks("success");
  clock_.advance(60s);
  EXPECT_EQ(generate()->status, 500);
  ASSERT_TRUE(as_time_passes([&] { return checks("success") > passed; }));
  EXPECT_EQ(generation(), 1) << "one that was unwell has kept its cache";
  expect_settled();
}

// Each time with a request under way, which moves on.
TEST_F(ReliabilityTest, R3AHundredRestartsLeaveTheCountersExact) {
  SimWorker& loops = worker();
  SimWorker& steady = worker();
  start({"--policy", "round_robin"});
  loops.set_fault({.kind = Kind::kStall});
  for (int life = 0; life < 100; ++life) {
    SCOPED_TRACE(life);
    Clients clients;
    for (int i = 0; i < 2; ++i) add(clients, body_of("x"));
    ASSERT_TRUE(eventually([&] { return loops.active() == 1 && steady.counters().generations == 2 * life + 1; }));
    loops.stop();
    gateway_->worker_ended(loops.url());
    for (const auto& client : clients) ASSERT_THAT(client->read_until("meta_info"), HasSubstr(" 200 OK"));
    ASSERT_TRUE(loops.restart().ok());
    gateway_->worker_started(loops.url());
  }
  EXPECT_EQ(workers_json()[0]["generation"], 100);
  EXPECT_EQ(retries(), 100);
  EXPECT_EQ(metric("smg_worker_requests_total", {loops.url()}), 100);
  EXPECT_EQ(metric("smg_worker_requests_total", {steady.url()}), 200);
  loops.clear_fault();
  for (int i = 0; i < 4; ++i) EXPECT_EQ(generate()->status, 200);
  EXPECT_EQ(steady.counters().generations, 202) << "it has its share again";
  expect_settled();
}

// The three ways to say it: with and without the time after which to come back, and as the engines do, with a text.
TEST_F(ReliabilityTest, R6AMinuteOfFullQueuesOpensNoBreakerAndIsOverAtOnce) {
  for (int i = 0; i < 2; ++i) worker({.manual = true});
  start({"--policy", "round_robin", "--retry-max-retries", "2", "--retry-initial-backoff-ms", "1",
         "--retry-max-backoff-ms", "1"});
  SimFault too_many{.kind = Kind::kStatus, .status = 429, .body = "slow down"};
  SimFault comes_back{.kind = Kind::kStatus, .status = 503, .body = "later", .retry_after = 1};
  SimFault queue_full{.kind = Kind::kStatus, .status = 503};  // "The request queue is full."
  for (const SimFault& fault : {too_many, comes_back, queue_full}) {
    SCOPED_TRACE(fault.body);
    for (auto& each : workers_) each->set_fault(fault);
    for (int second = 0; second < 60; ++second) {
      if (second > 0) clock_.advance(1s);
      for (int i = 0; i < 2; ++i) EXPECT_EQ(generate()->status, fault.status);
    }
    EXPECT_EQ(opened(), 0);
    EXPECT_EQ(faults(), 0);
    for (auto& each : workers_) each->clear_fault();
    Clients clients;
    for (int i = 0; i < 10; ++i) add(clients, body_of("x"));
    ASSERT_TRUE(eventually([&] { return held() == 10; })) << "no time has passed since, and nobody is refused";
    clock_.advance(fault.retry_after ? 1000ms : 600ms);
    ASSERT_TRUE(eventually([&] {
      const Json now = workers_json();
      return now[0]["most_requests"] == nullptr && now[1]["most_requests"] == nullptr;
    })) << workers_json();
    for (int i = 0; i < 30; ++i) add(clients, body_of("x"));
    ASSERT_TRUE(eventually([&] { return held() == 40; }));
    for (const auto& each : workers_) EXPECT_EQ(each->load().running + each->load().waiting, 20);
    finish();
    for (const auto& client : clients) EXPECT_THAT(client->read_until("meta_info"), HasSubstr(" 200 OK"));
  }
  expect_settled();
}

TEST_F(ReliabilityTest, R6ABusyWorkerHasHalfOfWhatItHadUntilItAnswers) {
  for (int i = 0; i < 2; ++i) worker({.manual = true});
  SimWorker& full = *workers_[0];
  const auto has = [](const auto& one) { return one.load().running + one.load().waiting; };
  start({"--policy", "round_robin"});
  Clients clients;
  for (int i = 0; i < 16; ++i) add(clients, body_of("x"));
  ASSERT_TRUE(eventually([&] { return has(full) == 8 && has(*workers_[1]) == 8; }));
  full.set_fault({.kind = Kind::kStatus, .status = 429, .times = 1});
  for (int i = 0; i < 6; ++i) {
    add(clients, body_of("x"));
    ASSERT_TRUE(eventually([&] { return held() == 17 + i; }));
  }
  EXPECT_EQ(has(full), 8) << "whatever it refused or did not get, the other one has";
  EXPECT_EQ(workers_json()[0]["most_requests"], 4);
  EXPECT_EQ(workers_json()[1]["most_requests"], nullptr);
  EXPECT_EQ(retries(), 1);
  ASSERT_TRUE(eventually([&] { return full.step() == 0 && full.active() == 0; }));
  ASSERT_TRUE(eventually([&] { return workers_json()[0]["most_requests"] == 12; })) << "one more for each answer";
  add(clients, body_of("x"));
  add(clients, body_of("x"));
  ASSERT_TRUE(eventually([&] { return has(full) == 1; })) << "it has its turn again";
  clock_.advance(500ms);
  EXPECT_TRUE(eventually([&] { return workers_json()[0]["most_requests"] == nullptr; }));
  finish();
  for (const auto& client : clients) EXPECT_THAT(client->read_until("meta_info"), HasSubstr(" 200 OK"));
  expect_settled();
}

TEST_F(ReliabilityTest, R6AWorkerThatOthersKeepBusyIsAskedNowAndThen) {
  SimWorker& busy = worker();
  worker();
  start({"--policy", "round_robin"});
  busy.set_fault({.kind = Kind::kStatus, .status = 429});
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(generate()->status, 200);
    clock_.advance(25ms);
  }
  EXPECT_LE(busy.counters().generations, 5) << "in a second";
  EXPECT_GE(busy.counters().generations, 4);
  expect_settled();
}

TEST_F(ReliabilityTest, R7AThousandBadRequestsLeaveTheBreakerClosed) {
  SimWorker& one = worker();
  start();
  for (const int status : {400, 404, 413, 422}) {
    one.set_fault({.kind = Kind::kStatus, .status = status, .body = "bad"});
    for (int i = 0; i < 250; ++i) {
      RawClient client(gateway_->port());
      client.post("/generate", body_of("x", i % 2 == 0));
      client.read_until("\r\n\r\nbad");
    }
    sent_ += 250;
    EXPECT_TRUE(eventually([&] {
      return metric("smg_http_responses_total", {"/generate", std::to_string(status)}) == 250;
    }));
  }
  EXPECT_EQ(one.counters().generations, 1000) << "none of them twice";
  EXPECT_EQ(opened(), 0);
  EXPECT_EQ(faults(), 0);
  one.clear_fault();
  EXPECT_EQ(generate()->status, 200);
  expect_settled();
}

// 408 is one of them, but the request may do better elsewhere.
TEST_F(ReliabilityTest, R7ARequestThatAWorkerFindsTooSlowIsRepeatedAndBlamesNobody) {
  SimWorker& impatient = worker();
  worker();
  start({"--policy", "round_robin", "--cb-failure-threshold", "1", "--retry-initial-backoff-ms", "0"});
  impatient.set_fault({.kind = Kind::kStatus, .status = 408, .body = "slow"});
  // An attempt at the other worker takes a turn too, so each begins here; there are ten retries.
  for (int i = 0; i < 10; ++i) EXPECT_EQ(generate("x", i % 2 == 0)->status, 200);
  EXPECT_EQ(impatient.counters().generations, 10);
  EXPECT_EQ(retries(), 10);
  EXPECT_EQ(opened(), 0);
  EXPECT_EQ(faults(), 0);
  EXPECT_EQ(metric("smg_worker_cb_outcomes_total", {impatient.url(), "success"}), 0);
  expect_settled();
}

// A worker that closes a kept-alive connection just when the next request comes on it: each connection is good for one
// answer, and which requests meet a dead one does not depend on time.
class OneAnswerPerConnection {
 public:
  OneAnswerPerConnection() : thread_([this] { run(); }) {}
  ~OneAnswerPerConnection() {
    over_ = true;
    listener_.shutdown();
    thread_.join();
  }

  std::string url() const { return listener_.url(); }
  int met_dead() const { return met_dead_; }

 private:
  struct Connection {
    int fd = -1;
    std::string in;
    bool answered = false;
  };

  // False: the connection has ended.
  bool serve(Connection& connection) {
    char buffer[65536];
    const ssize_t n = ::recv(connection.fd, buffer, sizeof buffer, 0);
    if (n > 0 && connection.answered) ++met_dead_;
    if (n <= 0 || connection.answered) return false;
    connection.in.append(buffer, static_cast<size_t>(n));
    const size_t head = connection.in.find("\r\n\r\n");
    if (head == std::string::npos) return true;
    const size_t length = connection.in.find("Content-Length: ");
    const size_t body = length > head ? 0 : std::stoul(connection.in.substr(length + 16));
    if (connection.in.size() < head + 4 + body) return true;
    constexpr std::string_view kAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    connection.answered = true;
    return ::send(connection.fd, kAnswer.data(), kAnswer.size(), MSG_NOSIGNAL) > 0;
  }
  void run() {
    std::vector<Connection> connections;
    while (!over_) {
      std::vector<pollfd> polls = {{listener_.fd(), POLLIN, 0}};
      for (const Connection& connection : connections) polls.push_back({connection.fd, POLLIN, 0});
      ::poll(polls.data(), polls.size(), -1);
      for (size_t i = connections.size(); i-- > 0;) {
        if (polls[i + 1].revents == 0 || serve(connections[i])) continue;
        ::close(connections[i].fd);
        connections.erase(connections.begin() + static_cast<std::ptrdiff_t>(i));
      }
      if ((polls[0].revents & POLLIN) != 0 && !over_)
        connections.push_back({::accept(listener_.fd(), nullptr, nullptr), {}});
    }
    for (const Connection& connection : connections) ::close(connection.fd);
  }

  sluice::testing::RawListener listener_;
  std::atomic<bool> over_{false};
  std::atomic<int> met_dead_{0};
  std::thread thread_;
};

TEST_F(ReliabilityTest, R8AWorkerThatClosesIdleConnectionsCostsNobodyAnything) {
  const uint64_t seed = sluice::testing::test_seed();
  SCOPED_TRACE(fmt::format("SLUICE_TEST_SEED={}", seed));
  Rng rng(seed);
  OneAnswerPerConnection one;
  start({"--disable-retries", "--runtime-worker-threads", "1"});
  gateway_->worker_started(one.url());
  for (int burst = 0; burst < 60; ++burst) {
    Clients clients;
    // More at once than the next time leave further dead connections behind.
    for (uint64_t i = 1 + rng.below(6); i > 0; --i) add(clients, body_of("x"));
    for (const auto& client : clients) ASSERT_THAT(client->read_until("\r\n\r\n"), HasSubstr(" 200 OK"));
    ++sent_;
    // A body that the buffers do not take at once: the connection ends while it is sent.
    const auto large = call("POST", "/generate", body_of(std::string(burst % 20 == 0 ? 6 << 20 : 10, 'x')));
    ASSERT_EQ(large->status, 200) << large->body;
  }
  EXPECT_GT(one.met_dead(), 60);
  EXPECT_EQ(faults(), 0);
  expect_settled();
  gateway_.reset();
}

// The client sees all of the answer, or an error event after what had come. Nothing of another worker is put after it,
// which for guided decoding (X9) would be another answer.
TEST_F(ReliabilityTest, R9X9AWorkerThatDiesAfterAnyTokenGivesAnErrorEventOrTheWholeStream) {
  for (int i = 0; i < 2; ++i) worker();
  start({"--policy", "round_robin", "--cb-failure-threshold", "1000"});
  const std::string generate = R"({"text":"x","stream":true,"sampling_params":{"max_new_tokens":6,"regex":"[a-z]*"}})";
  const std::string chat =
      R"({"messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":6,"response_format":{"type":"json_object"}})";
  for (const auto& [target, body] : {std::pair{"/generate", generate}, {"/v1/chat/completions", chat}}) {
    ++sent_;
    const std::string undisturbed = call("POST", target, body)->body;
    const int last = events(undisturbed);
    ASSERT_GE(last, 6) << undisturbed;
    for (int k = 0; k <= last + 2; ++k) {
      SCOPED_TRACE(fmt::format("{} after {} events", target, k));
      for (auto& each : workers_) each->set_fault({.kind = Kind::kDie, .chunks = k, .times = 1});
      const int64_t asked = workers_[0]->counters().generations + workers_[1]->counters().generations;
      ++sent_;
      const auto answer = call("POST", target, body);
      ASSERT_TRUE(answer.ok()) << answer.error().message;
      const bool whole = answer->body.ends_with("data: [DONE]\n\n");
      const bool broken = answer->body.find("\"stream_error\"") != std::string::npos;
      EXPECT_EQ(answer->status, 200);
      EXPECT_NE(whole, broken) << answer->body;
      if (broken) {
        EXPECT_EQ(events(answer->body), k + 1) << answer->body;
      }
      if (whole) {
        EXPECT_EQ(events(answer->body), last) << answer->body;
      }
      if (k > 0) {
        EXPECT_EQ(workers_[0]->counters().generations + workers_[1]->counters().generations, asked + 1);
        EXPECT_EQ(broken, k <= last) << answer->body;
      }
      for (auto& each : workers_) each->clear_fault();
    }
  }
  expect_settled();
}

TEST_F(ReliabilityTest, R28OneWorkerThatNeverBecomesHealthyKeepsNobodyWaiting) {
  SimWorker& never = worker();
  never.stop();
  const std::string absent = never.url();
  workers_.clear();
  for (int i = 0; i < 2; ++i) worker();
  start({"--policy", "round_robin"});
  ASSERT_EQ(call("POST", "/workers", Json{{"url", absent}}.dump())->status, 202);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(generate()->status, 200);
  EXPECT_EQ(call("GET", "/readiness")->status, 200);
  EXPECT_EQ(metric("smg_worker_requests_total", {absent}), 0);
  EXPECT_EQ(retries(), 0);
  EXPECT_EQ(workers_json()[2]["is_healthy"], false);
  expect_settled();
}

// Somebody sets the clock of the machine while requests wait, run and are retried: a day on, a week back, to 1970. No
// limit, pause or lease is of that clock.
TEST_F(ReliabilityTest, R30AClockThatJumpsWhileRequestsRunChangesNothing) {
  struct Jumping final : Clock {
    explicit Jumping(const Clock& clock) : steady(clock) {}
    TimePoint now() const override { return steady.now(); }
    int64_t unix_nanos() const override { return wall.load(); }
    const Clock& steady;
    std::atomic<int64_t> wall{1'700'000'000'000'000'000};
  } jumping(clock_);
  time_ = &jumping;
  struct Ends {  // before the clock does
    std::unique_ptr<Gateway>& gateway;
    ~Ends() { gateway.reset(); }
  } const ends{gateway_};
  for (int i = 0; i < 2; ++i) worker({.manual = true});
  start({"--policy", "min_cost", "--max-concurrent-requests", "8", "--queue-size", "8", "--queue-timeout-secs", "30",
         "--rate-limit-tokens-per-second", "1000", "--response-head-timeout-secs", "30", "--total-timeout-secs", "60"});
  constexpr int64_t kDay = 86'400'000'000'000;
  for (const int64_t jump : {kDay, -8 * kDay, -jumping.wall.load(), int64_t{1'900'000'000'000'000'000}}) {
    Clients clients;
    for (int i = 0; i < 12; ++i) add(clients, body_of("x", i % 2 == 0, 6));  // of which four wait for their turn
    ASSERT_TRUE(eventually([&] { return metric("smg_admission_queue_depth") == 4; }));
    jumping.wall += jump;
    ASSERT_TRUE(eventually([&] {
      finish();
      clock_.advance(10ms);  // the rate limit is of the steady clock
      return in_flight() == 0;
    })) << workers_json();
    for (const auto& client : clients) {
      EXPECT_THAT(client->read_until("HTTP/1.1 "), HasSubstr("HTTP/1.1 200 OK"));
    }
    const Json recent = Json::parse(call("GET", "/debug/requests?state=recent")->body)["recent"];
    EXPECT_GE(recent.size(), 12u);
    for (const Json& one : recent) EXPECT_GE(one["took"].get<double>(), 0) << one.dump();
  }
  EXPECT_EQ(faults(), 0);
  EXPECT_EQ(retries(), 0);
  EXPECT_EQ(metric("smg_http_rate_limit_total", {"rejected"}), 0);
  for (const Json& one : workers_json()) EXPECT_EQ(one["is_healthy"], true);
  expect_settled();
}

// --- load ----------------------------------------------------------------------------------------------------------

TEST_F(ReliabilityTest, L5ABurstOnAColdFleetIsSpreadEvenlyAndNobodyIsRefused) {
  for (const char* policy : {"cache_aware", "min_cost", "round_robin"}) {
    SCOPED_TRACE(policy);
    gateway_.reset();
    workers_.clear();
    sent_ = 0;
    for (int i = 0; i < 8; ++i) worker({.manual = true});
    start({"--policy", policy, "--runtime-worker-threads", "1"});
    Clients clients;
    for (int i = 0; i < 256; ++i) {
      // Each begins with another letter: what begins alike costs less where that was sent, and work is evened out.
      const std::string letter{static_cast<char>(0xC4 + i / 64), static_cast<char>(0x80 + i % 64)};
      add(clients, body_of(letter + " is the letter of this one"));
    }
    ASSERT_TRUE(eventually([&] { return held() == 256; }));
    for (const auto& one : workers_) EXPECT_EQ(one->active(), 32);
    finish();
    for (const auto& client : clients) EXPECT_THAT(client->read_until("meta_info"), HasSubstr(" 200 OK"));
    expect_settled();
  }
}

TEST_F(ReliabilityTest, L16ClientsThatLeaveAtRandomTimesLeaveNothingBehind) {
  const uint64_t seed = sluice::testing::test_seed();
  SCOPED_TRACE(fmt::format("SLUICE_TEST_SEED={}", seed));
  Rng rng(seed);
  for (int i = 0; i < 3; ++i) worker();
  start({"--max-concurrent-requests", "12", "--queue-size", "100"});
  int left = 0;
  for (int round = 0; round < 15; ++round) {
    Clients streams, wholes;
    for (int i = 0; i < 20; ++i) {
      const bool stream = rng.below(2) == 0;
      const std::string body = body_of(fmt::format("{} {}", round, i), stream, 1 + static_cast<int>(rng.below(30)));
      if (rng.below(10) >= 3) {
        add(stream ? streams : wholes, body);
        continue;
      }
      ++left;
      RawClient leaves(gateway_->port());
      const std::string request =
          fmt::format("POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{}", body.size(), body);
      const size_t head = request.size() - body.size();
      switch (rng.below(4)) {
        case 0:  // before the head is whole, which is no request
          leaves.send(request.substr(0, rng.below(head)));
          break;
        case 1:
          ++sent_;
          leaves.send(request.substr(0, head + rng.below(body.size())));
          break;
        case 2:
          ++sent_;
          leaves.send(request);
          break;
        default:
          ++sent_;
          leaves.send(request);
          leaves.read_until("\r\n\r\n");
      }
    }
    for (const auto& whole : wholes) ASSERT_THAT(whole->read_until("meta_info"), HasSubstr(" 200 OK"));
    for (const auto& one : streams) ASSERT_THAT(one->read_until("[DONE]"), HasSubstr("[DONE]"));
  }
  EXPECT_GT(left, 60);
  EXPECT_EQ(faults(), 0);
  expect_settled();
  for (const auto& one : workers_) {
    EXPECT_EQ(one->load().running + one->load().waiting, 0);
    EXPECT_EQ(one->load().used_tokens, 0) << "the KV pool is as it was";
  }
}

// --- bad input -----------------------------------------------------------------------------------------------------

TEST_F(ReliabilityTest, X1WhatIsBeyondTheContextIsRefusedOnceAndBlamesNobody) {
  for (int i = 0; i < 2; ++i) {
    SimWorkerOptions options;
    options.engine.context_length = 64;
    worker(options);
  }
  start({"--cb-failure-threshold", "1"});
  for (int i = 0; i < 20; ++i) {
    const auto answer = generate("one two three", i % 2 == 0, 100);
    EXPECT_EQ(answer->status, 400) << answer->body;
  }
  EXPECT_EQ(workers_[0]->counters().generations + workers_[1]->counters().generations, 20);
  EXPECT_EQ(retries(), 0);
  EXPECT_EQ(opened(), 0);
  EXPECT_EQ(generate()->status, 200);
  expect_settled();
}

TEST_F(ReliabilityTest, X2OddJsonReachesTheWorkerAsItIsOrIs400) {
  ScriptedWorker one(loops_, ScriptedWorker::Answer([](const auto&) { return net::Response::json(200, "{}"); }));
  start();
  gateway_->worker_started(one.url());
  const std::string deep = std::string(10'000, '[') + std::string(10'000, ']');
  size_t passed = 0;
  for (const std::string& body :
       {std::string(R"({"text":"x","extra":{"a":[1,{"b":null}]},"text":"y"})"), R"({"text":"x","deep":)" + deep + "}",
        std::string(R"({"text":"x","n":123456789012345678901234567890,"m":-1e999})"),
        std::string(R"({"text":"x","sampling_params":{"max_new_tokens":99999999999999999999999}})"),
        std::string(R"({"text":"x","a":NaN,"b":-Infinity,"c":+1})")}) {
    ++sent_;
    EXPECT_EQ(call("POST", "/generate", body)->status, 200) << body.substr(0, 80);
    ASSERT_EQ(one.received().size(), ++passed) << body.substr(0, 80);
    EXPECT_EQ(one.received().back().body, body);
  }
  for (const char* body :
       {R"({"text":"x",})", R"({'text':'x'})", "[[[", "{\"text\":\"\\ud800", "\xef\xbb\xbf{}", R"({"text":NaN})"}) {
    ++sent_;
    const auto answer = call("POST", "/generate", body);
    EXPECT_EQ(answer->status, 400) << body;
    EXPECT_EQ(code_of(answer), "json_parse_error") << body;
  }
  EXPECT_EQ(one.received().size(), passed);
  expect_settled();
}

TEST_F(ReliabilityTest, X6RandomNamesPathsMethodsAndHeadersMakeNoSeries) {
  const uint64_t seed = sluice::testing::test_seed();
  SCOPED_TRACE(fmt::format("SLUICE_TEST_SEED={}", seed));
  Rng rng(seed);
  worker();
  start();
  const auto name = [&] { return fmt::format("{:016x}", rng.next()); };
  const auto some = [&](int count) {
    RawClient client(gateway_->port());
    for (int i = 0; i < count; ++i) {
      const std::string body = Json{{"model", name()}, {"text", "x"}, {"rid", name()}, {"user", name()}}.dump();
      client.send(
          fmt::format("POST /generate?{} HTTP/1.1\r\nHost: {}\r\nX-Tenant: {}\r\nx-request-id: {}\r\n"
                      "Content-Length: {}\r\n\r\n{}",
                      name(), name(), name(), name(), body.size(), body));
      ++sent_;
      if (i % 4 != 0) continue;
      client.send(fmt::format("GET /{}/{} HTTP/1.1\r\nHost: x\r\n\r\n", name(), name()));
      client.send(fmt::format("GET /workers/{} HTTP/1.1\r\nHost: x\r\n\r\n", name()));
      client.send(fmt::format("M{} /generate HTTP/1.1\r\nHost: x\r\n\r\n", name()));
    }
    client.send("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    EXPECT_THAT(client.read_until("never"), HasSubstr("unknown_url"));
  };
  const auto series = [&] {
    const std::string text = gateway_->metrics().render();
    return std::ranges::count(text, '\n');
  };
  some(20);
  const auto before = series();
  for (int i = 0; i < 25; ++i) some(40);
  EXPECT_EQ(series(), before) << gateway_->metrics().render();
  expect_settled();
}

TEST_F(ReliabilityTest, X7SessionKeysMatchWholeOrNotAtAllAndAreBounded) {
  for (int i = 0; i < 4; ++i) worker();
  start({"--policy", "manual", "--assignment-mode", "min_group"});
  const auto home_of = [&](const std::string& key) {
    ++sent_;
    const auto answer = call("POST", "/generate", body_of("x"), {{"X-SMG-Routing-Key", key}});
    return std::string(answer->headers.get("x-smg-routed-worker-id").value_or(std::to_string(answer->status)));
  };
  const std::vector<std::string> keys = {"s", "s-1", "s-12", "s-123"};
  std::set<std::string> homes;
  for (const auto& key : keys) homes.insert(home_of(key));
  EXPECT_EQ(homes.size(), 4u) << "min_group gives each key a worker of its own";
  for (const auto& key : keys) {
    const std::string home = home_of(key);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(home_of(key), home);
  }
  EXPECT_EQ(metric("smg_manual_policy_cache_entries"), 4);
  home_of("");
  EXPECT_EQ(metric("smg_manual_policy_cache_entries"), 4) << "an empty key is none";
  const std::string longest(40'000, 'k');
  EXPECT_EQ(home_of(longest), home_of(longest));
  EXPECT_EQ(metric("smg_manual_policy_cache_entries"), 5);
  RawClient huge(gateway_->port());
  const std::string request =
      fmt::format("POST /generate HTTP/1.1\r\nHost: x\r\nX-SMG-Routing-Key: {}\r\nContent-Length: 12\r\n\r\n",
                  std::string(1 << 20, 'k'));
  huge.send(request.substr(0, 200'000));
  EXPECT_THAT(huge.read_until("\r\n\r\n"), HasSubstr(" 431 "));
  EXPECT_EQ(metric("smg_manual_policy_cache_entries"), 5);
  expect_settled();
}

TEST_F(ReliabilityTest, WhatEndedTwoRanksIsAnsweredAndGoesToNoOtherWorker) {
  worker();
  worker();
  start({"--policy", "round_robin", "--retry-initial-backoff-ms", "0"});
  ASSERT_TRUE(eventually([&] { return metric("smg_worker_health") == 2; }));
  const SimFault fault{
      .kind = Kind::kStatus,
      .status = 500,
      .body = R"({"object":"error","message":"killed by SIGKILL","code":500,"reason":"two_ranks_ended"})"};
  for (const auto& one : workers_) one->set_fault(fault);
  for (int i = 0; i < 20; ++i) {
    const auto answer = generate();
    EXPECT_EQ(answer->status, 500);
    EXPECT_EQ(answer->body, fault.body);
  }
  EXPECT_EQ(metric("smg_worker_retries_total"), 0);
  EXPECT_EQ(metric("smg_worker_retries_refused_total"), 0);
  EXPECT_EQ(metric("smg_worker_cb_state"), 0) << "the worker is well";
  expect_settled();
}

TEST_F(ReliabilityTest, MovingOnFromARankThatEndedIsNotChargedAndARefusedRetryIsCounted) {
  SimWorker& ill = worker();
  worker();
  start({"--policy", "round_robin", "--disable-circuit-breaker", "--retry-initial-backoff-ms", "0"});
  ASSERT_TRUE(eventually([&] { return metric("smg_worker_health") == 2; }));
  SimFault fault;
  fault.kind = Kind::kStatus;
  fault.status = 500;
  fault.body = R"({"object":"error","message":"killed by SIGKILL","code":500,"reason":"rank_ended"})";
  ill.set_fault(fault);
  // The clock stands still: the budget has ten retries, or a tenth of the traffic.
  for (int i = 0; i < 60; ++i) ASSERT_EQ(generate()->status, 200) << i;
  EXPECT_EQ(metric("smg_worker_retries_refused_total"), 0);
  fault.body = R"({"error":{"message":"something else"}})";
  ill.set_fault(fault);
  int failed = 0;
  for (int i = 0; i < 80; ++i) failed += generate()->status == 500 ? 1 : 0;
  EXPECT_GT(failed, 0);
  EXPECT_EQ(metric("smg_worker_retries_refused_total"), failed);
  expect_settled();
}

class SpentBudgetTest : public ReliabilityTest {
 protected:
  void begin(int workers) {
    for (int i = 0; i < workers; ++i) worker();
    start({"--policy", "round_robin", "--disable-circuit-breaker", "--retry-initial-backoff-ms", "0",
           "--runtime-worker-threads", "1"});
    ASSERT_TRUE(eventually([&] { return metric("smg_worker_health") == workers; }));
    for (auto& each : workers_) each->set_fault({.kind = Kind::kStatus, .status = 500});
    while (metric("smg_worker_retries_refused_total") == 0) ASSERT_EQ(generate()->status, 500);
    retries_before_ = retries();
  }
  double attempts() { return metric("smg_worker_requests_total"); }

  double retries_before_ = 0;
};

TEST_F(SpentBudgetTest, APromptThatKillsItsWorkersKillsTwo) {
  begin(5);
  for (auto& each : workers_) each->set_fault({.kind = Kind::kReset});
  const double before = attempts();
  EXPECT_EQ(generate("poison")->status, 502);
  EXPECT_EQ(attempts() - before, 2) << "moving on is free once";
  EXPECT_EQ(retries() - retries_before_, 1);

  const std::string ended = R"({"error":{"message":"killed by SIGKILL","reason":"rank_ended"}})";
  for (auto& each : workers_) each->set_fault({.kind = Kind::kStatus, .status = 500, .body = ended});
  const double then = attempts();
  EXPECT_EQ(generate("poison")->status, 500);
  EXPECT_EQ(attempts() - then, 2) << "of ranks too";
  expect_settled();
}

TEST_F(SpentBudgetTest, AWorkerThatTheRequestNeverReachedCostsNothing) {
  begin(5);
  workers_[4]->clear_fault();
  for (int i = 0; i < 4; ++i) workers_[static_cast<size_t>(i)]->stop();
  for (int i = 0; i < 10; ++i) EXPECT_EQ(generate()->status, 200) << "whoever is refused four times";
  EXPECT_GT(retries() - retries_before_, 10);
  expect_settled();
}

// Two workers that can do ten requests a second between them are asked for twenty (D8).
TEST_F(ReliabilityTest, D8AFleetThatIsAskedTwiceWhatItCanDoIsAskedATenthMoreAtMost) {
  std::atomic<int> attempts{0};
  struct Limited {
    std::atomic<int64_t> second{-1};
    std::atomic<int> used{0};
  };
  std::array<Limited, 2> limits;
  const auto answer = [&](Limited& limit) {
    return ScriptedWorker::Answer([&](const auto&) {
      ++attempts;
      const int64_t now = std::chrono::duration_cast<std::chrono::seconds>(clock_.now().time_since_epoch()).count();
      if (limit.second.exchange(now) != now) limit.used = 0;
      return limit.used++ < 5 ? net::Response::json(200, "{}")
                              : net::Response::json(503, R"({"message":"The request queue is full."})");
    });
  };
  ScriptedWorker one(loops_, answer(limits[0])), other(loops_, answer(limits[1]));
  start({"--policy", "round_robin", "--retry-initial-backoff-ms", "0"});
  for (const auto& url : {one.url(), other.url()}) gateway_->worker_started(url);
  int served = 0;
  for (int i = 0; i < 400; ++i) {
    served += generate()->status == 200 ? 1 : 0;
    clock_.advance(50ms);
  }
  EXPECT_GE(served, 195) << "what they can do, they do";
  EXPECT_LE(attempts, 440);
  EXPECT_GT(attempts, 430) << "the budget is used";
  EXPECT_EQ(opened(), 0);
  expect_settled();
}

}  // namespace
}  // namespace sluice::gateway
