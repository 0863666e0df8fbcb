// Bodies and answers of /v1/embeddings, /encode, /classify, /v1/classify, /v1/score and /v1/rerank.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "protocol/generate_body.h"

namespace sluice::protocol {

struct EmbeddingBody {
  std::string model = "default";
  std::vector<Prompt> prompts;
  bool list = false;                  // /encode: the answer is one
  bool base64 = false;                // encoding_format
  std::optional<int64_t> dimensions;  // the first so many, brought to unit length again
  Routing routing;
};
Result<EmbeddingBody> parse_embeddings_body(std::string_view text);
// The native form: text or input_ids.
Result<EmbeddingBody> parse_encode_body(std::string_view text);

struct ScoreBody {
  std::string model = "default";
  std::vector<Prompt> prompts;  // query and item together, both as text or both as ids
  std::vector<int32_t> label_token_ids;
  bool apply_softmax = false;
  Routing routing;
};
inline constexpr size_t kMaxJoinedBytes = size_t{64} << 20;  // of all prompts together
Result<ScoreBody> parse_score_body(std::string_view text);

// input as in /v1/embeddings; no text of blanks alone.
Result<EmbeddingBody> parse_classify_body(std::string_view text);

struct RerankBody {
  std::string query;
  std::vector<std::string> documents;
  std::optional<std::string> instruct;  // what makes a document fit; absent: the template's own words
  std::optional<int64_t> top_n;         // answers, of the best documents; absent: all
  bool return_documents = true;
  std::vector<Prompt> prompts;  // of each document: made of the above by whom it concerns
  Routing routing;
};
Result<RerankBody> parse_rerank_body(std::string_view text);
// What a reranker's template sees: the query and the document.
nlohmann::ordered_json rerank_messages(const std::string& query, const std::string& document);

// Shares of the scores' exponentials, which add up to 1.
std::vector<double> softmax(std::span<const float> scores);
// The first `dimensions` of a vector, all if absent, as a vector of unit length.
std::vector<float> shortened(std::span<const float> embedding, std::optional<int64_t> dimensions);
// A list of numbers, or base64 of the floats as they lie in memory.
nlohmann::ordered_json embedding_json(std::span<const float> embedding, bool base64);

}  // namespace sluice::protocol
