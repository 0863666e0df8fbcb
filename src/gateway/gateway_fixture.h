// For tests: a gateway over real sockets with simulated workers behind it, and the books that must balance at the end.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gateway/gateway.h"
#include "net/client.h"
#include "obs/metrics.h"
#include "testing/fake_clock.h"
#include "testing/raw_client.h"
#include "testing/sim_worker.h"

namespace sluice::gateway {

// A client that can leave at any moment.
class RawClient : private testing::RawClient {
 public:
  explicit RawClient(uint16_t port) : testing::RawClient(port) { EXPECT_TRUE(connected()); }

  void send(const std::string& bytes) { EXPECT_TRUE(testing::RawClient::send(bytes)); }
  void post(const std::string& target, const std::string& body) {
    send(fmt::format("POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{}", target, body.size(), body));
  }
  // Everything that comes until the text has come; ends with the connection, and after 20 s.
  std::string read_until(const std::string& text) {
    wait_for(text);
    return arrived();
  }
  void leave() { close(); }
};

class GatewayFixture : public ::testing::Test {
 protected:
  using Json = nlohmann::json;
  using SimWorker = sluice::testing::SimWorker;
  using SimFault = sluice::testing::SimFault;
  using SimWorkerOptions = sluice::testing::SimWorkerOptions;
  using Kind = SimFault::Kind;

  SimWorker& worker(SimWorkerOptions options = {}) {
    options.time_scale = 50;
    workers_.push_back(SimWorker::start(loops_, std::move(options)).value());
    return *workers_.back();
  }
  // In front of all workers so far, which are ready.
  void start(std::vector<std::string> flags = {}) {
    flags.insert(flags.end(), {"--host", "127.0.0.1", "--port", "0", "--prometheus-host", "127.0.0.1",
                               "--prometheus-port", "0", "--expose-worker-header"});
    gateway_ = Gateway::start(gateway_option_table().parse(flags).value(), *time_).value();
    for (const auto& worker : workers_) gateway_->worker_started(worker->url());
    url_ = net::parse_url(fmt::format("http://127.0.0.1:{}", gateway_->port())).value();
  }

  Result<net::Response> call(const std::string& method, const std::string& target, std::string body = "",
                             net::Headers headers = {}, net::ClientTimeouts timeouts = {}) {
    return net::blocking_fetch(url_, method, target, std::move(headers), std::move(body), timeouts);
  }
  static std::string body_of(const std::string& text, bool stream = false, int tokens = 4) {
    return Json{{"text", text}, {"stream", stream}, {"sampling_params", {{"max_new_tokens", tokens}}}}.dump();
  }
  Result<net::Response> generate(const std::string& text = "x", bool stream = false, int tokens = 4,
                                 net::ClientTimeouts timeouts = {}) {
    ++sent_;
    return call("POST", "/generate", body_of(text, stream, tokens), {}, timeouts);
  }
  // The latest request that was no GET: the gateway asks for health and models when it likes.
  static sluice::testing::SimReceived last_post(const SimWorker& worker) {
    const auto received = worker.received();
    for (auto at = received.rbegin(); at != received.rend(); ++at) {
      if (at->method == "POST") return *at;
    }
    return {};
  }
  static std::string code_of(const Result<net::Response>& answer) {
    return answer.ok() ? std::string(answer->headers.get("X-SMG-Error-Code").value_or("")) : answer.error().message;
  }

  // Bounded by count: the condition is looked at 4000 times.
  static bool eventually(const std::function<bool()>& condition) {
    for (int i = 0; i < 4000; ++i) {
      if (condition()) return true;
      timespec moment{0, 5'000'000};
      nanosleep(&moment, nullptr);
    }
    return false;
  }

  // The sum of the series of a family that have all these texts in their labels.
  double metric(const std::string& family, const std::vector<std::string>& labels = {}) {
    const std::string text = gateway_->metrics().render();
    double sum = 0;
    size_t begin = 0;
    for (size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
      const std::string line = text.substr(begin, end - begin);
      const size_t name_end = line.find_first_of("{ ");
      if (name_end == std::string::npos || line.substr(0, name_end) != family) continue;
      bool matches = true;
      for (const auto& label : labels) matches = matches && line.find(label) != std::string::npos;
      if (matches) sum += std::stod(line.substr(line.rfind(' ') + 1));
    }
    return sum;
  }
  Json workers_json() { return Json::parse(call("GET", "/workers")->body)["workers"]; }
  double in_flight() {
    double sum = metric("smg_admission_inflight") + metric("smg_admission_queue_depth");
    const Json list = workers_json();
    for (const auto& worker : list) sum += worker["load"].get<double>() + worker["load_tokens"].get<double>();
    return sum;
  }

  // Live leases are open upstream requests: none, once a test's clients have their answers or have gone. After each
  // test; those whose ends are not of that kind say so.
  void TearDown() override {
    if (gateway_ == nullptr || HasFatalFailure() || ends_with_requests_) return;
    EXPECT_TRUE(eventually([&] {
      return metric("smg_admission_inflight") + metric("smg_admission_queue_depth") +
                 metric("smg_worker_requests_active") ==
             0;
    })) << gateway_->metrics().render();
    for (const auto& worker : workers_) EXPECT_TRUE(eventually([&] { return worker->active() == 0; })) << worker->url();
  }
  // What must hold when everything has ended: every request that was sent to /generate has been counted once, nothing
  // is in flight, and no simulated worker is still at work.
  void expect_settled() {
    EXPECT_TRUE(eventually([&] { return metric("smg_router_requests_total") == sent_; }))
        << metric("smg_router_requests_total") << " requests were counted of " << sent_;
    EXPECT_TRUE(eventually([&] { return in_flight() == 0; })) << workers_json();
    for (const auto& worker : workers_) EXPECT_TRUE(eventually([&] { return worker->active() == 0; }));
    EXPECT_EQ(metric("smg_router_requests_total"), sent_);
  }

  sluice::testing::FakeClock clock_;
  const Clock* time_ = &clock_;  // health checks need the real one: they wait
  net::LoopGroup loops_{1};
  std::vector<std::unique_ptr<SimWorker>> workers_;
  std::unique_ptr<Gateway> gateway_;
  net::Url url_;
  double sent_ = 0;
  bool ends_with_requests_ = false;
};

}  // namespace sluice::gateway
