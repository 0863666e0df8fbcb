#include "gateway/body_scan.h"

#include <simdjson.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <nlohmann/json.hpp>

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
  BodyFacts facts;
  PromptText token_text;  // input_ids count only where there is no text
  std::optional<int64_t> routed_rank, older_rank;
  std::optional<int64_t> max_tokens, max_completion_tokens, max_output_tokens, max_new_tokens;
  Parser parser(body.size());
  od::document document;
  if (auto error = parser->iterate(body.data(), body.size(), body.capacity()).get(document)) return malformed(error);
  od::object object;
  if (auto error = document.get_object().get(object)) {
    return error == simdjson::INCORRECT_TYPE ? wrong("the body must be a JSON object") : malformed(error);
  }
  for (auto field : object) {
    std::string_view key;
    if (auto error = field.unescaped_key().get(key)) return malformed(error);
    od::value value;
    if (auto error = field.value().get(value)) return malformed(error);
    simdjson::error_code error = simdjson::SUCCESS;
    if (key == "model" || key == "rid") {
      if (key == "model") facts.fields.push_back(field_at(body, value, Field::Key::kModel));
      od::json_type type;
      if ((error = value.type().get(type))) return malformed(error);
      auto& fact = key == "model" ? facts.model : facts.rid;
      fact.reset();
      if (type == od::json_type::string) {
        std::string_view text;
        if ((error = value.get_string().get(text))) return malformed(error);
        fact = std::string(text);
      } else if (&fact == &facts.model && type != od::json_type::null) {
        return wrong("model must be a string");
      }
    } else if (key == "stream") {
      od::json_type type;
      if ((error = value.type().get(type))) return malformed(error);
      facts.stream = false;
      if (type == od::json_type::boolean) {
        if ((error = value.get_bool().get(facts.stream))) return malformed(error);
      } else if (type != od::json_type::null) {
        return wrong("stream must be true or false");
      }
    } else if (key == "max_tokens") {
      max_tokens = limit_of(value);
    } else if (key == "max_completion_tokens") {
      max_completion_tokens = limit_of(value);
    } else if (key == "max_output_tokens") {
      max_output_tokens = limit_of(value);
    } else if (key == "routed_dp_rank" || key == "data_parallel_rank") {
      const bool routed = key == "routed_dp_rank";
      facts.fields.push_back(field_at(body, value, routed ? Field::Key::kRoutedRank : Field::Key::kOlderRank));
      const Field& stands = facts.fields.back();
      const std::string_view token = std::string_view(body).substr(stands.begin, stands.end - stands.begin);
      int64_t rank = 0;
      const auto [end, parsed] = std::from_chars(token.data(), token.data() + token.size(), rank);
      auto& asked = routed ? routed_rank : older_rank;
      asked.reset();
      if (parsed == std::errc() && end == token.data() + token.size()) {
        asked = rank;
      } else if (token != "null") {
        facts.rank_is_no_integer = true;
      }
    } else if (key == "sampling_params") {
      od::json_type type;
      if ((error = value.type().get(type))) return malformed(error);
      od::object parameters;
      max_new_tokens.reset();
      if (type == od::json_type::object && !(error = value.get_object().get(parameters))) {
        for (auto parameter : parameters) {
          std::string_view name;
          if ((error = parameter.unescaped_key().get(name))) return malformed(error);
          od::value limit;
          if ((error = parameter.value().get(limit))) return malformed(error);
          if (name == "max_new_tokens") max_new_tokens = limit_of(limit);
        }
      }
    } else if (endpoint == Endpoint::kChat && key == "messages") {
      facts.routing_text.clear();
      error = append_messages(value, facts.routing_text);
    } else if (endpoint == Endpoint::kResponses && key == "previous_response_id") {
      od::json_type type;
      if ((error = value.type().get(type))) return malformed(error);
      facts.previous.clear();
      std::string_view text;
      if (type == od::json_type::string) error = value.get_string().get(text);
      if (!error) facts.previous = text;
    } else if (endpoint == Endpoint::kResponses && key == "input") {
      facts.routing_text.clear();
      error = append_input(value, facts.routing_text);
    } else if (holds_prompt(endpoint, key)) {
      PromptText& text = key == "input_ids" ? token_text : facts.routing_text;
      text.clear();
      error = append_prompt(value, text);
    }
    if (error) return malformed(error);
  }
  const char* rest = nullptr;
  if (document.current_location().get(rest) == simdjson::SUCCESS)
    return wrong("the body is not valid JSON: something follows the object");
  if (facts.routing_text.empty()) facts.routing_text = std::move(token_text);
  facts.rank = routed_rank ? routed_rank : older_rank;
  for (const auto& limit : {max_completion_tokens, max_tokens, max_output_tokens, max_new_tokens}) {
    if (!facts.max_tokens) facts.max_tokens = limit;
  }
  return facts;
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
      value = nlohmann::json(*changes.model).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
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
