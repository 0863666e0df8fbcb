#include "models/locate.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace sluice::models {
namespace {

namespace fs = std::filesystem;

fs::path hub_cache() {
  const auto variable = [](const char* name) -> fs::path {
    const char* value = std::getenv(name);
    return value == nullptr ? fs::path() : fs::path(value);
  };
  if (const fs::path cache = variable("HF_HUB_CACHE"); !cache.empty()) return cache;
  if (const fs::path home = variable("HF_HOME"); !home.empty()) return home / "hub";
  if (const fs::path home = variable("HOME"); !home.empty()) return home / ".cache" / "huggingface" / "hub";
  return {};
}

// The snapshot of a repository that its refs/main names, else any.
fs::path snapshot_of(const fs::path& repository) {
  std::error_code ignored;
  std::string revision;
  std::ifstream(repository / "refs" / "main") >> revision;
  if (!revision.empty() && revision.find('/') == std::string::npos) {
    const fs::path snapshot = repository / "snapshots" / revision;
    if (fs::is_directory(snapshot, ignored)) return snapshot;
  }
  for (const auto& entry : fs::directory_iterator(repository / "snapshots", ignored)) {
    if (entry.is_directory(ignored)) return entry.path();
  }
  return {};
}

}  // namespace

Result<std::string> locate_model(const std::string& model_path) {
  std::error_code ignored;
  if (model_path.empty()) return Error{ErrorCode::kBadOption, "--model-path is empty"};
  const fs::path path(model_path);
  if (fs::is_regular_file(path, ignored)) {
    if (path.extension() != ".gguf") {
      return Error{
          ErrorCode::kBadOption,
          fmt::format("--model-path {}: a file must be a .gguf file; for safetensors give the folder", model_path)};
    }
    return fs::absolute(path).string();
  }
  if (fs::is_directory(path, ignored)) {
    if (!fs::exists(path / "config.json", ignored)) {
      return Error{ErrorCode::kNotFound, fmt::format("--model-path {}: the folder has no config.json", model_path)};
    }
    return fs::absolute(path).string();
  }
  // "org/name": what the hub's own tools download.
  const size_t slash = model_path.find('/');
  const bool hub_name = slash != std::string::npos && slash > 0 && slash + 1 < model_path.size() &&
                        model_path.find('/', slash + 1) == std::string::npos && model_path[0] != '.';
  if (hub_name) {
    const fs::path cache = hub_cache();
    const fs::path repository =
        cache / fmt::format("models--{}--{}", model_path.substr(0, slash), model_path.substr(slash + 1));
    if (const fs::path snapshot = snapshot_of(repository); !snapshot.empty()) {
      if (fs::exists(snapshot / "config.json", ignored)) return snapshot.string();
    }
    return Error{ErrorCode::kNotFound,
                 fmt::format("--model-path {}: not a file or folder, and not in the cache {}; download it with: "
                             "huggingface-cli download {}",
                             model_path, cache.string(), model_path)};
  }
  return Error{ErrorCode::kNotFound,
               fmt::format("--model-path {}: no such file or folder; give a folder with config.json, "
                           "a .gguf file, or a hub name such as org/name",
                           model_path)};
}

}  // namespace sluice::models
