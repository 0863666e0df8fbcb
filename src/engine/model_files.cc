#include "engine/model_files.h"

#include <fmt/format.h>

#include <filesystem>

#include "models/locate.h"

namespace sluice::engine {

Result<ModelFiles> find_model_files(const EngineOptions& options) {
  ModelFiles files;
  SLUICE_TRY(files.model, models::locate_model(options.model_path));
  files.tokenizer = files.model;
  if (!options.tokenizer_path) return files;
  std::error_code ignored;
  if (std::filesystem::exists(*options.tokenizer_path, ignored)) {
    files.tokenizer = std::filesystem::absolute(*options.tokenizer_path).string();
    return files;
  }
  auto located = models::locate_model(*options.tokenizer_path);
  if (!located.ok()) {
    return Error{ErrorCode::kNotFound,
                 fmt::format("--tokenizer-path {}: no such file or folder, nor a hub name in the local cache",
                             *options.tokenizer_path)};
  }
  files.tokenizer = std::move(*located);
  return files;
}

}  // namespace sluice::engine
