#include "engine/tokenizer_files.h"

#include <filesystem>

#include "tensor/gguf.h"
#include "tokenizer/files.h"

namespace sluice::engine {
namespace {

template <class To>
std::optional<To> optional_value(const tensor::GgufFile& file, std::string_view key) {
  using Stored = std::conditional_t<std::is_same_v<To, bool>, bool, int64_t>;
  if (const auto* value = file.get<Stored>(key)) return static_cast<To>(*value);
  return std::nullopt;
}

Result<tokenizer::Vocabulary> vocabulary_of(const tensor::GgufFile& file) {
  tokenizer::Vocabulary out;
  if (const auto* model = file.get<std::string>("tokenizer.ggml.model")) out.model = *model;
  if (const auto* pre = file.get<std::string>("tokenizer.ggml.pre")) out.pre_tokenizer = *pre;
  const auto* tokens = file.get<std::vector<std::string>>("tokenizer.ggml.tokens");
  if (tokens == nullptr) {
    return Error{ErrorCode::kProtocol, fmt::format("{} has no vocabulary (tokenizer.ggml.tokens)", file.path())};
  }
  out.tokens = *tokens;
  if (const auto* types = file.get<std::vector<int64_t>>("tokenizer.ggml.token_type")) {
    out.token_types.assign(types->begin(), types->end());
  }
  if (const auto* merges = file.get<std::vector<std::string>>("tokenizer.ggml.merges")) out.merges = *merges;
  if (const auto* scores = file.get<std::vector<double>>("tokenizer.ggml.scores")) {
    out.scores.assign(scores->begin(), scores->end());
  }
  out.add_space_prefix = optional_value<bool>(file, "tokenizer.ggml.add_space_prefix").value_or(true);
  out.bos_id = optional_value<int32_t>(file, "tokenizer.ggml.bos_token_id");
  out.eos_id = optional_value<int32_t>(file, "tokenizer.ggml.eos_token_id");
  out.unk_id = optional_value<int32_t>(file, "tokenizer.ggml.unknown_token_id");
  out.pad_id = optional_value<int32_t>(file, "tokenizer.ggml.padding_token_id");
  out.add_bos = optional_value<bool>(file, "tokenizer.ggml.add_bos_token");
  out.add_eos = optional_value<bool>(file, "tokenizer.ggml.add_eos_token");
  if (const auto* chat = file.get<std::string>("tokenizer.chat_template")) out.chat_template = *chat;
  return out;
}

}  // namespace

Result<std::shared_ptr<const tokenizer::Tokenizer>> load_tokenizer(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return tokenizer::load_tokenizer(path);
  SLUICE_TRY(const auto file, tensor::GgufFile::open(path));
  SLUICE_TRY(const auto vocabulary, vocabulary_of(*file));
  return tokenizer::Tokenizer::from_vocabulary(vocabulary);
}

}  // namespace sluice::engine
