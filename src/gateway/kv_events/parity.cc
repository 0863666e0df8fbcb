#include "gateway/kv_events/parity.h"

#include <nlohmann/json.hpp>

#include "gateway/ask.h"
#include "gateway/client_json.h"
#include "gateway/control.h"
#include "gateway/usage.h"

namespace sluice::gateway {
namespace {

using Json = nlohmann::ordered_json;

constexpr Duration kAnswer = std::chrono::milliseconds(2500);
constexpr Duration kLook = std::chrono::milliseconds(20);
constexpr int kLooks = 100;
static_assert(3 * kAnswer + kLooks * kLook < std::chrono::seconds(10), "a mismatch is flagged within ten seconds");

// A prompt that nobody has sent before, of some blocks whatever their size.
std::string text_of(int64_t block_size) {
  std::string text = "Parity probe " + make_uuid() + ". Count on:";
  const size_t bytes = std::clamp<size_t>(static_cast<size_t>(block_size) * 16, 1024, 16 << 10);
  for (int i = 1; text.size() < bytes; ++i) text += fmt::format(" {}", i);
  return text;
}

Json tool(const char* name, const char* parameter) {
  return {{"type", "function"},
          {"function",
           {{"name", name},
            {"description", "Looks something up."},
            {"parameters",
             {{"type", "object"},
              {"properties", {{parameter, {{"type", "string"}}}, {"limit", {{"type", "integer"}}}}},
              {"required", {parameter}}}}}}};
}

enum class Form : uint8_t { kPlain, kWithTools, kWithoutSystem };

std::string body_of(const Context& context, const Worker& worker, const std::string& text, Form form) {
  Json body{{"model", worker.info(&Worker::Info::model_id)}, {"max_tokens", 1}, {"temperature", 0}};
  if (context.kv->reader->has_template()) {
    body["messages"] = Json::array();
    if (form != Form::kWithoutSystem) body["messages"].push_back({{"role", "system"}, {"content", "You count."}});
    body["messages"].push_back({{"role", "user"}, {"content", text}});
  } else {
    body["prompt"] = text;
  }
  if (form == Form::kWithTools) body["tools"] = {tool("search_notes", "query"), tool("list_files", "folder")};
  if (worker.dp.rank >= 0) body["routed_dp_rank"] = body["data_parallel_rank"] = worker.dp.rank;
  return body.dump();
}

struct Reply {
  std::string why;  // there is none
  int64_t prompt_tokens = 0;
  std::optional<int64_t> cached_tokens;
};

Reply read_reply(const Result<net::Response>& answer) {
  Reply reply;
  if (!answer.ok()) {
    reply.why = "the parity probe got no answer: " + answer.error().message;
    return reply;
  }
  const auto usage = answer->status == 200 ? read_usage(answer->body) : std::nullopt;
  if (!usage) {
    reply.why = fmt::format("the parity probe was answered with {} and without usage", answer->status);
    return reply;
  }
  reply.prompt_tokens = usage->prompt_tokens;
  // Engines that do not report it leave it out, or say null.
  const auto document = parse_client_json(answer->body);
  const Json::json_pointer cached("/usage/prompt_tokens_details/cached_tokens");
  if (document.ok() && document->contains(cached) && (*document)[cached].is_number_integer()) {
    reply.cached_tokens = (*document)[cached].get<int64_t>();
  }
  return reply;
}

net::Task<Reply> ask(net::EventLoop& loop, net::Client& client, WorkerPtr worker, std::string path, std::string body) {
  Question question{"POST", std::move(path), key_headers(*worker),
                    std::make_shared<const std::string>(std::move(body))};
  question.headers.add("Content-Type", "application/json");
  const auto answer = co_await ask_worker(loop, client, worker, std::move(question), kAnswer);
  co_return read_reply(answer);
}

// Blocks of the prompt that the worker's events have named.
size_t known_blocks(const KvView& view, uint32_t worker, const KvPrompt& prompt, int64_t block_size) {
  std::vector<routing::BlockName> names;
  routing::name_blocks(prompt.tokens, static_cast<size_t>(block_size), names);
  std::vector<routing::BlockIndex::Depth> found;
  view.index.match(names, found);
  const auto at = std::ranges::find(found, worker, &routing::BlockIndex::Depth::worker);
  return at == found.end() ? 0 : at->blocks;
}

// The last token need not be cached.
size_t expected_blocks(const KvPrompt& prompt, int64_t block_size) {
  return (prompt.tokens.size() - 1) / static_cast<size_t>(block_size);
}

std::string missing(const KvStreamStatus& status, uint64_t batches_before, size_t known, size_t expected) {
  if (status.other_block_size != 0) {
    return fmt::format("its KV blocks have {} tokens, {} were expected", status.other_block_size, status.block_size);
  }
  if (status.counts.refused > 0) return "the block index has no room for its blocks (--kv-index-bytes)";
  if (status.counts.batches == batches_before) return "it published no KV events for a prompt that it had computed";
  return fmt::format("its KV events name {} of the {} blocks of a prompt: its tokens are others than here", known,
                     expected);
}

}  // namespace

net::Task<KvVerdict> probe_parity(Context& context, net::EventLoop& loop, net::Client& client, WorkerPtr worker) {
  KvCaches& kv = *context.kv;
  const uint32_t number = worker->number;
  KvVerdict verdict;
  auto status = kv.subscriber.status(number).value_or(KvStreamStatus());
  const uint64_t batches_before = status.counts.batches;
  const std::string text = text_of(status.block_size);
  const bool is_chat = kv.reader->has_template();
  const Endpoint endpoint = is_chat ? Endpoint::kChat : Endpoint::kCompletions;
  const std::string path = is_chat ? "/v1/chat/completions" : "/v1/completions";
  std::string plain = body_of(context, *worker, text, Form::kPlain);
  const std::string with_tools = body_of(context, *worker, text, Form::kWithTools);
  auto prompt = kv.reader->read(endpoint, plain);
  if (!prompt) {  // there are templates that refuse a system message
    plain = body_of(context, *worker, text, Form::kWithoutSystem);
    prompt = kv.reader->read(endpoint, plain);
  }
  const auto tool_prompt = is_chat ? kv.reader->read(endpoint, with_tools) : std::nullopt;
  if (!prompt) {
    verdict.why = "the chat template of the gateway cannot render a chat (--chat-template)";
    co_return verdict;
  }
  // The one with tools stands in the middle: engines publish the blocks of a request when the next one comes.
  Reply first = co_await ask(loop, client, worker, path, plain);
  Reply tools;
  if (first.why.empty() && tool_prompt) tools = co_await ask(loop, client, worker, path, with_tools);
  Reply second = std::move(first);
  if (second.why.empty() && second.prompt_tokens == static_cast<int64_t>(prompt->tokens.size())) {
    second = co_await ask(loop, client, worker, path, plain);
  }
  if (!second.why.empty()) {
    verdict.why = second.why;
    co_return verdict;
  }
  if (second.prompt_tokens != static_cast<int64_t>(prompt->tokens.size())) {
    verdict.why = fmt::format("it makes {} tokens of a prompt that has {} here: another tokenizer or chat template",
                              second.prompt_tokens, prompt->tokens.size());
    co_return verdict;
  }
  size_t known = 0, expected = 0;
  bool tools_known = false;
  const bool tools_alike =
      tool_prompt && tools.why.empty() && tools.prompt_tokens == static_cast<int64_t>(tool_prompt->tokens.size());
  for (int look = 0; look < kLooks; ++look) {
    status = kv.subscriber.status(number).value_or(KvStreamStatus());
    if (status.block_size > 0) {
      expected = expected_blocks(*prompt, status.block_size);
      known = known_blocks(kv.view, number, *prompt, status.block_size);
      tools_known = tools_alike && known_blocks(kv.view, number, *tool_prompt, status.block_size) >=
                                       expected_blocks(*tool_prompt, status.block_size);
      if (known >= expected && known > 0 && (tools_known || !tools_alike)) break;
    }
    co_await loop.sleep(kLook);
  }
  if (known == 0 || known < expected) {
    verdict.why = missing(status, batches_before, known, expected);
    co_return verdict;
  }
  const auto cached_at_least = static_cast<int64_t>(expected - 1) * status.block_size;
  if (second.cached_tokens && *second.cached_tokens < cached_at_least) {
    verdict.why = fmt::format("of a prompt that it had computed it had {} tokens cached, {} at least were expected",
                              *second.cached_tokens, cached_at_least);
    co_return verdict;
  }
  verdict.is_trusted = true;
  verdict.tools_differ = is_chat && !tools_known;
  if (verdict.tools_differ) verdict.why = "it renders tools otherwise: what it holds of prompts with tools is believed";
  co_return verdict;
}

}  // namespace sluice::gateway
