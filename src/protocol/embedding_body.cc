#include "protocol/embedding_body.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "protocol/base64.h"
#include "protocol/prompts.h"

namespace sluice::protocol {
namespace {

using nlohmann::ordered_json;

// Query and items are texts, or all of them ids.
void read_pairs(Fields& fields, ScoreBody& out) {
  const auto query = read_prompts(fields, "query");
  const auto items = read_prompts(fields, "items");
  const bool item_first = fields.boolean("item_first", false);
  if (!fields.ok()) return;
  if (query.size() != 1) return fields.fail("query must be one text or one list of token ids");
  const Prompt& asked = query.front();
  const auto size_of = [](const Prompt& one) {
    return one.text.size() + (one.ids ? one.ids->size() * sizeof(int32_t) : 0);
  };
  size_t joined_bytes = 0;
  for (const Prompt& item : items) {
    if (asked.ids.has_value() != item.ids.has_value()) {
      return fields.fail("query and items must both be texts or both be token ids");
    }
    if (joined_bytes += size_of(asked) + size_of(item); joined_bytes > kMaxJoinedBytes) {
      return fields.fail(
          fmt::format("the query stands before every item, and together they are more than {} bytes; "
                      "send fewer items",
                      kMaxJoinedBytes));
    }
    const Prompt& first = item_first ? item : asked;
    const Prompt& second = item_first ? asked : item;
    Prompt joined{.text = first.text + second.text, .ids = first.ids};
    if (joined.ids) joined.ids->insert(joined.ids->end(), second.ids->begin(), second.ids->end());
    out.prompts.push_back(std::move(joined));
  }
}

bool is_blank(std::string_view text) { return text.find_first_not_of(" \t\r\n\v\f") == std::string_view::npos; }

}  // namespace

Result<EmbeddingBody> parse_embeddings_body(std::string_view text) {
  SLUICE_TRY(const auto json, parse_object(text));
  Fields fields(json);
  EmbeddingBody out;
  refuse_out_of_scope(fields);
  out.model = fields.text("model", "default");
  out.prompts = read_prompts(fields, "input");
  const auto format = fields.text("encoding_format", "float");
  if (format != "float" && format != "base64") fields.fail("encoding_format must be \"float\" or \"base64\"");
  out.base64 = format == "base64";
  out.dimensions = fields.integer("dimensions", {.min = 1, .max = INT32_MAX});
  fields.text("user");
  out.routing = read_routing(fields);
  if (!fields.ok()) return fields.error();
  return out;
}

Result<EmbeddingBody> parse_encode_body(std::string_view text) {
  SLUICE_TRY(const auto json, parse_object(text));
  Fields fields(json);
  EmbeddingBody out;
  refuse_out_of_scope(fields);
  if (fields.given("text") == fields.given("input_ids")) {
    fields.fail("exactly one of text and input_ids must be given");
  } else {
    const char* name = fields.given("text") ? "text" : "input_ids";
    out.prompts = read_prompts(fields, name);
    const auto* value = fields.find(name);
    out.list = value->is_array() && !value->empty() && !value->front().is_number();
  }
  out.dimensions = fields.integer("dimensions", {.min = 1, .max = INT32_MAX});
  out.routing = read_routing(fields);
  if (!fields.ok()) return fields.error();
  return out;
}

Result<ScoreBody> parse_score_body(std::string_view text) {
  SLUICE_TRY(const auto json, parse_object(text));
  Fields fields(json);
  ScoreBody out;
  refuse_out_of_scope(fields);
  out.model = fields.text("model", "default");
  read_pairs(fields, out);
  out.label_token_ids = fields.token_ids("label_token_ids");
  if (fields.ok() && out.label_token_ids.empty())
    fields.fail("label_token_ids must be a list of at least one token id");
  if (out.label_token_ids.size() > static_cast<size_t>(kMaxTopLogprobs)) {
    fields.fail(fmt::format("label_token_ids must hold at most {} token ids", kMaxTopLogprobs));
  }
  out.apply_softmax = fields.boolean("apply_softmax", false);
  out.routing = read_routing(fields);
  if (!fields.ok()) return fields.error();
  return out;
}

Result<EmbeddingBody> parse_classify_body(std::string_view text) {
  SLUICE_TRY(const auto json, parse_object(text));
  Fields fields(json);
  EmbeddingBody out;
  refuse_out_of_scope(fields);
  out.model = fields.text("model", "default");
  out.prompts = read_prompts(fields, "input");
  for (const Prompt& prompt : out.prompts) {
    if (!prompt.ids && is_blank(prompt.text)) fields.fail("input must not hold texts of blanks alone");
  }
  fields.text("user");
  out.routing = read_routing(fields);
  if (!fields.ok()) return fields.error();
  return out;
}

Result<RerankBody> parse_rerank_body(std::string_view text) {
  SLUICE_TRY(const auto json, parse_object(text));
  Fields fields(json);
  RerankBody out;
  refuse_out_of_scope(fields);
  out.query = fields.text("query");
  if (is_blank(out.query)) fields.fail("query must be a text that is not blank");
  const auto* documents = fields.find("documents");
  if (documents == nullptr || !documents->is_array() || documents->empty() || documents->size() > kMaxBatch) {
    fields.fail(fmt::format("documents must be a list of 1 to {} texts", kMaxBatch));
  } else {
    out.documents = fields.texts("documents");
  }
  for (const auto& document : out.documents) {
    if (is_blank(document)) fields.fail("documents must not hold texts of blanks alone");
  }
  if (fields.given("instruct")) out.instruct = fields.text("instruct");
  out.top_n = fields.integer("top_n", {.min = 1, .max = INT32_MAX});
  out.return_documents = fields.boolean("return_documents", true);
  out.routing = read_routing(fields);
  if (!fields.ok()) return fields.error();
  return out;
}

ordered_json rerank_messages(const std::string& query, const std::string& document) {
  auto out = ordered_json::array();
  for (const auto& text : {query, document}) out.push_back({{"role", "user"}, {"content", text}});
  return out;
}

std::vector<double> softmax(std::span<const float> scores) {
  std::vector<double> out(scores.begin(), scores.end());
  if (out.empty()) return out;
  const double top = *std::max_element(out.begin(), out.end());
  double sum = 0;
  for (double& x : out) sum += x = std::exp(x - top);
  for (double& x : out) x /= sum;
  return out;
}

std::vector<float> shortened(std::span<const float> embedding, std::optional<int64_t> dimensions) {
  const auto n = static_cast<size_t>(std::min<int64_t>(dimensions.value_or(INT64_MAX), std::ssize(embedding)));
  std::vector<float> out(embedding.begin(), embedding.begin() + static_cast<std::ptrdiff_t>(n));
  if (n == embedding.size()) return out;
  double square = 0;
  for (const float x : out) square += static_cast<double>(x) * static_cast<double>(x);
  const auto scale = static_cast<float>(square > 0 ? 1 / std::sqrt(square) : 0);
  for (float& x : out) x *= scale;
  return out;
}

ordered_json embedding_json(std::span<const float> embedding, bool base64) {
  if (base64) return base64_of({reinterpret_cast<const char*>(embedding.data()), embedding.size_bytes()});
  auto out = ordered_json::array();
  for (const float x : embedding) out.push_back(x);
  return out;
}

}  // namespace sluice::protocol
