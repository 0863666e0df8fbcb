#include "testing/sim_request.h"

#include <simdjson.h>
#include <xxhash.h>

#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>

#include "protocol/json.h"

namespace sluice::testing {
namespace {

namespace dom = simdjson::dom;

constexpr int64_t kVocabulary = 4096;
constexpr int64_t kMaxSamples = 128;

uint64_t hash_of(std::string_view word) { return XXH3_64bits(word.data(), word.size()); }

Error bad(std::string message) { return {ErrorCode::kInvalidArgument, std::move(message)}; }

void append_words(std::vector<uint64_t>& out, std::string_view text) {
  const auto is_space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  for (size_t i = 0; i < text.size();) {
    if (is_space(text[i])) {
      ++i;
      continue;
    }
    const size_t start = i;
    while (i < text.size() && !is_space(text[i])) ++i;
    out.push_back(hash_of(text.substr(start, i - start)));
  }
}

void append_fours(std::vector<uint64_t>& out, std::string_view text) {
  uint32_t token = 0;
  for (size_t i = 0; i + sizeof token <= text.size(); i += sizeof token) {
    std::memcpy(&token, text.data() + i, sizeof token);
    out.push_back(token);
  }
}

Result<std::vector<uint64_t>> ids_of(dom::array ids, std::string_view field) {
  std::vector<uint64_t> out;
  out.reserve(ids.size());
  for (const dom::element element : ids) {
    int64_t id = 0;
    if (element.get(id) != simdjson::SUCCESS) return bad(fmt::format("{} must hold token ids", field));
    out.push_back(sim_token(id));
  }
  return out;
}

// A string, a list of strings, ids or a list of ids.
Result<void> read_prompts(dom::element value, std::string_view field, SimTokens tokens, SimRequest& request) {
  std::string_view text;
  if (value.get(text) == simdjson::SUCCESS) {
    request.prompts.push_back(sim_tokens(text, tokens));
    return {};
  }
  dom::array list;
  if (value.get(list) != simdjson::SUCCESS || list.size() == 0) {
    return bad(fmt::format("{} must be a string, a list of strings or token ids", field));
  }
  if (list.at(0).is_int64()) {
    SLUICE_TRY(auto ids, ids_of(list, field));
    request.prompts.push_back(std::move(ids));
    return {};
  }
  request.batch = true;
  for (const dom::element element : list) {
    dom::array ids;
    if (element.get(text) == simdjson::SUCCESS) {
      request.prompts.push_back(sim_tokens(text, tokens));
    } else if (element.get(ids) == simdjson::SUCCESS) {
      SLUICE_TRY(auto prompt, ids_of(ids, field));
      request.prompts.push_back(std::move(prompt));
    } else {
      return bad(fmt::format("{} must be a string, a list of strings or token ids", field));
    }
  }
  return {};
}

Result<void> read_messages(dom::element value, SimTokens tokens, SimRequest& request) {
  dom::array messages;
  if (value.get(messages) != simdjson::SUCCESS || messages.size() == 0) {
    return bad("messages must be a list that is not empty");
  }
  std::vector<uint64_t> prompt;
  std::string all;  // by characters
  const bool words = tokens == SimTokens::kWords;
  const auto add = [&](std::string_view text) {
    if (words) {
      append_words(prompt, text);
    } else {
      all += text;
    }
  };
  for (const dom::element message : messages) {
    std::string_view role;
    if (message["role"].get(role) != simdjson::SUCCESS) return bad("a message needs a role");
    if (words) prompt.push_back(hash_of(fmt::format("<{}>", role)));
    std::string_view text;
    dom::array parts;
    if (message["content"].get(text) == simdjson::SUCCESS) {
      add(text);
    } else if (message["content"].get(parts) == simdjson::SUCCESS) {
      for (const dom::element part : parts) {
        if (part["text"].get(text) == simdjson::SUCCESS) add(text);
      }
    }
  }
  if (words) {
    prompt.push_back(hash_of("<assistant>"));
  } else {
    append_fours(prompt, all);
  }
  request.prompts.push_back(std::move(prompt));
  return {};
}

Result<void> read_integer(const dom::object& object, std::string_view key, int64_t& out) {
  dom::element value;
  if (object[key].get(value) != simdjson::SUCCESS || value.is_null()) return {};
  if (value.get(out) != simdjson::SUCCESS) return bad(fmt::format("{} must be an integer", key));
  return {};
}

std::string finish_object(const SimSequence& sequence) {
  if (sequence.aborted) return R"({"type":"abort","message":"Aborted","status_code":null,"err_type":null})";
  return fmt::format(R"({{"type":"length","length":{}}})", sequence.generated);
}

std::string_view finish_word(const SimSequence& sequence) { return sequence.aborted ? "abort" : "length"; }

std::string usage_of(const std::vector<SimSequence>& sequences) {
  int64_t prompt = 0;
  int64_t cached = 0;
  int64_t generated = 0;
  for (const auto& sequence : sequences) {
    prompt += sequence.prompt_tokens;
    cached += sequence.cached_tokens;
    generated += sequence.generated;
  }
  return fmt::format(R"({{"prompt_tokens":{},"total_tokens":{},"completion_tokens":{},)"
                     R"("prompt_tokens_details":{{"cached_tokens":{}}},"reasoning_tokens":0}})",
                     prompt, prompt + generated, generated, cached);
}

std::string generate_object(const SimReplyHead& head, const SimSequence& sequence, double e2e_seconds) {
  std::string out =
      fmt::format(R"({{"text":{},"output_ids":[{}],"meta_info":{{"id":{},"finish_reason":{},"prompt_tokens":{},)"
                  R"("weight_version":"default","total_retractions":0,"completion_tokens":{},"cached_tokens":{})",
                  json_quoted(sequence.text), sequence.id_list, json_quoted(head.id),
                  sequence.done() ? finish_object(sequence) : "null", sequence.prompt_tokens, sequence.generated,
                  sequence.cached_tokens);
  if (head.dp_rank >= 0) out += fmt::format(R"(,"dp_rank":{})", head.dp_rank);
  if (sequence.done()) out += fmt::format(R"(,"e2e_latency":{})", e2e_seconds);
  return out + "}";  // the caller closes the outer object
}

std::string openai_head(const SimReplyHead& head, bool chunk) {
  const std::string_view object = head.api == SimApi::kCompletions ? "text_completion"
                                  : chunk                          ? "chat.completion.chunk"
                                                                   : "chat.completion";
  return fmt::format(R"({{"id":{},"object":"{}","created":{},"model":{})", json_quoted(head.id), object, head.created,
                     json_quoted(head.model));
}

std::string chat_chunk(const SimReplyHead& head, int64_t index, std::string_view delta, std::string_view finish) {
  return fmt::format(
      R"({},"choices":[{{"index":{},"delta":{},"logprobs":null,"finish_reason":{},"matched_stop":null}}],"usage":null}})",
      openai_head(head, true), index, delta, finish);
}

}  // namespace

std::vector<uint64_t> sim_tokens(std::string_view text, SimTokens tokens) {
  std::vector<uint64_t> out;
  out.reserve(text.size() / 4 + 1);
  if (tokens == SimTokens::kWords) {
    append_words(out, text);
  } else {
    append_fours(out, text);
  }
  return out;
}

std::string sim_word(int64_t id) { return fmt::format("w{}", id); }

uint64_t sim_token(int64_t id) {
  char word[24] = "w";
  const auto end = std::to_chars(word + 1, word + sizeof word, id).ptr;
  return hash_of({word, static_cast<size_t>(end - word)});
}

std::vector<int64_t> sim_output(const std::vector<uint64_t>& prompt, int64_t sample, int64_t count) {
  uint64_t state = XXH3_64bits_withSeed(prompt.data(), prompt.size() * sizeof(uint64_t), sample);
  std::vector<int64_t> out(count);
  for (auto& id : out) {
    state = state * 6364136223846793005 + 1442695040888963407;
    id = static_cast<int64_t>((state >> 33) % kVocabulary);
  }
  return out;
}

std::string SimSequence::advance(int64_t to) {
  std::string delta;
  for (; generated < to; ++generated) {
    const int64_t id = output[generated];
    if (generated > 0) {
      delta += ' ';
      id_list += ',';
    }
    delta += sim_word(id);
    id_list += std::to_string(id);
  }
  text += delta;
  return delta;
}

StreamWish stream_wish(std::string_view body) {
  static thread_local simdjson::ondemand::parser parser;
  // Copied with padding behind it: the parser reads past the end.
  static thread_local std::string padded;
  padded.reserve(body.size() + simdjson::SIMDJSON_PADDING);
  padded.assign(body);
  simdjson::ondemand::document document;
  StreamWish wish;
  if (parser.iterate(padded.data(), padded.size(), padded.capacity()).get(document) != simdjson::SUCCESS) return wish;
  bool value = false;
  wish.stream = document["stream"].get(value) == simdjson::SUCCESS && value;
  if (wish.stream) {
    wish.include_usage = document["stream_options"]["include_usage"].get(value) == simdjson::SUCCESS && value;
  }
  return wish;
}

Result<SimRequest> parse_sim_request(SimApi api, std::string_view body, int64_t default_tokens, SimTokens tokens) {
  static thread_local dom::parser parser;
  dom::element root;
  if (const auto error = parser.parse(body.data(), body.size()).get(root); error != simdjson::SUCCESS) {
    return bad(fmt::format("the body is not JSON: {}", simdjson::error_message(error)));
  }
  dom::object object;
  if (root.get(object) != simdjson::SUCCESS) return bad("the body must be a JSON object");

  SimRequest request;
  request.max_tokens = default_tokens;
  dom::element value;
  std::string_view text;
  if (object["model"].get(text) == simdjson::SUCCESS) request.model = text;
  if (object["rid"].get(text) == simdjson::SUCCESS) request.rid = text;
  if (object["stream"].get(value) == simdjson::SUCCESS && !value.is_null() &&
      value.get(request.stream) != simdjson::SUCCESS) {
    return bad("stream must be a boolean");
  }
  for (const std::string_view key : {"routed_dp_rank", "data_parallel_rank"}) {
    int64_t rank = -1;
    SLUICE_TRY_VOID(read_integer(object, key, rank));
    if (rank != -1) request.dp_rank = rank;
  }

  if (api == SimApi::kGenerate) {
    const bool has_text = object["text"].get(value) == simdjson::SUCCESS && !value.is_null();
    if (has_text) SLUICE_TRY_VOID(read_prompts(value, "text", tokens, request));
    const bool has_ids = object["input_ids"].get(value) == simdjson::SUCCESS && !value.is_null();
    if (has_text == has_ids) return bad("either text or input_ids should be provided");
    if (has_ids) SLUICE_TRY_VOID(read_prompts(value, "input_ids", tokens, request));
    dom::object sampling;
    if (object["sampling_params"].get(sampling) == simdjson::SUCCESS) {
      SLUICE_TRY_VOID(read_integer(sampling, "max_new_tokens", request.max_tokens));
      SLUICE_TRY_VOID(read_integer(sampling, "n", request.n));
    }
  } else {
    if (api == SimApi::kCompletions) {
      if (object["prompt"].get(value) != simdjson::SUCCESS) return bad("prompt is missing");
      SLUICE_TRY_VOID(read_prompts(value, "prompt", tokens, request));
    } else {
      if (object["messages"].get(value) != simdjson::SUCCESS) return bad("messages is missing");
      SLUICE_TRY_VOID(read_messages(value, tokens, request));
    }
    SLUICE_TRY_VOID(read_integer(object, "max_tokens", request.max_tokens));
    SLUICE_TRY_VOID(read_integer(object, "max_completion_tokens", request.max_tokens));
    SLUICE_TRY_VOID(read_integer(object, "n", request.n));
    dom::object stream_options;
    if (object["stream_options"].get(stream_options) == simdjson::SUCCESS) {
      bool include = false;
      request.include_usage = stream_options["include_usage"].get(include) == simdjson::SUCCESS && include;
    }
  }
  if (request.max_tokens < 1) return bad("the number of tokens to generate must be at least 1");
  if (request.n < 1 || request.n > kMaxSamples) return bad(fmt::format("n must be in [1, {}]", kMaxSamples));
  for (const auto& prompt : request.prompts) {
    if (prompt.empty()) return bad("the prompt is empty");
  }
  return request;
}

std::string json_quoted(std::string_view text) { return protocol::dump(text); }

std::string whole_reply(const SimReplyHead& head, const std::vector<SimSequence>& sequences, double e2e_seconds) {
  std::string out;
  if (head.api == SimApi::kGenerate) {
    for (const auto& sequence : sequences) {
      out += (out.empty() ? "" : ",") + generate_object(head, sequence, e2e_seconds) + "}";
    }
    return head.batch ? "[" + out + "]" : out;
  }
  for (const auto& sequence : sequences) {
    const std::string text = json_quoted(sequence.text);
    const std::string content = head.api == SimApi::kCompletions
                                    ? fmt::format(R"("text":{})", text)
                                    : fmt::format(R"("message":{{"role":"assistant","content":{},)"
                                                  R"("reasoning_content":null,"tool_calls":null}})",
                                                  text);
    out += fmt::format(R"({}{{"index":{},{},"logprobs":null,"finish_reason":"{}","matched_stop":null}})",
                       out.empty() ? "" : ",", sequence.index, content, finish_word(sequence));
  }
  return fmt::format(R"({},"choices":[{}],"usage":{},"metadata":{{"weight_version":"default"}}}})",
                     openai_head(head, false), out, usage_of(sequences));
}

std::string first_event(const SimReplyHead& head, const SimSequence& sequence) {
  return chat_chunk(head, sequence.index, R"({"role":"assistant","content":""})", "null");
}

std::string token_event(const SimReplyHead& head, const SimSequence& sequence, std::string_view delta,
                        double e2e_seconds) {
  switch (head.api) {
    case SimApi::kGenerate: {
      std::string out = generate_object(head, sequence, e2e_seconds);
      if (head.batch) out += fmt::format(R"(,"index":{})", sequence.index);
      return out + "}";
    }
    case SimApi::kCompletions:
      return fmt::format(
          R"({},"choices":[{{"index":{},"text":{},"logprobs":null,"finish_reason":{},"matched_stop":null}}],"usage":null}})",
          openai_head(head, true), sequence.index, json_quoted(delta),
          sequence.done() ? fmt::format("\"{}\"", finish_word(sequence)) : "null");
    case SimApi::kChat:
      return chat_chunk(head, sequence.index, fmt::format(R"({{"content":{}}})", json_quoted(delta)), "null");
  }
  return {};
}

std::string last_event(const SimReplyHead& head, const SimSequence& sequence) {
  return chat_chunk(head, sequence.index, "{}", fmt::format("\"{}\"", finish_word(sequence)));
}

std::string usage_event(const SimReplyHead& head, const std::vector<SimSequence>& sequences) {
  return fmt::format(R"({},"choices":[],"usage":{}}})", openai_head(head, true), usage_of(sequences));
}

std::string openai_error(int status, std::string_view message, std::string_view type) {
  return fmt::format(R"({{"object":"error","message":{},"type":"{}","param":null,"code":{}}})", json_quoted(message),
                     type, status);
}

std::string generate_error(std::string_view message) {
  return fmt::format(R"({{"error":{{"message":{}}}}})", json_quoted(message));
}

}  // namespace sluice::testing
