// For tests: a worker with a tokenizer, a chat template and a cache of blocks of four tokens, that publishes what
// happens to it; and the ways in which it may differ from what the gateway takes it for.
#pragma once

#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>

#include "gateway/kv_events/kv_zmq_fixture.h"
#include "gateway/kv_events/prompt_reader.h"
#include "gateway/scripted_worker_fixture.h"

namespace sluice::gateway {

struct KvEngineOptions {
  std::string chat_template;
  int64_t page_size = PublishingCache::kBlock;  // that it claims; 0 = it does not say
  int info_status = 200;                        // of /server_info
  bool is_configured = true;                    // it publishes
  bool is_silent = false;                       // it publishes nothing of what it computes
  bool forgets = false;                         // nothing is cached the second time
  bool reverses_tools = false;
  std::string api_key;  // that its questions need, if it is not empty
};

class KvEngine {
 public:
  static constexpr const char* kTokenizer = SLUICE_FIXTURES_DIR "/tiny-llama";
  // Renders messages and tools.
  static constexpr const char* kTemplate =
      "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
      "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}[assistant]{% endif %}";

  // A file of its own with that text.
  static std::string file_with(const std::string& text) {
    static std::atomic<int> files{0};
    const auto path = std::filesystem::temp_directory_path() / fmt::format("sluice-{}-{}.jinja", getpid(), files++);
    std::ofstream(path) << text;
    return path.string();
  }

  KvEngine(net::LoopGroup& loops, KvEngineOptions options)
      : options_(std::move(options)),
        template_file_(file_with(options_.chat_template.empty() ? kTemplate : options_.chat_template)),
        reader_(KvPromptReader::load(kTokenizer, template_file_).value()),
        worker_(loops, ScriptedWorker::Answer([this](const ScriptedWorker::Received& r) { return answer(r); })) {}
  ~KvEngine() { std::filesystem::remove(template_file_); }

  std::string url() const { return worker_.url(); }
  ZmqPublisher& publisher() { return publisher_; }
  // Under the lock of what it does.
  template <class Act>
  auto with_cache(Act act) {
    const std::lock_guard lock(mutex_);
    return act(cache_);
  }
  // As if somebody else had sent it that prompt.
  void compute(const std::string& path, const std::string& body) {
    net::Headers headers;
    headers.add("Authorization", "Bearer " + options_.api_key);
    (void)answer({.method = "POST", .target = path, .headers = std::move(headers), .body = body});
  }
  // Requests that were no parity probes.
  size_t requests() const {
    const auto received = worker_.received();
    return static_cast<size_t>(std::ranges::count_if(received, [](const auto& request) {
      return request.method == "POST" && request.body.find("Parity probe") == std::string::npos;
    }));
  }

 private:
  net::Response answer(const ScriptedWorker::Received& received) {
    if (!options_.api_key.empty() && received.headers.get("authorization") != "Bearer " + options_.api_key) {
      return net::Response::json(401, R"({"error":"no"})");
    }
    if (received.target == "/server_info") return net::Response::json(options_.info_status, server_info());
    std::string body = received.body;
    const bool is_chat = received.target == "/v1/chat/completions";
    if (options_.reverses_tools && is_chat) {
      auto document = nlohmann::ordered_json::parse(body);
      if (document.contains("tools")) std::reverse(document["tools"].begin(), document["tools"].end());
      body = document.dump();
    }
    const auto prompt = reader_->read(is_chat ? Endpoint::kChat : Endpoint::kGenerate, body);
    if (!prompt) return net::Response::json(400, R"({"error":"no prompt"})");
    const size_t size = prompt->tokens.size();
    const std::lock_guard lock(mutex_);
    const size_t held = cache_.depth(prompt->tokens) * PublishingCache::kBlock;
    const size_t cached =
        options_.forgets ? 0 : std::min(held, (size - 1) / PublishingCache::kBlock * PublishingCache::kBlock);
    const auto message = cache_.store(prompt->tokens);
    if (!options_.is_silent) publisher_.publish(message);
    const nlohmann::json usage{
        {"prompt_tokens", size}, {"completion_tokens", 1}, {"prompt_tokens_details", {{"cached_tokens", cached}}}};
    return net::Response::json(200, nlohmann::json{{"choices", {{{"text", "x"}}}}, {"usage", usage}}.dump());
  }
  std::string server_info() const {
    nlohmann::json document{{"dp_size", 1}, {"kv_events_config", nullptr}};
    if (options_.page_size > 0) document["page_size"] = options_.page_size;
    if (options_.is_configured) {
      document["kv_events_config"] =
          nlohmann::json{{"publisher", "zmq"},
                         {"endpoint", fmt::format("tcp://*:{}", publisher_.port())},
                         {"replay_endpoint", fmt::format("tcp://*:{}", publisher_.replay_port())}}
              .dump();
    }
    return document.dump();
  }

  const KvEngineOptions options_;
  const std::string template_file_;
  const std::unique_ptr<KvPromptReader> reader_;
  std::mutex mutex_;  // guards the cache
  PublishingCache cache_{1};
  ZmqPublisher publisher_;
  ScriptedWorker worker_;
};

}  // namespace sluice::gateway
