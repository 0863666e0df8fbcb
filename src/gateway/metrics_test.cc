// The metrics, over real sockets: each group of families is driven to values that can be told in advance, and
// docs/metrics.md says neither more nor less than what the groups together have shown.
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "gateway/gateway_fixture.h"
#include "gateway/kv_events/kv_engine_fixture.h"
#include "gateway/metric_families.h"
#include "gateway/scripted_worker_fixture.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;

// Name, type and labels of a family, with what an exposition or the page says of it.
struct Shown {
  std::string type;
  std::set<std::string> labels;
  std::set<double> bounds{};  // of a histogram, without +Inf
  bool has_moved = false;
};
using ShownFamilies = std::map<std::string, Shown>;

std::vector<std::string> split(const std::string& text, const std::string& by) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(by, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + by.size();
  }
  return parts;
}

// The numbers that follow the word in the text.
std::set<double> numbers_after(const std::string& text, const std::string& word) {
  std::set<double> numbers;
  const size_t at = text.find(word);
  if (at == std::string::npos) return numbers;
  std::istringstream words(text.substr(at + word.size()));
  for (double number; words >> number;) numbers.insert(number);
  return numbers;
}

// The rows of the page that are marked "ours". A histogram has the bounds of its row, or those of the text above all
// rows.
ShownFamilies read_page() {
  std::ifstream file(SLUICE_METRICS_PAGE);
  ShownFamilies rows;
  std::string text;
  std::set<double> of_durations;
  for (std::string line; std::getline(file, line);) {
    if (of_durations.empty() && line.starts_with("## ")) of_durations = numbers_after(text, "have the bounds ");
    text += line + "\n";
    const auto cells = split(line, "|");
    if (cells.size() != 7 || cells[4] != " ours ") continue;
    const std::string name = split(cells[1], "`").at(1);
    Shown& row = rows[name];
    EXPECT_EQ(row.type, "") << name << " stands twice";
    row.type = cells[2].substr(1, cells[2].size() - 2);
    if (row.type == "histogram") {
      row.bounds = numbers_after(cells[5], "bounds ");
      if (row.bounds.empty()) row.bounds = of_durations;
    }
    for (const std::string& label : split(cells[3], ",")) {
      const size_t begin = label.find_first_not_of(' ');
      if (begin != std::string::npos) row.labels.insert(label.substr(begin, label.find_last_not_of(' ') + 1 - begin));
    }
  }
  return rows;
}

// Adds what an exposition shows.
void read_exposition(const std::string& text, ShownFamilies& families) {
  Shown* family = nullptr;
  for (const std::string& line : split(text, "\n")) {
    if (line.starts_with("# TYPE ")) {
      const auto words = split(line, " ");
      family = &families[words.at(2)];
      family->type = words.at(3);
    }
    if (line.empty() || line.starts_with("#")) continue;
    ASSERT_NE(family, nullptr) << line;
    if (std::stod(line.substr(line.rfind(' ') + 1)) != 0) family->has_moved = true;
    const size_t open = line.find('{');
    if (open == std::string::npos) continue;
    // No value of a label has a quote in it.
    const auto parts = split(line.substr(open + 1, line.rfind('}') - open - 1), "\"");
    for (size_t i = 0; i + 1 < parts.size(); i += 2) {
      std::string label = parts[i].substr(parts[i].find_first_not_of(','));
      label.pop_back();  // =
      if (family->type != "histogram" || label != "le") {
        family->labels.insert(label);
      } else if (parts[i + 1] != "+Inf") {
        family->bounds.insert(std::stod(parts[i + 1]));
      }
    }
  }
}

class MetricsTest : public GatewayFixture {
 protected:
  // As metric(), and what it sees counts as shown.
  double value(const std::string& family, const std::vector<std::string>& labels = {}) {
    read_exposition(gateway_->metrics().render(), shown_);
    return metric(family, labels);
  }
  bool becomes(double expected, const std::string& family, const std::vector<std::string>& labels = {}) {
    return eventually([&] { return value(family, labels) == expected; });
  }
  // For what the control thread does at some second, counted from when it looked at the clock.
  bool becomes_as_time_passes(double expected, const std::string& family, const std::vector<std::string>& labels) {
    return eventually([&] {
      clock_.advance(1s);
      return value(family, labels) == expected;
    });
  }
  // Everything is as at the beginning of a test.
  void reset() {
    gateway_.reset();
    workers_.clear();
    sent_ = 0;
  }
  std::string answer_from(const std::string& text, net::Headers headers = {}) {
    const auto answer = call("POST", "/generate", body_of(text), std::move(headers));
    if (!answer.ok()) return answer.error().message;
    return answer->status == 200 ? std::string(answer->headers.get("x-smg-routed-worker-id").value_or(""))
                                 : std::to_string(answer->status);
  }
  // One that stays with its worker until it leaves.
  std::unique_ptr<RawClient> stalled(const std::string& text, const std::string& header = "") {
    const double before = metric("smg_worker_connections_active");
    auto client = std::make_unique<RawClient>(gateway_->port());
    const std::string body = body_of(text);
    client->send(
        fmt::format("POST /generate HTTP/1.1\r\nHost: x\r\n{}Content-Length: {}\r\n\r\n{}", header, body.size(), body));
    EXPECT_TRUE(becomes(before + 1, "smg_worker_connections_active"));
    return client;
  }

  void http();
  void generation();
  void endpoints_and_errors();
  void admission();
  void workers();
  void connections_and_aborts();
  void choices();
  void cache_aware();
  void manual();
  void hashing();
  void breaker();
  void readmission();
  void suspects();
  void retries();
  void caches();
  void kv_events();
  void engines();
  void discovery();
  void log_and_traces();
  void every_group();

  ShownFamilies shown_;
};

void MetricsTest::http() {
  worker().set_fault({.kind = Kind::kStall});
  start();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(call("GET", "/health")->status, 200);
  EXPECT_EQ(call("GET", "/nowhere")->status, 404);
  EXPECT_EQ(call("BREW", "/health")->status, 405);
  EXPECT_TRUE(becomes(3, "smg_http_responses_total", {"path=\"/health\"", "status_code=\"200\"", "error_code=\"\""}));
  EXPECT_TRUE(becomes(1, "smg_http_responses_total", {"path=\"other\"", "404", "unknown_url"}));
  EXPECT_EQ(value("smg_http_requests_total", {"method=\"GET\"", "path=\"/health\""}), 3);
  EXPECT_EQ(value("smg_http_requests_total", {"method=\"GET\"", "path=\"other\""}), 1);
  EXPECT_EQ(value("smg_http_requests_total", {"method=\"other\"", "path=\"/health\""}), 1);
  EXPECT_TRUE(becomes(3, "smg_http_request_duration_seconds_count", {"GET", "/health"}));

  const auto old = stalled("x");
  const auto aged = [&](const char* gt, const char* le) {
    return value("smg_http_inflight_request_age_count", {fmt::format("gt=\"{}\"", gt), fmt::format("le=\"{}\"", le)});
  };
  EXPECT_EQ(aged("0", "30"), 1);
  clock_.advance(31s);
  const auto young = stalled("x");
  EXPECT_EQ(value("smg_http_connections_active"), 2);
  EXPECT_EQ(aged("0", "30"), 1);
  EXPECT_EQ(aged("30", "60"), 1);
  clock_.advance(86380s);
  EXPECT_EQ(aged("28800", "86400"), 1);
  EXPECT_EQ(aged("86400", "+Inf"), 1);
  EXPECT_EQ(value("smg_http_inflight_request_age_count"), 2);
  old->leave();
  young->leave();
  EXPECT_TRUE(becomes(0, "smg_http_inflight_request_age_count"));
  EXPECT_TRUE(becomes(0, "smg_http_connections_active"));
}

void MetricsTest::generation() {
  SimWorker& one = worker({.model = "m", .manual = true});
  start();
  ASSERT_TRUE(becomes(1, "smg_worker_pool_size", {"model=\"m\""}));
  RawClient client(gateway_->port());
  client.post("/generate", body_of("a b c", /*stream=*/true, /*tokens=*/3));
  ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
  clock_.advance(2s);
  const auto wait_for_token = [&](int number) {
    const std::string text = fmt::format("\"completion_tokens\":{}", number);
    for (int i = 0; i < 100 && one.step() == 0;) ++i;
    client.read_until(text);
  };
  wait_for_token(1);
  clock_.advance(500ms);
  wait_for_token(2);
  clock_.advance(1500ms);
  wait_for_token(3);
  client.read_until("[DONE]");

  const std::vector<std::string> generate{"router_type=\"http\"", "backend_type=\"regular\"", "model=\"m\"",
                                          "endpoint=\"generate\""};
  ASSERT_TRUE(becomes(1, "smg_router_generation_duration_seconds_count", generate));
  EXPECT_EQ(value("smg_router_generation_duration_seconds_sum", generate), 4);
  EXPECT_EQ(value("smg_router_ttft_seconds_sum", generate), 2);
  EXPECT_EQ(value("smg_router_request_duration_seconds_sum", generate), 2);
  EXPECT_EQ(value("smg_router_tpot_seconds_count", generate), 1);
  EXPECT_EQ(value("smg_router_tpot_seconds_sum", generate), 1) << "2 s for the two tokens after the first";
  EXPECT_EQ(value("smg_router_inter_chunk_seconds_sum", generate), 2);
  // What ends the stream may come by itself, in no time.
  const double all = value("smg_router_inter_chunk_seconds_count", generate);
  EXPECT_EQ(all - value("smg_router_inter_chunk_seconds_bucket", {"le=\"0.25\""}), 2);
  EXPECT_EQ(all - value("smg_router_inter_chunk_seconds_bucket", {"le=\"1\""}), 1);
  EXPECT_TRUE(becomes(1, "smg_http_request_duration_seconds_count", {"/generate"}));
  EXPECT_EQ(value("smg_http_request_duration_seconds_sum", {"/generate"}), 2) << "until the head of the answer";
  EXPECT_EQ(value("smg_router_tokens_total", {"model=\"m\"", "token_type=\"input\""}), 3);
  EXPECT_EQ(value("smg_router_tokens_total", {"model=\"m\"", "token_type=\"output\""}), 3);
  EXPECT_EQ(value("smg_router_requests_total",
                  {"model=\"m\"", "endpoint=\"generate\"", "streaming=\"true\"", "connection_mode=\"http\""}),
            1);
}

void MetricsTest::endpoints_and_errors() {
  ScriptedWorker scripted(loops_, [](const ScriptedWorker::Received& received) {
    return net::Response::text(received.target == "/v1/classify" ? 400 : 200, "{}");
  });
  start({"--disable-retries"});
  gateway_->worker_started(scripted.url());
  const std::map<std::string, std::string> endpoints{
      {"/generate", "generate"},        {"/v1/chat/completions", "chat"}, {"/v1/completions", "completions"},
      {"/v1/embeddings", "embeddings"}, {"/v1/responses", "responses"},   {"/v1/messages", "messages"},
      {"/v1/classify", "classify"},     {"/v1/score", "other"},
  };
  for (const auto& [path, endpoint] : endpoints) {
    EXPECT_EQ(call("POST", path, "{}")->status, path == "/v1/classify" ? 400 : 200);
    EXPECT_TRUE(becomes(1, "smg_router_requests_total", {"endpoint=\"" + endpoint + "\"", "streaming=\"false\""}))
        << path;
  }
  EXPECT_EQ(value("smg_router_request_errors_total"), 1);
  EXPECT_EQ(value("smg_router_request_errors_total", {"classify", "error_type=\"validation_error\""}), 1);
  EXPECT_EQ(value("smg_router_upstream_responses_total", {"status_code=\"200\"", "router_type=\"http\""}), 7);
  EXPECT_EQ(value("smg_router_upstream_responses_total", {"status_code=\"400\""}), 1);
  gateway_->worker_ended(scripted.url());
  EXPECT_EQ(call("POST", "/generate", "{}")->status, 503);
  EXPECT_TRUE(becomes(1, "smg_router_request_errors_total", {"endpoint=\"generate\"", "backend_error"})) << "503";
  gateway_.reset();  // before the worker
}

void MetricsTest::admission() {
  SimWorker& one = worker();
  one.set_fault({.kind = Kind::kStall});
  start({"--max-concurrent-requests", "1", "--queue-size", "1"});
  const auto first = stalled("x");
  RawClient second(gateway_->port());
  second.post("/generate", body_of("x"));
  ASSERT_TRUE(becomes(1, "smg_admission_queue_depth"));
  EXPECT_EQ(answer_from("x"), "429");
  EXPECT_EQ(value("smg_admission_inflight"), 1);
  EXPECT_EQ(value("smg_http_rate_limit_total", {"allowed"}), 1);
  EXPECT_EQ(value("smg_http_rate_limit_total", {"rejected"}), 1);
  EXPECT_EQ(value("smg_admission_queue_wait_seconds_count"), 0);
  clock_.advance(2s);
  first->leave();
  EXPECT_TRUE(becomes(2, "smg_http_rate_limit_total", {"allowed"}));
  EXPECT_EQ(value("smg_admission_queue_wait_seconds_count"), 1);
  EXPECT_EQ(value("smg_admission_queue_wait_seconds_sum"), 2);
  EXPECT_EQ(value("smg_admission_queue_depth"), 0);
  second.leave();
  EXPECT_TRUE(becomes(0, "smg_admission_inflight"));
}

void MetricsTest::workers() {
  SimWorker& one = worker({.model = "m1"});
  SimWorker& two = worker({.model = "m2"});
  start({"--policy", "round_robin", "--disable-retries"});
  EXPECT_TRUE(becomes(1, "smg_worker_pool_size", {"worker_type=\"regular\"", "connection_mode=\"http\"", "m1"}));
  EXPECT_TRUE(becomes(1, "smg_worker_pool_size", {"m2"}));
  EXPECT_EQ(value("smg_worker_health"), 2);
  for (int i = 0; i < 4; ++i) ASSERT_EQ(generate()->status, 200);
  EXPECT_EQ(value("smg_worker_requests_total", {one.url(), "model=\"m1\""}), 2);
  EXPECT_EQ(value("smg_worker_requests_total", {two.url(), "model=\"m2\""}), 2);
  EXPECT_EQ(value("smg_worker_selection_total", {"model=\"m1\"", "policy=\"round_robin\"", "regular", "http"}), 2);
  EXPECT_EQ(value("smg_worker_selections_total", {one.url(), "round_robin", "reason=\"next_in_turn\""}), 2);

  one.set_fault({.kind = Kind::kStatus, .status = 500});
  two.set_fault({.kind = Kind::kStatus, .status = 504});
  for (int i = 0; i < 4; ++i) EXPECT_GE(generate()->status, 500);
  EXPECT_EQ(value("smg_worker_errors_total", {"regular", "http", "error_type=\"backend_error\"", one.url()}), 2);
  EXPECT_EQ(value("smg_worker_errors_total", {"regular", "http", "error_type=\"timeout\"", two.url()}), 2);
  EXPECT_EQ(value("smg_worker_errors_total"), 4);

  EXPECT_EQ(value("smg_worker_restarts_total"), 0);
  gateway_->worker_started(one.url());
  EXPECT_EQ(value("smg_worker_restarts_total", {one.url()}), 1);
  gateway_->worker_ended(two.url());
  EXPECT_TRUE(becomes(1, "smg_worker_health"));
  EXPECT_EQ(value("smg_worker_health", {one.url()}), 1);

  const double passed = value("smg_worker_health_checks_total", {"success"});
  SimWorker& well = worker();
  SimWorker& sick = worker();
  sick.set_health({.status = 503});
  for (const auto* added : {&well, &sick}) {
    EXPECT_EQ(call("POST", "/workers", Json{{"url", added->url()}}.dump())->status, 202);
  }
  EXPECT_TRUE(becomes(passed + 1, "smg_worker_health_checks_total", {"worker_type=\"regular\"", "success"}));
  EXPECT_TRUE(becomes(1, "smg_worker_health_checks_total", {"worker_type=\"regular\"", "error"}))
      << "the clock stands still, so there is no second one";
}

void MetricsTest::connections_and_aborts() {
  SimWorker& one = worker();
  start({"--upstream-pool-idle-timeout-secs", "0", "--runtime-worker-threads", "1"});
  ASSERT_EQ(generate()->status, 200);
  EXPECT_TRUE(becomes(1, "smg_upstream_connections", {one.url(), "state=\"idle\""}));
  one.set_fault({.kind = Kind::kStall});
  const auto client = stalled("x");
  EXPECT_TRUE(becomes(1, "smg_upstream_connections", {one.url(), "state=\"busy\""}));
  EXPECT_EQ(value("smg_upstream_connections", {"idle"}), 0) << "it was used again";
  EXPECT_EQ(value("smg_worker_connections_active", {"worker_type=\"regular\"", "connection_mode=\"http\""}), 1);
  EXPECT_EQ(value("smg_worker_requests_active", {one.url()}), 1);
  client->leave();
  EXPECT_TRUE(becomes(0, "smg_upstream_connections"));
  EXPECT_TRUE(becomes(0, "smg_worker_requests_active"));

  one.set_fault({.kind = Kind::kDie, .chunks = 2});
  EXPECT_EQ(generate("x", /*stream=*/true)->status, 200);
  EXPECT_TRUE(becomes(1, "smg_stream_aborts_total", {one.url(), "side=\"worker\""}));
  one.set_fault({.kind = Kind::kMute, .chunks = 2});
  RawClient reader(gateway_->port());
  reader.post("/generate", body_of("x", /*stream=*/true));
  reader.read_until("\"completion_tokens\":2");
  reader.leave();
  EXPECT_TRUE(becomes(1, "smg_stream_aborts_total", {one.url(), "side=\"client\""}));
  EXPECT_EQ(value("smg_stream_aborts_total"), 2);
}

void MetricsTest::choices() {
  worker();
  start({"--policy", "random", "--routing-key-override"});
  for (int i = 0; i < 3; ++i) ASSERT_EQ(generate()->status, 200);
  EXPECT_EQ(value("smg_route_decision_seconds_count", {"policy=\"random\""}), 3);
  EXPECT_EQ(value("smg_route_decision_seconds_sum"), 0) << "the clock stands still";
  EXPECT_EQ(value("smg_route_decision_seconds_bucket", {"le=\"1e-07\""}), 3);
  EXPECT_EQ(value("smg_route_decision_seconds_bucket", {"le=\"0.01\""}), 3);
  EXPECT_EQ(value("smg_worker_selection_total", {"policy=\"random\""}), 3);
  EXPECT_EQ(value("smg_manual_policy_branch_total"), 0) << "no request had a key";
  answer_from("x", {{"X-SMG-Routing-Key", "a"}});
  EXPECT_EQ(value("smg_manual_policy_branch_total", {"vacant"}), 1);
  EXPECT_EQ(value("smg_worker_selections_total", {"policy=\"random\"", "key_assigned"}), 1);
}

void MetricsTest::cache_aware() {
  worker();
  worker();
  start({"--policy", "cache_aware", "--balance-abs-threshold", "1"});
  const auto branch = [&](const char* name) {
    return value("smg_cache_aware_policy_branch_total", {fmt::format("branch=\"{}\"", name)});
  };
  const std::string text(400, 'a');
  const double nodes = value("smg_prefix_index_nodes");
  const std::string holder = answer_from(text);
  EXPECT_EQ(branch("miss"), 1);
  EXPECT_EQ(value("smg_cache_aware_match_ratio_bucket", {"le=\"0\""}), 1);
  ASSERT_TRUE(eventually([&] { return value("smg_prefix_index_nodes") > nodes; }));
  EXPECT_EQ(answer_from(text), holder);
  EXPECT_EQ(branch("tree_match"), 1);
  EXPECT_EQ(answer_from(text + text), holder);
  EXPECT_EQ(branch("tree_match"), 2);
  EXPECT_EQ(value("smg_cache_aware_match_ratio_count"), 3);
  EXPECT_EQ(value("smg_cache_aware_match_ratio_sum"), 1.5);
  EXPECT_EQ(value("smg_worker_predicted_cached_tokens_total", {holder}), 200) << "100 of each, at four bytes";
  EXPECT_EQ(value("sglang_cache_hit_rate", {"source=\"predicted\""}), 800. / 1600);

  gateway_->worker_ended(holder);
  EXPECT_NE(answer_from(text), holder);
  EXPECT_EQ(branch("fallback"), 1);
  for (auto& each : workers_) each->set_fault({.kind = Kind::kStall});
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 2; ++i) clients.push_back(stalled(text));
  gateway_->worker_started(holder);
  EXPECT_EQ(branch("imbalanced"), 0);
  clients.push_back(stalled(text));
  EXPECT_TRUE(eventually([&] { return branch("imbalanced") == 1; })) << "two against none";
  EXPECT_EQ(value("smg_worker_requests_active", {holder}), 1);
  for (auto& client : clients) client->leave();
  EXPECT_TRUE(becomes(0, "smg_worker_requests_active"));
}

void MetricsTest::manual() {
  SimWorker& one = worker();
  SimWorker& two = worker();
  start({"--policy", "manual"});
  const auto branch = [&](const char* name) {
    return value("smg_manual_policy_branch_total", {fmt::format("branch=\"{}\"", name)});
  };
  const net::Headers key{{"X-SMG-Routing-Key", "a"}};
  const std::string first = answer_from("x", key);
  EXPECT_EQ(branch("vacant"), 1);
  for (int i = 0; i < 2; ++i) EXPECT_EQ(answer_from("x", key), first);
  EXPECT_EQ(branch("occupied_hit"), 2);
  EXPECT_EQ(value("smg_worker_routing_keys_active", {first}), 1);
  gateway_->worker_ended(first);
  const std::string second = answer_from("x", key);
  EXPECT_EQ(second, first == one.url() ? two.url() : one.url());
  EXPECT_EQ(branch("occupied_miss"), 1);
  answer_from("x");
  EXPECT_EQ(branch("no_routing_id"), 1);
  EXPECT_EQ(value("smg_manual_policy_branch_total"), 5);
  EXPECT_EQ(value("smg_manual_policy_cache_entries"), 1);
  EXPECT_EQ(value("smg_worker_routing_keys_active", {first}), 0);
  EXPECT_EQ(value("smg_worker_routing_keys_active", {second}), 1);
}

void MetricsTest::hashing() {
  const std::vector<std::string> bound{"--prefix-hash-balance-abs-threshold", "0", "--disable-retries", "--policy"};
  const auto with = [&](const char* policy) {
    std::vector<std::string> flags = bound;
    flags.emplace_back(policy);
    return flags;
  };
  // Two that stay give their owner more than its share, and the third goes to the next one.
  const auto spill = [&](const std::string& text, const std::string& header) {
    for (auto& each : workers_) each->set_fault({.kind = Kind::kStall});
    std::vector<std::unique_ptr<RawClient>> clients;
    for (int i = 0; i < 3; ++i) clients.push_back(stalled(text, header));
    for (auto& client : clients) client->leave();
  };
  worker();
  worker();
  start(with("consistent_hashing"));
  const auto by_key = [&](const char* name) {
    return value("smg_consistent_hashing_policy_branch_total", {fmt::format("branch=\"{}\"", name)});
  };
  answer_from("x", {{"X-SMG-Routing-Key", "a"}});
  answer_from("x", {{"X-Forwarded-For", "b"}});
  EXPECT_EQ(by_key("routing_key_hit"), 2);
  EXPECT_EQ(answer_from("x", {{"X-SMG-Target-Worker", "1"}}), workers_[1]->url());
  EXPECT_EQ(by_key("target_worker_hit"), 1);
  EXPECT_EQ(answer_from("x", {{"X-SMG-Target-Worker", "9"}}), "503");
  EXPECT_EQ(by_key("target_worker_miss"), 1);
  answer_from("x");
  EXPECT_EQ(by_key("random_fallback"), 1);
  spill("x", "X-SMG-Routing-Key: a\r\n");
  EXPECT_EQ(by_key("load_balance_walk"), 1);
  EXPECT_EQ(value("smg_consistent_hashing_policy_branch_total"), 8);

  reset();
  worker();
  worker();
  start(with("prefix_hash"));
  const auto by_text = [&](const char* name) {
    return value("smg_prefix_hash_policy_branch_total", {fmt::format("branch=\"{}\"", name)});
  };
  answer_from("some text");
  EXPECT_EQ(by_text("ring_hit"), 1);
  answer_from("");
  EXPECT_EQ(by_text("no_routing_key"), 1);
  spill("some text", "");
  EXPECT_EQ(by_text("load_balance_walk"), 1);
  EXPECT_EQ(value("smg_prefix_hash_policy_branch_total"), 5);
}

void MetricsTest::breaker() {
  SimWorker& one = worker();
  start({"--disable-retries", "--disable-health-check", "--cb-failure-threshold", "3", "--cb-success-threshold", "2"});
  one.set_fault({.kind = Kind::kStatus, .status = 500, .times = 3});
  for (int i = 0; i < 2; ++i) EXPECT_EQ(generate()->status, 500);
  EXPECT_EQ(value("smg_worker_cb_consecutive_failures", {one.url()}), 2);
  EXPECT_EQ(value("smg_worker_cb_state", {one.url()}), 0);
  clock_.advance(121s);
  EXPECT_EQ(value("smg_worker_cb_consecutive_failures"), 0) << "the window has left them";
  one.set_fault({.kind = Kind::kStatus, .status = 500, .times = 3});
  for (int i = 0; i < 3; ++i) EXPECT_EQ(generate()->status, 500);
  EXPECT_EQ(value("smg_worker_cb_state", {one.url()}), 1);
  EXPECT_EQ(value("smg_worker_cb_consecutive_failures"), 0) << "they have done their work";
  EXPECT_EQ(generate()->status, 503);
  clock_.advance(60s);
  ASSERT_EQ(generate()->status, 200);
  EXPECT_EQ(value("smg_worker_cb_state", {one.url()}), 2);
  EXPECT_EQ(value("smg_worker_cb_consecutive_successes", {one.url()}), 1);
  ASSERT_EQ(generate()->status, 200);
  EXPECT_EQ(value("smg_worker_cb_state"), 0);
  EXPECT_EQ(value("smg_worker_cb_consecutive_successes"), 0);
  EXPECT_EQ(value("smg_worker_cb_outcomes_total", {one.url(), "failure"}), 5);
  EXPECT_EQ(value("smg_worker_cb_outcomes_total", {one.url(), "success"}), 2);
  EXPECT_EQ(value("smg_worker_cb_transitions_total", {"from=\"closed\"", "to=\"open\""}), 1);
  EXPECT_EQ(value("smg_worker_cb_transitions_total", {"from=\"open\"", "to=\"half_open\""}), 1);
  EXPECT_EQ(value("smg_worker_cb_transitions_total", {"from=\"half_open\"", "to=\"closed\""}), 1);
}

void MetricsTest::readmission() {
  SimWorker& one = worker();
  start({"--disable-retries", "--cb-failure-threshold", "1"});
  ASSERT_TRUE(becomes(1, "smg_worker_health_checks_total", {"success"}));
  one.set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  one.set_health({.status = 503});
  EXPECT_EQ(generate()->status, 500);
  EXPECT_EQ(value("smg_worker_cb_state"), 1);
  // The fault has asked for a probe a second later.
  ASSERT_TRUE(becomes_as_time_passes(1, "smg_worker_health_checks_total", {"error"}));
  EXPECT_EQ(value("smg_worker_cb_health_readmissions_total"), 0);
  one.set_health({});
  EXPECT_TRUE(becomes_as_time_passes(1, "smg_worker_cb_health_readmissions_total", {one.url()}));
  EXPECT_EQ(value("smg_worker_cb_state"), 2);
  EXPECT_EQ(value("smg_worker_cb_consecutive_successes"), 1) << "the check that passed";
}

void MetricsTest::suspects() {
  SimWorker& one = worker({.manual = true});
  start();
  RawClient client(gateway_->port());
  client.post("/generate", body_of("x", /*stream=*/true, /*tokens=*/1));
  ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
  clock_.advance(100ms);
  ASSERT_TRUE(eventually([&] { return one.step() > 0; }));
  client.read_until("[DONE]");
  EXPECT_EQ(value("smg_worker_suspect", {one.url()}), 0);
  EXPECT_EQ(value("smg_worker_suspicions_total"), 0);
  // What decoding takes has not been seen, so that of a whole answer nothing would be expected.
  RawClient silent(gateway_->port());
  silent.post("/generate", body_of("x", /*stream=*/true));
  ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
  one.set_health({.status = 503});  // or its probe would clear it at once
  clock_.advance(5s);
  EXPECT_TRUE(becomes(1, "smg_worker_suspect", {one.url()}));
  EXPECT_EQ(value("smg_worker_suspicions_total", {one.url()}), 1);
  silent.leave();
}

void MetricsTest::retries() {
  SimWorker& one = worker();
  start({"--retry-initial-backoff-ms", "20", "--retry-jitter-factor", "0", "--retry-backoff-multiplier", "2",
         "--retry-max-retries", "3"});
  one.set_fault({.kind = Kind::kStatus, .status = 500, .times = 2});
  ASSERT_EQ(generate()->status, 200);
  EXPECT_EQ(value("smg_worker_retries_total", {"worker_type=\"regular\"", "endpoint=\"generate\""}), 2);
  EXPECT_EQ(value("smg_worker_retries_exhausted_total"), 0);
  EXPECT_EQ(value("smg_worker_retry_backoff_seconds_sum", {"attempt=\"1\""}), 0.02);
  EXPECT_EQ(value("smg_worker_retry_backoff_seconds_sum", {"attempt=\"2\""}), 0.04);
  EXPECT_EQ(value("smg_worker_retry_backoff_seconds_bucket", {"attempt=\"1\"", "le=\"0.01\""}), 0);
  EXPECT_EQ(value("smg_worker_retry_backoff_seconds_bucket", {"attempt=\"1\"", "le=\"0.025\""}), 1);
  one.set_fault({.kind = Kind::kStatus, .status = 500});
  EXPECT_EQ(generate()->status, 500);
  EXPECT_EQ(value("smg_worker_retries_total"), 4);
  EXPECT_EQ(value("smg_worker_retries_exhausted_total", {"worker_type=\"regular\"", "endpoint=\"generate\""}), 1);
  EXPECT_EQ(value("smg_worker_retry_backoff_seconds_count"), 4);
  // The clock stands still: the budget has ten retries in all, and six are left. A busy worker's breaker stays closed.
  EXPECT_EQ(value("smg_worker_retries_refused_total"), 0);
  one.set_fault({.kind = Kind::kStatus, .status = 429});
  for (int i = 0; i < 4; ++i) EXPECT_EQ(generate()->status, 429);
  EXPECT_EQ(value("smg_worker_retries_total"), 10);
  EXPECT_EQ(value("smg_worker_retries_refused_total", {"worker_type=\"regular\"", "endpoint=\"generate\""}), 1);
}

void MetricsTest::caches() {
  SimWorker& one = worker({.canned = true, .canned_prompt_tokens = 16, .canned_cached_tokens = 4});
  start({"--eviction-interval-secs", "1"});
  EXPECT_EQ(value("smg_worker_cache_reported", {one.url()}), 0);
  EXPECT_EQ(value("smg_worker_cache_belief", {one.url()}), 1) << "nothing speaks against it";
  const double nodes = value("smg_prefix_index_nodes");
  for (int i = 0; i < 3; ++i) ASSERT_EQ(generate("some text")->status, 200);
  EXPECT_EQ(value("smg_worker_prompt_tokens_total", {one.url()}), 48);
  EXPECT_EQ(value("smg_worker_cached_tokens_total", {one.url()}), 12);
  EXPECT_EQ(value("smg_worker_cache_reported", {one.url()}), 1);
  EXPECT_EQ(value("sglang_cache_hit_rate", {"source=\"reported\""}), 0.25);
  ASSERT_TRUE(becomes(nodes + 1, "smg_prefix_index_nodes"));
  EXPECT_GT(value("smg_prefix_index_bytes"), 0);
  EXPECT_EQ(value("smg_prefix_index_budget_bytes"), 256 << 20);
  EXPECT_EQ(value("smg_prefix_index_evictions_total"), 0);
  ASSERT_EQ(call("POST", "/flush_cache")->status, 200);
  EXPECT_TRUE(becomes(1, "smg_prefix_index_evictions_total", {"reason=\"worker\""})) << "the one claim";
  clock_.advance(61s);
  EXPECT_EQ(value("sglang_cache_hit_rate"), 0) << "without data there is no series";
}

void MetricsTest::kv_events() {
  time_ = &real_clock();  // lost events are asked for after a while
  const std::string template_file = KvEngine::file_with(KvEngine::kTemplate);
  KvEngine engine(loops_, {});
  start({"--tokenizer-path", KvEngine::kTokenizer, "--chat-template", template_file});
  gateway_->worker_started(engine.url());
  EXPECT_TRUE(becomes(1, "smg_worker_kv_mode", {engine.url(), "mode=\"events\""}));
  EXPECT_EQ(value("smg_kv_probes_total", {engine.url(), "passed"}), 1);
  EXPECT_TRUE(becomes(3, "smg_kv_batches_total", {engine.url(), "applied"})) << "of the three requests of the probe";
  const auto held = engine.with_cache([](const auto& c) { return c.blocks(); });
  EXPECT_TRUE(becomes(static_cast<double>(held), "smg_kv_blocks", {engine.url()}));
  EXPECT_GT(value("smg_kv_index_bytes"), 0);

  const auto step = [&] { return engine.with_cache([](auto& cache) { return cache.step(); }); };
  const auto message = step();
  engine.publisher().publish(message);
  engine.publisher().send(message);
  EXPECT_TRUE(becomes(1, "smg_kv_batches_total", {engine.url(), "duplicate"}));
  protocol::KvEventBatch of_the_host;
  of_the_host.events.push_back({.kind = protocol::KvEvent::Kind::kRemoved, .hashes = {1}, .medium = "CPU_PINNED"});
  engine.publisher().publish(engine.with_cache([&](auto& cache) { return cache.publish(of_the_host); }));
  EXPECT_TRUE(becomes(1, "smg_kv_left_out_total", {engine.url(), "ignored"}));
  engine.publisher().lose(step());
  engine.publisher().publish(step());
  EXPECT_TRUE(becomes(1, "smg_kv_gaps_total", {engine.url()}));
  EXPECT_TRUE(becomes(7, "smg_kv_batches_total", {engine.url(), "applied"})) << "what was lost was asked for";
  EXPECT_EQ(value("smg_kv_resyncs_total", {engine.url()}), 0);
  step();  // nobody has it
  engine.publisher().publish(step());
  EXPECT_TRUE(becomes(1, "smg_kv_resyncs_total", {engine.url()}));
  EXPECT_TRUE(becomes(1, "smg_worker_kv_mode", {engine.url(), "mode=\"events_partial\""}));
  gateway_.reset();
  std::filesystem::remove(template_file);
  time_ = &clock_;
}

void MetricsTest::engines() {
  std::atomic<int> mode{0};
  ScriptedWorker scripted(loops_, [&](const ScriptedWorker::Received& received) {
    if (mode == 0 && received.target == "/v1/loads") {
      return net::Response::json(
          200, R"({"loads":[{"dp_rank":0,"num_running_reqs":3,"num_waiting_reqs":2,"token_usage":0.5,)"
               R"("gen_throughput":100,"cache_hit_rate":0.75},)"
               R"({"dp_rank":1,"num_running_reqs":1,"num_waiting_reqs":0,"token_usage":0.25,"gen_throughput":50}]})");
    }
    if (mode == 1 && received.target == "/get_load") {
      return net::Response::json(200, R"([{"dp_rank":null,"num_reqs":5,"num_waiting_reqs":4,"num_tokens":9}])");
    }
    return net::Response::text(404, "");
  });
  start({"--engine-metrics", "--load-monitor-interval", "1", "--policy", "round_robin"});
  gateway_->worker_started(scripted.url());
  const auto says = [&](const std::string& what, const char* rank) {
    return value("smg_engine_" + what, {scripted.url(), "model=\"unknown\"", fmt::format("dp_rank=\"{}\"", rank)});
  };
  ASSERT_TRUE(eventually([&] { return value("smg_engine_load_polls_total", {scripted.url(), "\"loads\""}) > 0; }));
  EXPECT_EQ(says("running_requests", "0"), 3);
  EXPECT_EQ(says("running_requests", "1"), 1);
  EXPECT_EQ(says("waiting_requests", "0"), 2);
  EXPECT_EQ(says("token_usage", "0"), 0.5);
  EXPECT_EQ(says("token_usage", "1"), 0.25);
  EXPECT_EQ(says("gen_throughput", "1"), 50);
  EXPECT_EQ(says("cache_hit_rate", "0"), 0.75);
  mode = 1;
  ASSERT_TRUE(eventually([&] { return value("smg_engine_load_polls_total", {scripted.url(), "get_load"}) > 0; }));
  EXPECT_EQ(says("running_requests", "0"), 1) << "of five, four wait";
  EXPECT_EQ(says("waiting_requests", "0"), 4);
  EXPECT_EQ(value("smg_engine_running_requests"), 1) << "the other rank is not there any more";
  EXPECT_EQ(value("smg_engine_token_usage"), 0) << "it does not say";
  mode = 2;
  ASSERT_TRUE(eventually([&] { return value("smg_engine_load_polls_total", {scripted.url(), "failed"}) > 0; }));
  EXPECT_EQ(value("smg_engine_running_requests"), 0);
  mode = 0;
  ASSERT_TRUE(becomes(4, "smg_engine_running_requests"));
  gateway_->worker_ended(scripted.url());
  EXPECT_TRUE(becomes(0, "smg_engine_running_requests")) << "it is not asked any more";
  gateway_.reset();  // before the worker
}

void MetricsTest::discovery() {
  worker();
  SimWorker& two = worker();
  start({"--drain-settle-secs", "0", "--remove-unhealthy-workers", "--worker-startup-timeout-secs", "100",
         "--health-check-interval-secs", "1"});
  EXPECT_EQ(value("smg_discovery_registrations_total", {"source=\"static\"", "success"}), 2);
  EXPECT_EQ(value("smg_discovery_workers_discovered", {"source=\"static\""}), 2);
  EXPECT_EQ(call("POST", "/workers", R"({"url":"grpc://x:1"})")->status, 400);
  EXPECT_EQ(value("smg_discovery_registrations_total", {"source=\"manual\"", "failed"}), 1);
  SimWorker& late = worker();
  late.set_health({.status = 503});
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(call("POST", "/workers", Json{{"url", late.url()}}.dump())->status, 202);
  }
  EXPECT_EQ(value("smg_discovery_registrations_total", {"manual", "success"}), 1) << "the second one is no news";
  EXPECT_EQ(value("smg_discovery_workers_discovered", {"manual"}), 1);
  std::string location;
  for (const Json& each : workers_json()) {
    if (each["url"] == two.url()) location = "/workers/" + each["id"].get<std::string>();
  }
  EXPECT_EQ(call("DELETE", location)->status, 202);
  EXPECT_TRUE(becomes(1, "smg_discovery_deregistrations_total", {"source=\"static\"", "reason=\"requested\""}));
  clock_.advance(100s);
  EXPECT_TRUE(
      becomes_as_time_passes(1, "smg_discovery_deregistrations_total", {"source=\"manual\"", "reason=\"unhealthy\""}));
  EXPECT_EQ(value("smg_discovery_workers_discovered", {"static"}), 1);
  EXPECT_EQ(value("smg_discovery_workers_discovered", {"manual"}), 0);
  EXPECT_EQ(value("smg_worker_health", {two.url()}), 0) << "its series have gone";
}

void MetricsTest::log_and_traces() {
  const SimWorker& one = worker();  // no receiver of traces: 404
  start({"--access-log", "text", "--access-log-file", "/dev/full", "--enable-trace", "--otlp-traces-endpoint",
         one.url()});
  EXPECT_EQ(answer_from("x"), one.url());
  EXPECT_TRUE(becomes(1, "smg_log_dropped_lines"));
  EXPECT_TRUE(becomes(1, "smg_traces_total", {"failed"}));
  EXPECT_EQ(value("smg_traces_total", {"exported"}), 0);
}

void MetricsTest::every_group() {
  using M = MetricsTest;
  for (const auto group :
       {&M::http, &M::generation, &M::endpoints_and_errors, &M::admission, &M::workers, &M::connections_and_aborts,
        &M::choices, &M::cache_aware, &M::manual, &M::hashing, &M::breaker, &M::readmission, &M::suspects, &M::retries,
        &M::caches, &M::kv_events, &M::engines, &M::discovery, &M::log_and_traces}) {
    (this->*group)();
    reset();
  }
}

TEST_F(MetricsTest, OfHttp) { http(); }
TEST_F(MetricsTest, OfStreams) { generation(); }
TEST_F(MetricsTest, OfEndpointsAndErrors) { endpoints_and_errors(); }
TEST_F(MetricsTest, OfAdmission) { admission(); }
TEST_F(MetricsTest, OfWorkers) { workers(); }
TEST_F(MetricsTest, OfConnectionsAndAborts) { connections_and_aborts(); }
TEST_F(MetricsTest, OfChoices) { choices(); }
TEST_F(MetricsTest, OfCacheAware) { cache_aware(); }
TEST_F(MetricsTest, OfRoutingKeys) { manual(); }
TEST_F(MetricsTest, OfHashingPolicies) { hashing(); }
TEST_F(MetricsTest, OfTheBreaker) { breaker(); }
TEST_F(MetricsTest, OfReadmissionByHealth) { readmission(); }
TEST_F(MetricsTest, OfSuspects) { suspects(); }
TEST_F(MetricsTest, OfRetries) { retries(); }
TEST_F(MetricsTest, OfCaches) { caches(); }
TEST_F(MetricsTest, OfKvEvents) { kv_events(); }
TEST_F(MetricsTest, OfEngines) { engines(); }
TEST_F(MetricsTest, OfDiscovery) { discovery(); }
TEST_F(MetricsTest, OfTheLogAndTraces) { log_and_traces(); }

// All groups at once, so that a family that nothing moves, or that the page does not have, is found.
TEST_F(MetricsTest, ThePageHasWhatTheGatewayShowsAndNothingElse) {
  every_group();
  const ShownFamilies page = read_page();
  ASSERT_GT(page.size(), 50u) << "rows of " << SLUICE_METRICS_PAGE;
  for (const auto& [name, row] : page) {
    const auto at = shown_.find(name);
    if (at == shown_.end()) {
      ADD_FAILURE() << name << " is on the page and was not shown";
      continue;
    }
    EXPECT_EQ(at->second.type, row.type) << name;
    EXPECT_EQ(at->second.labels, row.labels) << name;
    EXPECT_EQ(at->second.bounds, row.bounds) << name;
    EXPECT_TRUE(at->second.has_moved) << name << " was always 0";
  }
  for (const auto& [name, shown] : shown_) EXPECT_TRUE(page.contains(name)) << name << " is not on the page";
  for (const obs::Family& family : metric_families({1})) {
    EXPECT_TRUE(shown_.contains(std::string(family.name))) << family.name << " is declared and was never shown";
  }
}

}  // namespace
}  // namespace sluice::gateway
