#include "bench/api.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace sluice::bench {
namespace {

constexpr Backend kBackends[] = {
    {"sglang", Api::kGenerate, 30000, true},        {"sglang-native", Api::kGenerate, 30000, true},
    {"sglang-oai", Api::kCompletions, 30000, true}, {"sglang-oai-chat", Api::kChat, 30000, true},
    {"vllm", Api::kCompletions, 8000, false},       {"vllm-chat", Api::kChat, 8000, false},
    {"lmdeploy", Api::kCompletions, 23333, false},  {"lmdeploy-chat", Api::kChat, 23333, false},
};

void append_quoted(std::string& out, std::string_view text) {
  out.push_back('"');
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (c == '\n') {
      out.append("\\n");
    } else if (byte < 0x20) {
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", byte);
    } else {
      out.push_back(c);
    }
  }
  out.push_back('"');
}

// Writes the members of one object, except those that the user overrides.
class Members {
 public:
  Members(std::string& out, const std::vector<std::string>& overridden) : out_(out), overridden_(overridden) {
    out_.push_back('{');
  }

  // True if the member is to be written; its value follows.
  bool begin(std::string_view name) {
    if (std::find(overridden_.begin(), overridden_.end(), name) != overridden_.end()) return false;
    separate();
    out_.append("\"").append(name).append("\":");
    return true;
  }
  void raw(std::string_view name, std::string_view json) {
    if (begin(name)) out_.append(json);
  }
  void text(std::string_view name, std::string_view value) {
    if (begin(name)) append_quoted(out_, value);
  }
  void end(std::string_view more) {
    if (!more.empty()) {
      separate();
      out_.append(more);
    }
    out_.push_back('}');
  }

 private:
  void separate() {
    if (out_.back() != '{') out_.push_back(',');
  }

  std::string& out_;
  const std::vector<std::string>& overridden_;
};

std::string_view json_bool(bool value) { return value ? "true" : "false"; }

void append_ids(std::string& out, const std::vector<int32_t>& ids) {
  out.push_back('[');
  for (size_t i = 0; i < ids.size(); ++i) {
    fmt::format_to(std::back_inserter(out), "{}{}", i > 0 ? "," : "", ids[i]);
  }
  out.push_back(']');
}

void append_prompt(Members& members, std::string& out, const Prompt& prompt, std::string_view text_name,
                   std::string_view ids_name) {
  if (prompt.ids.empty()) {
    members.text(text_name, prompt.messages.empty() ? std::string_view() : prompt.messages[0]);
  } else if (members.begin(ids_name)) {
    append_ids(out, prompt.ids);
  }
}

void append_messages(std::string& out, const std::vector<std::string>& messages) {
  out.push_back('[');
  for (size_t i = 0; i < messages.size(); ++i) {
    out.append(i > 0 ? "," : "")
        .append(i % 2 == 0 ? R"({"role":"user","content":)" : R"({"role":"assistant","content":)");
    append_quoted(out, messages[i]);
    out.push_back('}');
  }
  out.push_back(']');
}

}  // namespace

Result<Backend> backend_named(std::string_view name) {
  for (const auto& backend : kBackends) {
    if (backend.name == name) return backend;
  }
  return Error{ErrorCode::kBadOption, fmt::format("--backend {} is not known", name)};
}

std::string_view path_of(Api api) {
  switch (api) {
    case Api::kGenerate:
      return "/generate";
    case Api::kCompletions:
      return "/v1/completions";
    case Api::kChat:
      return "/v1/chat/completions";
  }
  return {};
}

Result<void> add_extra_body(RequestForm& form, std::string_view extra) {
  if (extra.empty()) return {};
  const auto object = nlohmann::ordered_json::parse(extra, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    return Error{ErrorCode::kBadOption, fmt::format("--extra-request-body must be a JSON object, not '{}'", extra)};
  }
  for (const auto& [name, value] : object.items()) {
    form.overridden.push_back(name);
    form.extra_members += fmt::format("{}{}:{}", form.extra_members.empty() ? "" : ",",
                                      nlohmann::ordered_json(name).dump(), value.dump());
  }
  return {};
}

std::string request_body(const RequestForm& form, const Prompt& prompt) {
  std::string out;
  size_t size = 256 + form.extra_members.size() + prompt.ids.size() * 7;
  for (const auto& message : prompt.messages) size += message.size() + message.size() / 16 + 40;
  out.reserve(size);
  Members members(out, form.overridden);
  if (form.api == Api::kGenerate) {
    append_prompt(members, out, prompt, "text", "input_ids");
    members.raw("sampling_params", fmt::format(R"({{"temperature":0.0,"max_new_tokens":{},"ignore_eos":{}}})",
                                               prompt.output_len, json_bool(form.ignore_eos)));
    members.raw("stream", json_bool(form.stream));
    if (form.return_logprob) members.raw("return_logprob", "true");
    members.end(form.extra_members);
    return out;
  }
  members.text("model", form.model);
  if (form.api == Api::kCompletions) {
    append_prompt(members, out, prompt, "prompt", "prompt");
  } else if (members.begin("messages")) {
    append_messages(out, prompt.messages);
  }
  members.raw("temperature", "0.0");
  members.raw("max_tokens", fmt::format("{}", prompt.output_len));
  members.raw("stream", json_bool(form.stream));
  members.raw("ignore_eos", json_bool(form.ignore_eos));
  // Without it a stream does not say how many tokens it had.
  if (form.stream) members.raw("stream_options", R"({"include_usage":true})");
  members.end(form.extra_members);
  return out;
}

}  // namespace sluice::bench
