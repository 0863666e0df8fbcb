// Request bodies, held against a parsed tree: what the scanner reads of valid JSON, what it refuses, and what a body is
// after it was changed in place.
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "fuzz.h"
#include "gateway/body_scan.h"

using namespace sluice;
using gateway::BodyFacts;
using gateway::Endpoint;
using Json = nlohmann::ordered_json;

namespace {

struct Tree {
  Json json;
  bool repeats_a_key = false;  // somewhere
};

// None: not a JSON object as the standard has it.
std::optional<Tree> parse(const std::string& text) {
  // What the tree's parser takes and the standard does not: a byte order mark, and a zero byte as the end.
  if (text.starts_with("\xEF\xBB\xBF") || text.find('\0') != std::string::npos) return std::nullopt;
  Tree tree;
  std::vector<std::set<std::string>> keys;
  const Json::parser_callback_t watch = [&](int, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second) {
      tree.repeats_a_key = true;
    }
    return true;
  };
  tree.json = Json::parse(text, watch, /*allow_exceptions=*/false);
  if (!tree.json.is_object()) return std::nullopt;
  return tree;
}

const Json* find(const Json& object, const char* key) {
  const auto at = object.find(key);
  return at == object.end() ? nullptr : &*at;
}

std::optional<int64_t> integer(const Json* value) {
  if (value == nullptr || !value->is_number_integer()) return std::nullopt;
  if (value->is_number_unsigned() && value->get<uint64_t>() > uint64_t{INT64_MAX}) return std::nullopt;
  return value->get<int64_t>();
}

std::optional<int64_t> limit(const Json* value) {
  const auto number = integer(value);
  return number && *number >= 0 ? number : std::nullopt;
}

void join(std::string& out, const std::string& text) {
  if (text.empty()) return;
  if (!out.empty()) out += ' ';
  out += text;
}

void add_prompt(const Json& value, std::string& out, int depth = 0) {
  if (value.is_string()) join(out, value.get<std::string>());
  if (const auto number = integer(&value)) join(out, std::to_string(*number));
  if (!value.is_array() || depth >= 3) return;
  for (const Json& item : value) add_prompt(item, out, depth + 1);
}

void add_messages(const Json& value, std::string& out) {
  if (!value.is_array()) return;
  for (const Json& message : value) {
    if (message.is_string()) join(out, message.get<std::string>());
    if (!message.is_object()) continue;
    for (const auto& [key, content] : message.items()) {
      if (key != "content" && key != "reasoning_content") continue;
      if (content.is_string()) join(out, content.get<std::string>());
      if (!content.is_array()) continue;
      for (const Json& part : content) {
        const Json* text = part.is_object() ? find(part, "text") : nullptr;
        if (text != nullptr && text->is_string()) join(out, text->get<std::string>());
      }
    }
  }
}

std::string prompt_of(const Json& body, Endpoint endpoint) {
  std::string out;
  const auto with = [&](const char* key, auto add) {
    if (const Json* value = find(body, key)) add(*value, out);
  };
  const auto add_text = [](const Json& value, std::string& to) { add_prompt(value, to); };
  switch (endpoint) {
    case Endpoint::kChat:
      with("messages", add_messages);
      break;
    case Endpoint::kGenerate:
      with("text", add_text);
      if (out.empty()) with("input_ids", add_text);
      break;
    case Endpoint::kCompletions:
      with("prompt", add_text);
      break;
    case Endpoint::kEmbeddings:
      with("input", add_text);
      break;
    case Endpoint::kRerank:
      with("query", add_text);
      break;
    case Endpoint::kResponses:
      with("input", [](const Json& value, std::string& to) {
        value.is_string() ? add_prompt(value, to) : add_messages(value, to);
      });
      break;
    default:
      break;
  }
  return out;
}

std::optional<std::string> text_of(const Json* value) {
  if (value == nullptr || !value->is_string()) return std::nullopt;
  return value->get<std::string>();
}

std::optional<int64_t> tokens_of(const Json& body) {
  for (const char* key : {"max_completion_tokens", "max_tokens", "max_output_tokens"}) {
    if (const auto value = limit(find(body, key))) return value;
  }
  const Json* sampling = find(body, "sampling_params");
  return sampling != nullptr && sampling->is_object() ? limit(find(*sampling, "max_new_tokens")) : std::nullopt;
}

void check_facts(const BodyFacts& facts, const Tree& tree, Endpoint endpoint) {
  const Json& body = tree.json;
  FUZZ_CHECK(facts.model == text_of(find(body, "model")), "the last model counts");
  FUZZ_CHECK(facts.rid == text_of(find(body, "rid")), "the last rid counts");
  const Json* stream = find(body, "stream");
  FUZZ_CHECK(facts.stream == (stream != nullptr && *stream == true), "the last stream counts");
  FUZZ_CHECK(facts.max_tokens == tokens_of(body), "the limits are those of the tree");
  if (!facts.rank_is_no_integer) {
    const auto routed = integer(find(body, "routed_dp_rank"));
    FUZZ_CHECK(facts.rank == (routed ? routed : integer(find(body, "data_parallel_rank"))), "the rank is the tree's");
  }
  // Where a key comes twice, the tree has its value in the place of the first and the text in that of the last.
  if (!tree.repeats_a_key) FUZZ_CHECK(facts.routing_text == prompt_of(body, endpoint), "the prompt is the tree's");
}

void check_changes(const std::string& body, const BodyFacts& facts, const Tree& tree, uint8_t choice) {
  gateway::BodyChanges changes;
  if (choice & 1) changes.rank = choice;
  if (choice & 2) changes.model = std::string("a \"name\"\\") + static_cast<char>(choice % 64 + 1) + "\xC3\xA9";
  if (facts.rank_is_no_integer || !changes.any()) return;
  auto expected = tree.json;
  if (changes.rank) expected["routed_dp_rank"] = expected["data_parallel_rank"] = *changes.rank;
  if (changes.model && expected.contains("model")) expected["model"] = *changes.model;
  const auto changed = parse(gateway::changed_body(body, facts, changes));
  FUZZ_CHECK(changed, "a changed body is JSON");
  // Trees that do not mind the order: what is added stands first.
  FUZZ_CHECK(nlohmann::json(changed->json) == nlohmann::json(expected), "nothing else is changed");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const auto endpoint = static_cast<Endpoint>(input.byte() % gateway::kNumEndpoints);
  const uint8_t choice = input.byte();
  const std::string text(input.rest());
  std::string body = text;
  const auto facts = gateway::scan_body(body, endpoint);
  FUZZ_CHECK(body == text, "the bytes are left alone");
  const auto tree = parse(text);
  if (!tree) return 0;  // it is read only as far as needed: some of what is not JSON goes on to the engine
  const Json* model = find(tree->json, "model");
  const Json* stream = find(tree->json, "stream");
  const bool good = (model == nullptr || model->is_null() || model->is_string()) &&
                    (stream == nullptr || stream->is_null() || stream->is_boolean());
  if (!facts.ok()) {
    FUZZ_CHECK(!good || tree->repeats_a_key, facts.error().message.c_str());
    return 0;
  }
  FUZZ_CHECK(good, "a field of another type is refused");
  check_facts(*facts, *tree, endpoint);
  check_changes(text, *facts, *tree, choice);
  return 0;
}
