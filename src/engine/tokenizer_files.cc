#include "engine/tokenizer_files.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tensor/gguf.h"

namespace sluice::engine {
namespace {

namespace fs = std::filesystem;

Result<std::string> read_text(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return Error{ErrorCode::kNotFound, fmt::format("cannot read {}", path.string())};
  std::ostringstream out;
  out << in.rdbuf();
  if (in.bad()) return Error{ErrorCode::kNotFound, fmt::format("cannot read {}", path.string())};
  return std::move(out).str();
}

bool has_file(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

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
  const fs::path root(path);
  std::error_code ignored;
  if (!fs::is_directory(root, ignored)) {
    SLUICE_TRY(const auto file, tensor::GgufFile::open(path));
    SLUICE_TRY(const auto vocabulary, vocabulary_of(*file));
    return tokenizer::Tokenizer::from_vocabulary(vocabulary);
  }
  SLUICE_TRY(const auto json, read_text(root / "tokenizer.json"));
  std::string config;
  if (has_file(root / "tokenizer_config.json")) {
    SLUICE_TRY(const auto text, read_text(root / "tokenizer_config.json"));
    // Published files say "no limit" with an integer of 31 digits (model_max_length), which simdjson refuses.
    auto members = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!members.is_object()) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("{}: not a JSON object", (root / "tokenizer_config.json").string())};
    }
    members.erase("model_max_length");
    config = members.dump();
  }
  return tokenizer::Tokenizer::from_json(json, config);
}

Result<std::string> load_chat_template(const std::string& path, const tokenizer::Tokenizer& tokenizer,
                                       const std::string& override_path) {
  if (!override_path.empty()) return read_text(override_path);
  const fs::path beside = fs::path(path) / "chat_template.jinja";
  if (has_file(beside)) return read_text(beside);
  return tokenizer.chat_template();
}

}  // namespace sluice::engine
