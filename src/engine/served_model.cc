#include "engine/served_model.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "engine/tokenizer_files.h"
#include "tensor/gguf.h"
#include "tokenizer/files.h"

namespace sluice::engine {
namespace {

namespace fs = std::filesystem;

// Null where the file does not exist.
Result<nlohmann::json> read_json(const fs::path& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return nlohmann::json();
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (in) text << in.rdbuf();
  if (!in || in.bad()) return Error{ErrorCode::kNotFound, fmt::format("cannot read {}", path.string())};
  auto json = nlohmann::json::parse(std::move(text).str(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Error{ErrorCode::kProtocol, fmt::format("{}: not a JSON object", path.string())};
  return json;
}

Result<models::ModelConfig> load_config(const std::string& path) {
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) {
    SLUICE_TRY(const auto file, tensor::GgufFile::open(path));
    return models::config_from_gguf(*file);
  }
  SLUICE_TRY(const auto config, read_json(fs::path(path) / "config.json"));
  if (config.is_null()) return Error{ErrorCode::kNotFound, fmt::format("{} has no config.json", path)};
  SLUICE_TRY(const auto generation, read_json(fs::path(path) / "generation_config.json"));
  return models::config_from_json(config, generation);
}

}  // namespace

Result<ServedModel> load_served_model(const ServedModelFiles& files) {
  ServedModel out;
  out.name = files.name.empty() ? files.model_path : files.name;
  out.path = files.model_path;
  out.tokenizer_path = files.tokenizer_file == files.model_file ? files.model_path : files.tokenizer_file;
  SLUICE_TRY(out.config, load_config(files.model_file));
  SLUICE_TRY(out.tokenizer, load_tokenizer(files.tokenizer_file));
  SLUICE_TRY(const auto source,
             tokenizer::load_chat_template(files.tokenizer_file, *out.tokenizer, files.chat_template));
  if (!source.empty()) {
    SLUICE_TRY(out.chat_template, tokenizer::ChatTemplate::parse(source));
  }
  return out;
}

}  // namespace sluice::engine
