#include "tokenizer/files.h"

#include <filesystem>
#include <fstream>
#include <sstream>

namespace sluice::tokenizer {
namespace {

namespace fs = std::filesystem;

Result<std::string> read_text(const fs::path& path) {
  std::error_code ignored;
  std::ifstream in(path, std::ios::binary);
  if (!in || fs::is_directory(path, ignored))
    return Error{ErrorCode::kNotFound, fmt::format("cannot read {}", path.string())};
  std::ostringstream out;
  out << in.rdbuf();
  if (in.bad()) return Error{ErrorCode::kNotFound, fmt::format("cannot read {}", path.string())};
  return std::move(out).str();
}

bool has_file(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

fs::path folder_of(const std::string& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored) ? fs::path(path).parent_path() : fs::path(path);
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> load_tokenizer(const std::string& path) {
  const fs::path root = folder_of(path);
  std::string config;
  if (has_file(root / "tokenizer_config.json")) {
    SLUICE_TRY(config, read_text(root / "tokenizer_config.json"));
  }
  using Make = Result<std::shared_ptr<const Tokenizer>> (*)(std::string_view, std::string_view);
  const std::pair<const char*, Make> files[] = {{"tokenizer.json", Tokenizer::from_json},
                                                {"tiktoken.model", Tokenizer::from_tiktoken},
                                                {"tokenizer.model", Tokenizer::from_sentencepiece}};
  for (const auto& [name, make] : files) {
    if (!has_file(root / name)) continue;
    SLUICE_TRY(const auto text, read_text(root / name));
    return make(text, config);
  }
  return Error{ErrorCode::kNotFound,
               fmt::format("{} has no tokenizer.json, tiktoken.model or tokenizer.model", root.string())};
}

Result<std::string> load_chat_template(const std::string& path, const Tokenizer& tokenizer,
                                       const std::string& override_path) {
  if (!override_path.empty()) return read_text(override_path);
  const fs::path beside = folder_of(path) / "chat_template.jinja";
  if (has_file(beside)) return read_text(beside);
  return tokenizer.chat_template();
}

}  // namespace sluice::tokenizer
