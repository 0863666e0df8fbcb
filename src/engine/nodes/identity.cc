#include "engine/nodes/identity.h"

#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>

#include "kernels/kernels.h"

namespace sluice::engine {
namespace {

using nlohmann::json;

// Those of take_host_flags(), those of the front, and where files lie: the model is compared by what it is.
constexpr std::array kHostFlags = {"node_rank",
                                   "gloo_socket_ifname",
                                   "host",
                                   "port",
                                   "api_key",
                                   "admin_api_key",
                                   "ssl_certfile",
                                   "ssl_keyfile",
                                   "ssl_keyfile_password",
                                   "ssl_ca_certs",
                                   "log_level",
                                   "log_json",
                                   "threads",
                                   "model_path",
                                   "tokenizer_path",
                                   "mem_fraction_static",
                                   "chat_template",
                                   "weight_version"};

// "config.json of 812 bytes, 1f3a...": the start of a GGUF file has its configuration.
std::string model_in_words(const std::string& model_file) {
  const std::filesystem::path path(model_file);
  std::error_code ignored;
  const bool is_folder = std::filesystem::is_directory(path, ignored);
  const std::filesystem::path file = is_folder ? path / "config.json" : path;
  std::string text(1 << 16, '\0');
  std::ifstream in(file, std::ios::binary);
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  return fmt::format("{} of {} bytes, {:016x}", is_folder ? "config.json" : "a GGUF file",
                     std::filesystem::file_size(file, ignored), std::hash<std::string>{}(text));
}

std::string host_name() {
  char name[256] = "";
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "?";
}

std::string flag_name(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return "--" + name;
}

std::string shown(const json& flags, const std::string& name) {
  const auto at = flags.find(name);
  if (at == flags.end()) return "unknown";
  if (at->is_null()) return "not given";
  return at->is_string() ? at->get<std::string>() : at->dump();
}

}  // namespace

NodeIdentity own_identity(const EngineOptions& options, const std::string& model_file) {
  json flags = engine_options_to_json(options);
  for (const char* name : kHostFlags) flags.erase(name);
  // What the host's processor makes of it is computed with.
  if (options.dtype == "auto") flags["dtype"] = fmt::format("auto ({} there)", to_string(kernels::best_dtype()));
  return {.version = SLUICE_VERSION,
          .node = options.node_rank,
          .host_name = host_name(),
          .flags = std::move(flags),
          .model = model_in_words(model_file)};
}

uint64_t shared_configuration(const NodeIdentity& identity) {
  uint64_t hash = 0;
  for (const std::string& part : {identity.version, identity.flags.dump(), identity.model}) {
    hash = XXH64(part.data(), part.size(), hash);
  }
  return hash;
}

json to_json(const NodeIdentity& identity) {
  return {{"version", identity.version},
          {"node", identity.node},
          {"host_name", identity.host_name},
          {"flags", identity.flags},
          {"model", identity.model}};
}

Result<NodeIdentity> node_identity_from_json(const json& from) {
  try {
    return NodeIdentity{.version = from.at("version").get<std::string>(),
                        .node = from.at("node").get<int64_t>(),
                        .host_name = from.at("host_name").get<std::string>(),
                        .flags = from.at("flags"),
                        .model = from.at("model").get<std::string>()};
  } catch (const json::exception& e) {
    return Error{ErrorCode::kProtocol, fmt::format("a node that is none: {}", e.what())};
  }
}

std::vector<std::string> differences(const NodeIdentity& first, const NodeIdentity& other) {
  std::vector<std::string> found;
  const std::string who = fmt::format("node {} ({})", other.node, other.host_name);
  const auto compare = [&](std::string_view what, const std::string& a, const std::string& b) {
    if (a != b) found.push_back(fmt::format("{} is {} on node 0 and {} on {}", what, a, b, who));
  };
  compare("the version of sluice", first.version, other.version);
  compare("the model", first.model, other.model);
  json names = first.flags;
  if (other.flags.is_object()) names.update(other.flags);
  for (const auto& [name, ignored] : names.items()) {
    compare(flag_name(name), shown(first.flags, name), shown(other.flags, name));
  }
  return found;
}

void take_host_flags(EngineOptions& to, const EngineOptions& from) {
  to.node_rank = from.node_rank;
  to.threads = from.threads;
  to.mem_fraction_static = from.mem_fraction_static;
  to.log_level = from.log_level;
  to.log_json = from.log_json;
}

}  // namespace sluice::engine
