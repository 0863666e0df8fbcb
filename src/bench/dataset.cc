#include "bench/dataset.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "tokenizer/chat_template.h"
#include "tokenizer/files.h"

namespace sluice::bench {
namespace {

using Json = nlohmann::ordered_json;

template <class T>
void shuffle(std::vector<T>& items, Rng& rng) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[rng.below(i)]);
}

struct Conversation {
  std::string question;
  std::string answer;
};

Result<std::string> read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (in) text << in.rdbuf();
  if (!in || in.bad()) return Error{ErrorCode::kNotFound, fmt::format("--dataset-path: cannot read {}", path)};
  return std::move(text).str();
}

// The text of one turn, whichever of the two names it has.
std::optional<std::string> text_of(const Json& turn) {
  if (!turn.is_object()) return std::nullopt;
  for (const char* name : {"content", "value"}) {
    const auto found = turn.find(name);
    if (found != turn.end() && found->is_string()) return found->get<std::string>();
  }
  return std::nullopt;
}

// The first question and answer; nothing if the record has no two turns of text.
std::optional<Conversation> conversation_of(const Json& record) {
  if (!record.is_object()) return std::nullopt;
  for (const char* name : {"conversations", "conversation"}) {
    const auto turns = record.find(name);
    if (turns == record.end() || !turns->is_array() || turns->size() < 2) continue;
    auto question = text_of((*turns)[0]);
    auto answer = text_of((*turns)[1]);
    if (question && answer) return Conversation{std::move(*question), std::move(*answer)};
  }
  return std::nullopt;
}

Result<std::vector<Json>> records_of(const std::string& path, bool lines) {
  SLUICE_TRY(const std::string text, read_file(path));
  std::vector<Json> records;
  if (!lines) {
    Json list = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!list.is_array()) {
      return Error{ErrorCode::kProtocol, fmt::format("{}: not a JSON list of conversations; a file with one JSON "
                                                     "object per line is for --dataset-name custom",
                                                     path)};
    }
    for (auto& record : list) records.push_back(std::move(record));
    return records;
  }
  std::istringstream in(text);
  std::string line;
  for (size_t number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    Json record = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (record.is_discarded()) {
      return Error{ErrorCode::kProtocol, fmt::format("{}:{}: not JSON", path, number)};
    }
    records.push_back(std::move(record));
  }
  return records;
}

Result<std::vector<Conversation>> read_conversations(const std::string& path, bool lines) {
  SLUICE_TRY(const auto records, records_of(path, lines));
  std::vector<Conversation> out;
  for (const auto& record : records) {
    if (auto conversation = conversation_of(record)) out.push_back(std::move(*conversation));
  }
  if (out.empty()) {
    return Error{
        ErrorCode::kProtocol,
        fmt::format("{}: none of its {} records has \"conversations\" with two turns of text", path, records.size())};
  }
  return out;
}

// Wraps questions in the model's template, without the first token of a text if the server adds that again.
class Wrapper {
 public:
  // `path`: where the tokenizer was read from; a template may lie beside it.
  static Result<Wrapper> make(const std::string& path, const tokenizer::Tokenizer& tokenizer) {
    SLUICE_TRY(const std::string text, tokenizer::load_chat_template(path, tokenizer, ""));
    if (text.empty()) return Error{ErrorCode::kBadOption, "--apply-chat-template: the tokenizer has no chat template"};
    SLUICE_TRY(auto parsed, tokenizer::ChatTemplate::parse(text));
    Wrapper out(std::move(parsed), tokenizer.special_tokens());
    const auto bos = out.special_.find("bos_token");
    const auto first = tokenizer.encode("", /*add_special=*/true);
    if (bos != out.special_.end() && !first.empty() && first.front() == tokenizer.id_of(bos->second)) {
      out.added_ = bos->second;
    }
    return out;
  }

  Result<std::string> wrap(const std::string& question) const {
    Json context = {{"messages", {{{"role", "user"}, {"content", question}}}}, {"add_generation_prompt", true}};
    for (const auto& [name, text] : special_) context[name] = text;
    SLUICE_TRY(auto text, template_.render(context));
    if (text.starts_with(added_)) text.erase(0, added_.size());
    return text;
  }

 private:
  Wrapper(tokenizer::ChatTemplate parsed, std::map<std::string, std::string> special)
      : template_(std::move(parsed)), special_(std::move(special)) {}

  tokenizer::ChatTemplate template_;
  std::map<std::string, std::string> special_;
  std::string added_;  // by the server, before every text
};

Result<std::vector<Item>> from_conversations(const BenchOptions& options, const TextSource& texts, Rng& rng) {
  SLUICE_TRY(auto conversations, read_conversations(options.dataset_path, /*lines=*/options.dataset_name == "custom"));
  std::optional<Wrapper> wrapper;
  if (options.apply_chat_template) {
    SLUICE_TRY(wrapper, Wrapper::make(*options.tokenizer, *texts.tokenizer()));
  }
  shuffle(conversations, rng);
  std::vector<Item> items;
  for (auto& conversation : conversations) {
    if (static_cast<int64_t>(items.size()) == options.num_prompts) break;
    std::string prompt = std::move(conversation.question);
    if (wrapper) {
      SLUICE_TRY(prompt, wrapper->wrap(prompt));
    }
    const int64_t prompt_len = texts.count(prompt);
    const int64_t output_len = options.sharegpt_output_len.value_or(texts.count(conversation.answer));
    if (prompt_len < 2 || output_len < 2) continue;  // too short to say anything
    if (options.sharegpt_context_len && prompt_len + output_len > *options.sharegpt_context_len) continue;
    items.push_back({.turns = {std::move(prompt)}, .prompt_len = prompt_len, .output_len = output_len});
  }
  if (items.empty()) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("{}: no conversation is left of {}: they are shorter than two tokens "
                             "or longer than --sharegpt-context-len",
                             options.dataset_path, conversations.size())};
  }
  return items;
}

Result<std::vector<Item>> from_random(const BenchOptions& options, const TextSource& texts, Rng& rng) {
  const bool consecutive = options.dataset_name == "random-ids";
  std::vector<Conversation> conversations;
  if (!consecutive && !options.dataset_path.empty()) {
    SLUICE_TRY(conversations, read_conversations(options.dataset_path, /*lines=*/false));
    std::erase_if(conversations, [&](const auto& c) { return texts.count(c.question) == 0; });
    if (conversations.empty()) {
      return Error{ErrorCode::kProtocol, fmt::format("{}: every question is empty", options.dataset_path)};
    }
    shuffle(conversations, rng);
  }
  std::vector<Item> items;
  for (int64_t i = 0; i < options.num_prompts; ++i) {
    int64_t length = draw_length(rng, options.random_input_len, options.random_range_ratio);
    const int64_t output_len = draw_length(rng, options.random_output_len, options.random_range_ratio);
    // The server adds its own tokens around a text; the sum is what was asked for.
    if (!options.tokenize_prompt) length = std::max<int64_t>(1, length - texts.added_tokens());
    Passage passage;
    if (consecutive) {
      passage = texts.sequence(rng.next(), length);
    } else if (conversations.empty()) {
      passage = texts.random(rng, length);
    } else {
      passage = texts.fit(conversations[static_cast<size_t>(i) % conversations.size()].question, length);
    }
    Item item{.prompt_len = passage.tokens, .output_len = output_len};
    if (options.tokenize_prompt) {
      item.ids = std::move(passage.ids);
    } else {
      item.prompt_len += texts.added_tokens();
      item.turns = {std::move(passage.text)};
    }
    items.push_back(std::move(item));
  }
  return items;
}

std::vector<Item> from_shared_prefixes(const BenchOptions& options, const TextSource& texts, Rng& rng) {
  const auto draw = [&](int64_t full) { return draw_length(rng, full, options.gsp_range_ratio); };
  std::vector<Item> items;
  for (int64_t group = 0; group < options.gsp_num_groups; ++group) {
    const std::string system = texts.random(rng, draw(options.gsp_system_prompt_len)).text;
    for (int64_t i = 0; i < options.gsp_prompts_per_group; ++i) {
      Item item;
      for (int64_t turn = 0; turn < options.gsp_num_turns; ++turn) {
        item.turns.push_back(texts.random(rng, draw(options.gsp_question_len)).text);
      }
      item.turns[0] = system + "\n\n" + item.turns[0];
      item.output_len = draw(options.gsp_output_len);
      if (!options.gsp_fast_prepare) item.prompt_len = texts.count(item.turns[0]);
      if (options.gsp_send_routing_key) item.routing_key = fmt::format("seed{}-group{}", options.seed, group);
      items.push_back(std::move(item));
    }
  }
  if (!options.gsp_ordered) shuffle(items, rng);
  return items;
}

std::vector<Item> from_fixed(const BenchOptions& options, const TextSource& texts) {
  const Item item{.turns = {options.fixed_prompt},
                  .prompt_len = texts.count(options.fixed_prompt),
                  .output_len = options.fixed_output_len};
  return std::vector<Item>(static_cast<size_t>(options.num_prompts), item);
}

}  // namespace

int64_t draw_length(Rng& rng, int64_t full, double ratio) {
  const int64_t least = std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(full) * ratio));
  return least + static_cast<int64_t>(rng.below(static_cast<uint64_t>(full - least) + 1));
}

Result<std::vector<Item>> make_dataset(const BenchOptions& options, const TextSource& texts, Rng& rng) {
  if (options.dataset_name == "generated-shared-prefix") return from_shared_prefixes(options, texts, rng);
  if (options.dataset_name == "fixed") return from_fixed(options, texts);
  if (options.dataset_name == "random" || options.dataset_name == "random-ids") {
    return from_random(options, texts, rng);
  }
  return from_conversations(options, texts, rng);
}

}  // namespace sluice::bench
