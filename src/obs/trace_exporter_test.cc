#include "obs/trace_exporter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <mutex>
#include <thread>
#include <vector>

#include "net/server.h"

namespace sluice::obs {
namespace {

using std::chrono::milliseconds;

// Receives traces over HTTP and answers as it is told; -1 = not at all, until it goes.
class Receiver {
 public:
  explicit Receiver(std::vector<int> statuses) : statuses_(std::move(statuses)) {
    port_ = server_.listen("127.0.0.1", 0).value();
  }

  std::string url() const { return fmt::format("http://127.0.0.1:{}", port_); }
  std::vector<std::string> bodies() const {
    std::lock_guard lock(mutex_);
    return bodies_;
  }

 private:
  net::Task<> handle(net::ServerExchange& exchange) {
    EXPECT_EQ(exchange.request().path(), "/v1/traces");
    EXPECT_EQ(exchange.request().headers.get("content-type"), "application/x-protobuf");
    auto body = co_await exchange.read_body(size_t{64} << 20);
    if (!body.ok()) co_return;
    int status = 200;
    {
      std::lock_guard lock(mutex_);
      if (bodies_.size() < statuses_.size()) status = statuses_[bodies_.size()];
      bodies_.push_back(std::move(body).value());
    }
    while (status < 0 && !exchange.client_gone()) co_await exchange.loop().sleep(milliseconds(1));
    net::Response response{status, {}, ""};
    co_await exchange.respond(std::move(response));
  }

  const std::vector<int> statuses_;
  mutable std::mutex mutex_;  // guards bodies_
  std::vector<std::string> bodies_;
  net::LoopGroup loops_{1};
  net::Server server_{loops_, net::ServerOptions{}, [this](net::ServerExchange& exchange) { return handle(exchange); }};
  uint16_t port_ = 0;
};

class TraceExporterTest : public testing::Test {
 protected:
  void start(const std::string& endpoint) {
    exporter_ = std::make_unique<TraceExporter>(
        parse_trace_endpoint(endpoint).value(), "tested", counters_,
        TraceExporter::Timing{
            .gathering = milliseconds(5), .first_pause = milliseconds(1), .farewell = milliseconds(50)});
  }
  static RequestRecord record(const std::string& id = "mine") {
    RequestRecord record;
    record.id = id;
    record.method = "POST";
    record.route = "/generate";
    record.trace.emplace();
    record.trace->trace_id = trace_id_of(1, 2);
    record.trace->span_id = span_id_of(3);
    return record;
  }
  // Bounded by count.
  template <class F>
  static bool eventually(F condition) {
    for (int i = 0; i < 4000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(milliseconds(5));
    }
    return false;
  }

  TraceExporter::Counters counters_;
  std::unique_ptr<TraceExporter> exporter_;
};

TEST_F(TraceExporterTest, SendsWhatCameTogetherInOneBatch) {
  Receiver receiver({});
  start(receiver.url());
  exporter_->add(record("first"));
  exporter_->add(record("second"));
  ASSERT_TRUE(eventually([&] { return counters_.exported.value() == 2; }));
  std::string all;
  for (const auto& body : receiver.bodies()) all += body;
  EXPECT_LE(receiver.bodies().size(), 2u);
  for (const char* part : {"first", "second", "tested", "POST /generate", "service.name"}) {
    EXPECT_THAT(all, testing::HasSubstr(part));
  }
}

TEST_F(TraceExporterTest, TriesAgainWhatMayPass) {
  Receiver receiver({503, 429, 200});
  start(receiver.url());
  exporter_->add(record());
  ASSERT_TRUE(eventually([&] { return counters_.exported.value() == 1; }));
  EXPECT_EQ(receiver.bodies().size(), 3u);
  EXPECT_EQ(counters_.failed.value(), 0);
}

TEST_F(TraceExporterTest, LetsGoOfWhatIsRefused) {
  Receiver receiver({400});
  start(receiver.url());
  exporter_->add(record());
  ASSERT_TRUE(eventually([&] { return counters_.failed.value() == 1; }));
  EXPECT_EQ(receiver.bodies().size(), 1u);
  exporter_->add(record());
  EXPECT_TRUE(eventually([&] { return counters_.exported.value() == 1; }));
}

TEST_F(TraceExporterTest, LetsGoOfWhatNobodyTakes) {
  std::string url;
  {
    const Receiver gone({});
    url = gone.url();
  }
  for (const std::string& endpoint : {url, url.substr(std::string("http://").size())}) {
    start(endpoint);
    exporter_->add(record());
    EXPECT_TRUE(eventually([&] { return counters_.failed.value() > 0; })) << endpoint;
    counters_ = {};
  }
}

TEST_F(TraceExporterTest, AReceiverThatHangsCostsTracesAndHoldsNobodyUp) {
  Receiver receiver({-1});
  start(receiver.url());
  exporter_->add(record());
  ASSERT_TRUE(eventually([&] { return receiver.bodies().size() == 1; }));
  for (size_t i = 0; i < TraceExporter::kMostWaiting + 10; ++i) exporter_->add(record());
  EXPECT_EQ(counters_.queue_full.value(), 10);
  exporter_.reset();  // ends
  EXPECT_EQ(counters_.exported.value() + counters_.failed.value(), TraceExporter::kMostWaiting + 1);
  EXPECT_GE(counters_.failed.value(), 1);
}

TEST_F(TraceExporterTest, IsBoundedInSpansWhereRequestsHaveMany) {
  constexpr size_t kEach = 195, kFit = TraceExporter::kMostSpans / kEach;
  Receiver receiver({});
  exporter_ = std::make_unique<TraceExporter>(
      parse_trace_endpoint(receiver.url()).value(), "tested", counters_,
      TraceExporter::Timing{.gathering = std::chrono::hours(1), .farewell = std::chrono::minutes(1)});
  std::vector<Span> spans(kEach);
  for (Span& span : spans) span.name = "<a stage>";
  // Fewer than half of what may wait, so that nothing is taken before the end.
  const auto add = [&](size_t requests) {
    for (size_t i = 0; i < requests; ++i) exporter_->add(spans);
  };
  add(kFit / 2);
  exporter_.reset();
  EXPECT_EQ(counters_.exported.value(), kFit / 2);
  size_t delivered = 0;
  for (const auto& body : receiver.bodies()) {
    size_t in_one = 0;
    for (size_t at = body.find("<a stage>"); at != std::string::npos; at = body.find("<a stage>", at + 1)) ++in_one;
    EXPECT_LE(in_one, TraceExporter::kBatchSpans);
    delivered += in_one;
  }
  EXPECT_EQ(delivered, kFit / 2 * kEach);

  // While a delivery goes on, so many wait and no more.
  Receiver hangs({-1});
  counters_ = {};
  start(hangs.url());
  add(1);
  ASSERT_TRUE(eventually([&] { return hangs.bodies().size() == 1; }));
  add(kFit + 10);
  EXPECT_EQ(counters_.queue_full.value(), 10);
}

TEST_F(TraceExporterTest, DeliversWhatWaitsAtItsEnd) {
  Receiver receiver({});
  exporter_ = std::make_unique<TraceExporter>(
      parse_trace_endpoint(receiver.url()).value(), "tested", counters_,
      TraceExporter::Timing{.gathering = std::chrono::hours(1), .farewell = std::chrono::minutes(1)});
  for (int i = 0; i < 300; ++i) exporter_->add(record());
  exporter_.reset();
  EXPECT_EQ(counters_.exported.value(), 300);
}

TEST_F(TraceExporterTest, WhatIsNoGrpcServerIsSaidSo) {
  Receiver receiver({});  // of HTTP/1.1
  start(receiver.url().substr(std::string("http://").size()));
  exporter_->add(record());
  EXPECT_TRUE(eventually([&] { return counters_.failed.value() == 1; }));
  EXPECT_TRUE(receiver.bodies().empty());
}

TEST(TraceEndpointTest, IsAnAddressForGrpcAndAUrlForHttp) {
  const auto grpc = parse_trace_endpoint("collector:4317").value();
  EXPECT_TRUE(grpc.is_grpc);
  EXPECT_EQ(grpc.url.host, "collector");
  EXPECT_EQ(grpc.url.port, 4317);
  EXPECT_TRUE(parse_trace_endpoint("[::1]:4317")->is_grpc);
  const auto http = parse_trace_endpoint("http://collector:4318").value();
  EXPECT_FALSE(http.is_grpc);
  EXPECT_EQ(http.url.path, "/v1/traces");
  EXPECT_EQ(parse_trace_endpoint("http://collector/otlp/traces")->url.path, "/otlp/traces");
  const auto grpcs = parse_trace_endpoint("grpcs://[::1]:4317").value();
  EXPECT_TRUE(grpcs.is_grpc);
  EXPECT_TRUE(grpcs.url.tls);
  EXPECT_EQ(grpcs.url.host, "::1");
  EXPECT_FALSE(grpc.url.tls);
  for (const char* bad : {"", "collector", "[::1]", "collector:4317/path", "collector:0", "ftp://collector", "grpcs://",
                          "grpcs://collector", "grpcs://collector:4317/path", "grpcs://http://collector:4317"}) {
    EXPECT_FALSE(parse_trace_endpoint(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace sluice::obs
