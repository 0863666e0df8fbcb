// For tests: an HttpApi behind a real server, in front of ranks that say what the test lets them say.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <charconv>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/http_api.h"
#include "net/server.h"
#include "net/sse.h"
#include "obs/metrics.h"
#include "testing/raw_client.h"

namespace sluice::engine {

using Json = nlohmann::ordered_json;

// A piece of what a rank says of a request; counters are filled in.
struct Word {
  std::vector<int32_t> ids;
  FinishReason finish = {};
  std::vector<PositionLogprobs> input_logprobs = {};
  std::vector<PositionLogprobs> output_logprobs = {};
  std::vector<float> embedding = {};
  std::vector<float> hidden_states = {};
  std::vector<int32_t> routed_experts = {};
};

// Ranks without processes. Says what `script` makes of each request, on a thread of its own; a request whose script is
// empty waits for say() or abort().
class FakeBackend final : public Backend {
 public:
  using Script = std::function<std::vector<Word>(const GenerateRequest&)>;

  explicit FakeBackend(size_t ranks) : ranks_(ranks) {
    for (auto& rank : ranks_) {
      rank.ready = true;
      rank.pid = 4711;
      rank.info = {.max_total_num_tokens = 5000,
                   .max_req_input_len = 2042,
                   .max_running_requests = 8,
                   .context_length = 2048,
                   .vocab_size = 512,
                   .weight_bytes = uint64_t{1} << 30,
                   .kv_bytes = uint64_t{1} << 29,
                   .kv_bytes_per_token = 64,
                   .dtype = "f32"};
    }
    thread_.start();
  }

  Result<int64_t> submit(GenerateRequest request, std::optional<int64_t> pinned, OnOutput on_output) override {
    const std::lock_guard lock(mu_);
    const auto count = static_cast<int64_t>(ranks_.size());
    if (pinned && (*pinned < 0 || *pinned >= count)) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("routed_dp_rank must be in [0, {}], got {}", count - 1, *pinned)};
    }
    const int64_t rank = pinned.value_or(next_++ % count);
    if (!ranks_[static_cast<size_t>(rank)].ready) return Error{ErrorCode::kUnavailable, "no rank is ready"};
    if (open_.contains(request.rid)) return Error{ErrorCode::kInvalidArgument, "the rid is in use"};
    Open& open = open_[request.rid];
    open.on_output = std::move(on_output);
    open.prompt_tokens = static_cast<int64_t>(request.input_ids.size());
    open.rank = rank;
    submitted_.emplace_back(request, rank);
    for (auto& word : script_(request)) say_locked(request.rid, std::move(word));
    changed_.notify_all();
    return rank;
  }
  void abort(const std::string& rid) override {
    const std::lock_guard lock(mu_);
    aborted_.push_back(rid);
    if (open_.contains(rid)) say_locked(rid, {.ids = {}, .finish = {.kind = FinishKind::kAbort, .message = "Aborted"}});
    changed_.notify_all();
  }
  void abort_all() override {
    for (const auto& rid : running()) abort(rid);
  }
  std::vector<std::string> running() const override {
    const std::lock_guard lock(mu_);
    std::vector<std::string> out;
    for (const auto& [rid, open] : open_) out.push_back(rid);
    return out;
  }
  void control(ControlKind kind, std::string text, Duration, OnControl done) override {
    const std::lock_guard lock(mu_);
    controls_.emplace_back(kind, std::move(text));
    const Result<void>& failed = control_results[kind];
    Result<RankAnswers> result = control_answers[kind];
    if (!failed.ok()) result = failed.error();
    if (const auto once = fails_once.extract(kind)) result = once.mapped();
    changed_.notify_all();
    auto say = [done = std::move(done), result] { done(result); };
    if (kind == held_) {
      held_answer_ = std::move(say);
    } else {
      thread_.post(std::move(say));
    }
  }
  std::vector<RankState> ranks() const override {
    const std::lock_guard lock(mu_);
    return ranks_;
  }

  // What the test does.
  void set_script(Script script) {
    const std::lock_guard lock(mu_);
    script_ = std::move(script);
  }
  void set_ranks(const std::function<void(std::vector<RankState>&)>& change) {
    const std::lock_guard lock(mu_);
    change(ranks_);
  }
  void say(const std::string& rid, Word word) {
    const std::lock_guard lock(mu_);
    say_locked(rid, std::move(word));
  }
  // The answer to the next control of this kind waits for let_go().
  void hold(ControlKind kind) {
    const std::lock_guard lock(mu_);
    held_ = kind;
  }
  void let_go() {
    const std::lock_guard lock(mu_);
    held_.reset();
    if (held_answer_) thread_.post(std::exchange(held_answer_, {}));
  }
  std::vector<std::pair<GenerateRequest, int64_t>> submitted() const {
    const std::lock_guard lock(mu_);
    return submitted_;
  }
  std::vector<std::pair<ControlKind, std::string>> controls() const {
    const std::lock_guard lock(mu_);
    return controls_;
  }
  std::vector<std::string> aborted() const {
    const std::lock_guard lock(mu_);
    return aborted_;
  }
  // Waits, at most 10 s, until `what` holds of this backend.
  bool wait_for(const std::function<bool(const FakeBackend&)>& what) {
    for (int i = 0; i < 1000; ++i) {
      if (what(*this)) return true;
      std::unique_lock lock(mu_);
      changed_.wait_for(lock, std::chrono::milliseconds(10));
    }
    return false;
  }

  std::map<ControlKind, Result<void>> control_results;
  std::map<ControlKind, Error> fails_once;
  std::map<ControlKind, RankAnswers> control_answers;
  std::optional<int64_t> moved_to;  // the rank that answers, in place of the one that was chosen

 private:
  struct Open {
    OnOutput on_output;
    int64_t prompt_tokens = 0;
    int64_t completion_tokens = 0;
    int64_t rank = 0;
  };

  void say_locked(const std::string& rid, Word word) {
    const auto found = open_.find(rid);
    if (found == open_.end()) return;
    Open& open = found->second;
    open.completion_tokens += static_cast<int64_t>(word.ids.size());
    RequestOutput output{.rid = rid,
                         .new_ids = std::move(word.ids),
                         .finish = std::move(word.finish),
                         .prompt_tokens = open.prompt_tokens,
                         .completion_tokens = open.completion_tokens,
                         .cached_tokens = 1,
                         .retractions = 0,
                         .times = {.begun_unix_nanos = 1'000'000'000,
                                   .prefilled_unix_nanos = 1'500'000'000,
                                   .queue = 0.25,
                                   .prefill = 0.5},
                         .dp_rank = moved_to.value_or(open.rank),
                         .input_logprobs = std::move(word.input_logprobs),
                         .output_logprobs = std::move(word.output_logprobs),
                         .embedding = std::move(word.embedding),
                         .hidden_states = std::move(word.hidden_states),
                         .routed_experts = std::move(word.routed_experts)};
    const bool last = output.finish.kind != FinishKind::kNone;
    thread_.post([on_output = open.on_output, output = std::move(output)] { on_output(output); });
    if (last) open_.erase(found);
  }

  mutable std::mutex mu_;
  std::condition_variable changed_;
  Script script_ = [](const GenerateRequest&) { return std::vector<Word>(); };
  std::vector<RankState> ranks_;
  int64_t next_ = 0;
  std::map<std::string, Open> open_;
  std::vector<std::pair<GenerateRequest, int64_t>> submitted_;
  std::vector<std::string> aborted_;
  std::vector<std::pair<ControlKind, std::string>> controls_;
  std::optional<ControlKind> held_;
  std::function<void()> held_answer_;
  net::EventLoop thread_{"ranks"};
};

struct HttpAnswer {
  int status = 0;
  std::string head;
  std::string body;

  Json json() const { return Json::parse(body, nullptr, /*allow_exceptions=*/false); }
  // Data of the events of a stream.
  std::vector<std::string> events() const {
    std::vector<std::string> out;
    net::SseReader reader;
    reader.feed(body, [&](std::string_view data) { out.emplace_back(data); });
    return out;
  }
};

// One connection. Every wait is bounded.
class Client {
 public:
  explicit Client(uint16_t port) : connection_(port) { EXPECT_TRUE(connection_.connected()); }

  void send(const std::string& method, const std::string& target, const std::string& body,
            const std::string& more_headers = "Content-Type: application/json\r\n") {
    ASSERT_TRUE(
        connection_.send(fmt::format("{} {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{}\r\n{}",
                                     method, target, body.size(), more_headers, body)));
  }
  // Reads until `text` has arrived.
  bool read_until(std::string_view text) { return connection_.wait_for(text); }
  HttpAnswer answer() {
    const std::string in = connection_.read_to_end();
    HttpAnswer out;
    const size_t end = in.find("\r\n\r\n");
    if (end == std::string::npos) return out;
    out.head = in.substr(0, end);
    std::from_chars(out.head.data() + 9, out.head.data() + 12, out.status);
    out.body = in.substr(end + 4);
    if (out.head.find("chunked") != std::string::npos) out.body = joined(out.body);
    return out;
  }
  void leave() { connection_.close(); }

 private:
  static std::string joined(std::string_view chunks) {
    std::string out;
    while (!chunks.empty()) {
      size_t size = 0;
      const auto [end, problem] = std::from_chars(chunks.data(), chunks.data() + chunks.size(), size, 16);
      if (problem != std::errc() || size == 0) break;
      chunks.remove_prefix(chunks.find("\r\n") + 2);
      out += chunks.substr(0, size);
      chunks.remove_prefix(size + 2);
    }
    return out;
  }

  testing::RawClient connection_;
};

class ApiTest : public ::testing::Test {
 protected:
  ApiTest() : options_(engine_option_table().defaults()) {
    options_.model_path = "tiny";
    options_.enable_metrics = true;
  }

  // Serves; called once by a test, after it has set options_.
  void serve() {
    const std::string folder = std::string(SLUICE_FIXTURES_DIR) + "/" + model_;
    auto model = load_served_model({.model_path = "tiny",
                                    .name = "",
                                    .model_file = folder,
                                    .tokenizer_file = tokenizer_file_.empty() ? folder : tokenizer_file_,
                                    .config_override = override_,
                                    .chat_template = template_file_});
    ASSERT_TRUE(model.ok()) << model.error().message;
    tokenizer_ = model->tokenizer;
    backend_ = std::make_unique<FakeBackend>(static_cast<size_t>(options_.dp_size));
    api_ = std::make_unique<HttpApi>(options_, std::move(*model), *backend_, metrics_);
    api_->set_status(ServerStatus::kUp);
    server_ = std::make_unique<net::Server>(loops_, net::ServerOptions{}, api_->handler());
    const auto port = server_->listen("127.0.0.1", 0);
    ASSERT_TRUE(port.ok()) << port.error().message;
    port_ = *port;
  }
  ~ApiTest() override {
    if (api_ != nullptr) api_->stop();
    server_.reset();
    api_.reset();
    if (!template_file_.empty()) std::filesystem::remove(template_file_);
  }

  // Instead of the model's own; tests run side by side, so each process has its file.
  void use_template(std::string_view text) {
    template_file_ = fmt::format("{}sluice-template-{}.jinja", ::testing::TempDir(), ::getpid());
    std::ofstream(template_file_) << text;
  }

  std::vector<int32_t> ids(std::string_view text) const { return tokenizer_->encode(text, false); }
  // One token per byte, so that a text can be split anywhere.
  std::vector<int32_t> byte_ids(std::string_view text) const {
    std::vector<int32_t> out;
    for (const char c : text) {
      for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
        if (tokenizer_->token_bytes(id) != std::string_view(&c, 1)) continue;
        out.push_back(id);
        break;
      }
    }
    EXPECT_EQ(out.size(), text.size());
    return out;
  }
  // Every request gets `text`, a word per token, and ends with the stop token.
  void answer_with(std::string_view text) {
    backend_->set_script([tokens = ids(text)](const GenerateRequest&) {
      std::vector<Word> words;
      for (const int32_t id : tokens) words.push_back({.ids = {id}});
      words.push_back({.ids = {2}, .finish = {.kind = FinishKind::kStopToken, .matched_token = 2}});
      return words;
    });
  }

  HttpAnswer call(const std::string& method, const std::string& target, const std::string& body = "",
                  const std::string& headers = "Content-Type: application/json\r\n") {
    Client client(port_);
    client.send(method, target, body, headers);
    return client.answer();
  }
  HttpAnswer post(const std::string& target, const Json& body) { return call("POST", target, body.dump()); }
  // A stream that ends with `finish` once an event has come.
  HttpAnswer post_stream(const std::string& target, Json body, FinishReason finish) {
    backend_->set_script([](const GenerateRequest&) { return std::vector<Word>(); });
    body["stream"] = true;
    Client client(port_);
    client.send("POST", target, body.dump());
    EXPECT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running().size() == 1; }));
    const auto running = backend_->running();
    if (running.empty()) return {};
    backend_->say(running[0], {.ids = ids("so")});
    EXPECT_TRUE(client.read_until("data: "));
    backend_->say(running[0], {.ids = {}, .finish = std::move(finish)});
    return client.answer();
  }

  EngineOptions options_;
  std::string tokenizer_file_;        // empty: the model's own
  std::string model_ = "tiny-llama";  // a fixture
  std::string override_;              // of config.json
  std::string template_file_;         // set by use_template()
  obs::Metrics metrics_;
  net::LoopGroup loops_{2, "test"};
  std::shared_ptr<const tokenizer::Tokenizer> tokenizer_;
  std::unique_ptr<FakeBackend> backend_;
  std::unique_ptr<HttpApi> api_;
  std::unique_ptr<net::Server> server_;
  uint16_t port_ = 0;
};

}  // namespace sluice::engine
