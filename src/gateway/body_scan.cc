#include "gateway/body_scan.h"

#include <simdjson.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <nlohmann/json.hpp>

#include "protocol/json.h"

namespace sluice::gateway {
namespace {

namespace od = simdjson::ondemand;

Error wrong(std::string message) { return {ErrorCode::kInvalidArgument, std::move(message)}; }

Error malformed(simdjson::error_code error) {
  return wrong(fmt::format("the body is not valid JSON: {}", simdjson::error_message(error)));
}

// Of a token as simdjson shows it, up to the next one.
std::string_view trimmed(std::string_view token) {
  while (!token.empty() && std::isspace(static_cast<unsigned char>(token.back())) != 0) token.remove_suffix(1);
  return token;
}

// Of a string. One without escapes is taken as it stands in the body, which spares a long one a copy.
simdjson::error_code join_text(od::value value, PromptText& out) {
  const std::string_view token = trimmed(value.raw_json_token());
  const bool is_string = token.size() >= 2 && token.front() == '"' && token.back() == '"';
  if (is_string && token.find('\\') == std::string_view::npos) {
    out.join(token.substr(1, token.size() - 2), /*in_body=*/true);
    return simdjson::SUCCESS;
  }
  std::string_view text;
  if (auto error = value.get_string().get(text)) return error;
  out.join(text, /*in_body=*/false);
  return simdjson::SUCCESS;
}

// A string, or a list of strings, of token ids or of lists of them. Other kinds are the engine's to judge.
simdjson::error_code append_prompt(od::value value, PromptText& out, int depth = 0) {
  od::json_type type;
  if (auto error = value.type().get(type)) return error;
  switch (type) {
    case od::json_type::string:
      return join_text(value, out);
    case od::json_type::number: {
      std::string_view token = trimmed(value.raw_json_token());
      int64_t number = 0;
      const auto [end, parsed] = std::from_chars(token.data(), token.data() + token.size(), number);
      if (end == token.data() + token.size()) {
        // An id that no integer holds is valid JSON: the engine's to judge.
        if (parsed == std::errc()) out.join(std::to_string(number), /*in_body=*/false);
        return simdjson::SUCCESS;
      }
      od::number checked;
      return value.get_number().get(checked);
    }
    case od::json_type::array: {
      if (depth >= 3) return simdjson::SUCCESS;
      od::array array;
      if (auto error = value.get_array().get(array)) return error;
      for (auto element : array) {
        od::value item;
        if (auto error = element.get(item)) return error;
        if (auto error = append_prompt(item, out, depth + 1)) return error;
      }
      return simdjson::SUCCESS;
    }
    default:
      return simdjson::SUCCESS;
  }
}

// "content" or "reasoning_content" of a message: a string, or parts of which the text ones count.
simdjson::error_code append_content(od::value value, PromptText& out) {
  od::json_type type;
  if (auto error = value.type().get(type)) return error;
  if (type == od::json_type::string) return join_text(value, out);
  if (type != od::json_type::array) return simdjson::SUCCESS;
  od::array parts;
  if (auto error = value.get_array().get(parts)) return error;
  for (auto element : parts) {
    const size_t before = out.size();
    od::value part;
    if (auto error = element.get(part)) return error;
    od::json_type kind;
    if (auto error = part.type().get(kind)) return error;
    if (kind != od::json_type::object) continue;
    od::object fields;
    if (auto error = part.get_object().get(fields)) return error;
    for (auto field : fields) {
      std::string_view key;
      if (auto error = field.unescaped_key().get(key)) return error;
      if (key != "text") continue;
      out.cut(before);
      od::value text;
      if (auto error = field.value().get(text)) return error;
      (void)join_text(text, out);  // of another type: the engine's to judge
    }
  }
  return simdjson::SUCCESS;
}

// Where the text of one field of a message stands.
struct Said {
  size_t begin = 0;
  size_t end = 0;
};

// The field has come again: what it said before does not count.
void take_back(Said& said, Said& other, PromptText& out) {
  const size_t size = said.end - said.begin;
  if (size == 0) return;
  out.erase(said.begin, size);
  if (other.begin >= said.end) other = {other.begin - size, other.end - size};
  said = {};
}

simdjson::error_code append_messages(od::value value, PromptText& out) {
  od::json_type type;
  if (auto error = value.type().get(type)) return error;
  if (type != od::json_type::array) return simdjson::SUCCESS;
  od::array messages;
  if (auto error = value.get_array().get(messages)) return error;
  for (auto element : messages) {
    od::value message;
    if (auto error = element.get(message)) return error;
    od::json_type kind;
    if (auto error = message.type().get(kind)) return error;
    if (kind == od::json_type::string) {  // an item of "input" in its short form
      if (auto error = join_text(message, out)) return error;
    }
    if (kind != od::json_type::object) continue;
    od::object fields;
    if (auto error = message.get_object().get(fields)) return error;
    Said content_said, reasoning_said;
    for (auto field : fields) {
      std::string_view key;
      if (auto error = field.unescaped_key().get(key)) return error;
      const bool is_content = key == "content";
      if (!is_content && key != "reasoning_content") continue;
      Said& own = is_content ? content_said : reasoning_said;
      take_back(own, is_content ? reasoning_said : content_said, out);
      own.begin = out.size();
      od::value content;
      if (auto error = field.value().get(content)) return error;
      if (auto error = append_content(content, out)) return error;
      own.end = out.size();
    }
  }
  return simdjson::SUCCESS;
}

// "input" of the Responses API: a string, or items like messages.
simdjson::error_code append_input(od::value value, PromptText& out) {
  od::json_type type;
  if (auto error = value.type().get(type)) return error;
  return type == od::json_type::string ? append_prompt(value, out) : append_messages(value, out);
}

std::optional<int64_t> limit_of(od::value value) {
  int64_t limit = 0;
  return !value.get_int64().get(limit) && limit >= 0 ? std::optional<int64_t>(limit) : std::nullopt;
}

bool holds_prompt(Endpoint endpoint, std::string_view key) {
  switch (endpoint) {
    case Endpoint::kGenerate:
      return key == "text" || key == "input_ids";
    case Endpoint::kCompletions:
      return key == "prompt";
    case Endpoint::kEmbeddings:
      return key == "input";
    case Endpoint::kRerank:
      return key == "query";
    case Endpoint::kChat:
    case Endpoint::kResponses:
    case Endpoint::kClassify:
    case Endpoint::kMessages:
    case Endpoint::kOther:
      return false;
  }
  return false;
}

using Field = BodyFacts::Field;

// Of a value that has not been read yet.
Field field_at(const std::string& body, od::value& value, Field::Key key) {
  const std::string_view token = trimmed(value.raw_json_token());
  const auto begin = static_cast<size_t>(token.data() - body.data());
  return {key, begin, begin + token.size()};
}

Result<void> read_string(od::value value, std::optional<std::string>& out) {
  std::string_view text;
  if (auto error = value.get_string().get(text)) return malformed(error);
  out = std::string(text);
  return {};
}

// Takes the members of a body one by one.
class BodyReader {
 public:
  BodyReader(const std::string& body, Endpoint endpoint) : body_(body), endpoint_(endpoint) {}

  Result<void> read(std::string_view key, od::value value) {
    if (key == "model") return read_model(value);
    if (key == "rid") return read_rid(value);
    if (key == "stream") return read_stream(value);
    if (key == "routed_dp_rank") return read_rank(value, Field::Key::kRoutedRank, routed_rank_);
    if (key == "data_parallel_rank") return read_rank(value, Field::Key::kOlderRank, older_rank_);
    if (key == "sampling_params") return read_sampling(value);
    if (endpoint_ == Endpoint::kResponses && key == "previous_response_id") return read_previous(value);
    for (size_t i = 0; i < kLimits.size(); ++i) {
      if (key != kLimits[i]) continue;
      limits_[i] = limit_of(value);
      return {};
    }
    if (const auto error = read_prompt(key, value)) return malformed(error);
    return {};
  }

  // Once, after the last member.
  BodyFacts facts() {
    if (facts_.routing_text.empty()) facts_.routing_text = std::move(token_text_);
    facts_.rank = routed_rank_ ? routed_rank_ : older_rank_;
    for (const auto& limit : limits_) {
      if (!facts_.max_tokens) facts_.max_tokens = limit;
    }
    if (!facts_.max_tokens) facts_.max_tokens = max_new_tokens_;
    return std::move(facts_);
  }

 private:
  // Of an answer's length; the first that is given counts, and after them max_new_tokens of sampling_params.
  static constexpr std::array<std::string_view, 3> kLimits{"max_completion_tokens", "max_tokens", "max_output_tokens"};

  Result<void> read_model(od::value value) {
    facts_.fields.push_back(field_at(body_, value, Field::Key::kModel));
    facts_.model.reset();
    od::json_type type;
    if (auto error = value.type().get(type)) return malformed(error);
    if (type == od::json_type::null) return {};
    if (type != od::json_type::string) return wrong("model must be a string");
    return read_string(value, facts_.model);
  }

  // Of another type: the engine's to judge.
  Result<void> read_rid(od::value value) {
    facts_.rid.reset();
    od::json_type type;
    if (auto error = value.type().get(type)) return malformed(error);
    return type == od::json_type::string ? read_string(value, facts_.rid) : Result<void>();
  }

  // Of another type: the engine's to judge.
  Result<void> read_previous(od::value value) {
    facts_.previous.clear();
    od::json_type type;
    if (auto error = value.type().get(type)) return malformed(error);
    if (type != od::json_type::string) return {};
    std::string_view text;
    if (auto error = value.get_string().get(text)) return malformed(error);
    facts_.previous = text;
    return {};
  }

  Result<void> read_stream(od::value value) {
    facts_.stream = false;
    od::json_type type;
    if (auto error = value.type().get(type)) return malformed(error);
    if (type == od::json_type::null) return {};
    if (type != od::json_type::boolean) return wrong("stream must be true or false");
    if (auto error = value.get_bool().get(facts_.stream)) return malformed(error);
    return {};
  }

  Result<void> read_rank(od::value value, Field::Key key, std::optional<int64_t>& asked) {
    facts_.fields.push_back(field_at(body_, value, key));
    const Field& stands = facts_.fields.back();
    const std::string_view token = std::string_view(body_).substr(stands.begin, stands.end - stands.begin);
    int64_t rank = 0;
    const auto [end, parsed] = std::from_chars(token.data(), token.data() + token.size(), rank);
    asked.reset();
    if (parsed == std::errc() && end == token.data() + token.size()) {
      asked = rank;
    } else if (token != "null") {
      facts_.rank_is_no_integer = true;
    }
    return {};
  }

  Result<void> read_sampling(od::value value) {
    max_new_tokens_.reset();
    od::json_type type;
    if (auto error = value.type().get(type)) return malformed(error);
    if (type != od::json_type::object) return {};
    od::object parameters;
    if (auto error = value.get_object().get(parameters)) return malformed(error);
    for (auto parameter : parameters) {
      std::string_view name;
      if (auto error = parameter.unescaped_key().get(name)) return malformed(error);
      od::value limit;
      if (auto error = parameter.value().get(limit)) return malformed(error);
      if (name == "max_new_tokens") max_new_tokens_ = limit_of(limit);
    }
    return {};
  }

  simdjson::error_code read_prompt(std::string_view key, od::value value) {
    const bool is_chat = endpoint_ == Endpoint::kChat && key == "messages";
    const bool is_input = endpoint_ == Endpoint::kResponses && key == "input";
    if (!is_chat && !is_input && !holds_prompt(endpoint_, key)) return simdjson::SUCCESS;
    PromptText& text = key == "input_ids" ? token_text_ : facts_.routing_text;
    text.clear();
    if (is_chat) return append_messages(value, text);
    if (is_input) return append_input(value, text);
    return append_prompt(value, text);
  }

  const std::string& body_;
  const Endpoint endpoint_;
  BodyFacts facts_;
  PromptText token_text_;  // input_ids, which count only where there is no text
  std::optional<int64_t> routed_rank_, older_rank_;
  std::array<std::optional<int64_t>, kLimits.size()> limits_;
  std::optional<int64_t> max_new_tokens_;
};

// "reason" of an object, or of the object "error" in it.
simdjson::error_code find_reason(od::object object, std::string& out, bool inside = false) {
  for (auto field : object) {
    std::string_view key;
    if (auto error = field.unescaped_key().get(key)) return error;
    od::value value;
    if (auto error = field.value().get(value)) return error;
    od::json_type type;
    if (auto error = value.type().get(type)) return error;
    if (key == "reason" && type == od::json_type::string) {
      std::string_view text;
      if (auto error = value.get_string().get(text)) return error;
      out = text;
    } else if (key == "error" && type == od::json_type::object && !inside) {
      od::object deeper;
      if (auto error = value.get_object().get(deeper)) return error;
      if (auto error = find_reason(deeper, out, /*inside=*/true)) return error;
    }
  }
  return simdjson::SUCCESS;
}

// Its memory is that of the largest body so far, as much again as that has bytes: after a very large one it starts
// anew.
class Parser {
 public:
  explicit Parser(size_t body_size) : is_large_(body_size > kKept) {}
  ~Parser() {
    if (is_large_) instance() = od::parser();
  }
  Parser(const Parser&) = delete;
  Parser& operator=(const Parser&) = delete;
  od::parser* operator->() { return &instance(); }

 private:
  static od::parser& instance() {
    thread_local od::parser parser;
    return parser;
  }
  static constexpr size_t kKept = size_t{4} << 20;
  const bool is_large_;
};

}  // namespace

std::string_view to_string(Endpoint endpoint) {
  switch (endpoint) {
    case Endpoint::kChat:
      return "chat";
    case Endpoint::kGenerate:
      return "generate";
    case Endpoint::kCompletions:
      return "completions";
    case Endpoint::kEmbeddings:
      return "embeddings";
    case Endpoint::kRerank:
      return "rerank";
    case Endpoint::kResponses:
      return "responses";
    case Endpoint::kClassify:
      return "classify";
    case Endpoint::kMessages:
      return "messages";
    case Endpoint::kOther:
      return "other";
  }
  return "other";
}

Result<BodyFacts> scan_body(std::string& body, Endpoint endpoint) {
  body.reserve(body.size() + simdjson::SIMDJSON_PADDING);
  Parser parser(body.size());
  od::document document;
  if (auto error = parser->iterate(body.data(), body.size(), body.capacity()).get(document)) return malformed(error);
  od::object object;
  if (auto error = document.get_object().get(object)) {
    return error == simdjson::INCORRECT_TYPE ? wrong("the body must be a JSON object") : malformed(error);
  }
  BodyReader reader(body, endpoint);
  for (auto field : object) {
    std::string_view key;
    if (auto error = field.unescaped_key().get(key)) return malformed(error);
    od::value value;
    if (auto error = field.value().get(value)) return malformed(error);
    SLUICE_TRY_VOID(reader.read(key, value));
  }
  const char* rest = nullptr;
  if (document.current_location().get(rest) == simdjson::SUCCESS)
    return wrong("the body is not valid JSON: something follows the object");
  return reader.facts();
}

std::string scan_error_reason(std::string_view body) {
  const simdjson::padded_string padded(body);
  Parser parser(body.size());
  od::document document;
  od::object object;
  std::string reason;
  if (parser->iterate(padded).get(document) || document.get_object().get(object)) return "";
  return find_reason(object, reason) ? "" : reason;
}

std::string changed_body(std::string_view body, const BodyFacts& facts, const BodyChanges& changes) {
  const size_t inside = body.find('{') + 1;
  std::string out(body.substr(0, inside));
  if (changes.rank) {
    const auto stands = [&](Field::Key key) {
      return std::ranges::find(facts.fields, key, &Field::key) != facts.fields.end();
    };
    std::string added;
    if (!stands(Field::Key::kRoutedRank)) added += fmt::format("\"routed_dp_rank\":{},", *changes.rank);
    if (!stands(Field::Key::kOlderRank)) added += fmt::format("\"data_parallel_rank\":{},", *changes.rank);
    const bool is_empty = body.find_first_not_of(" \t\r\n", inside) == body.rfind('}');
    if (is_empty && !added.empty()) added.pop_back();
    out += added;
  }
  size_t at = inside;
  for (const Field& field : facts.fields) {
    std::string value;
    if (field.key == Field::Key::kModel) {
      if (!changes.model) continue;
      value = protocol::dump(*changes.model);
    } else {
      if (!changes.rank) continue;
      value = std::to_string(*changes.rank);
    }
    out += body.substr(at, field.begin - at);
    out += value;
    at = field.end;
  }
  out += body.substr(at);
  return out;
}

}  // namespace sluice::gateway
