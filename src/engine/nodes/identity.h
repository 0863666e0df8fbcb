// Who a node of an instance is, and what all of them must have in common.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "engine/options.h"

namespace sluice::engine {

struct NodeIdentity {
  std::string version;    // of this program
  int64_t node = 0;       // --node-rank
  std::string host_name;  // for messages
  nlohmann::json flags;   // without those of a host, and without secrets
  std::string model;      // what the model's configuration is, in words: equal where it is the same
};

// `model_file` is where models/locate.h found the model.
NodeIdentity own_identity(const EngineOptions& options, const std::string& model_file);

// A hash of all that nodes must have in common.
uint64_t shared_configuration(const NodeIdentity& identity);

nlohmann::json to_json(const NodeIdentity& identity);
Result<NodeIdentity> node_identity_from_json(const nlohmann::json& json);

// What differs from node 0, a line for each: "--tp-size is 4 on node 0 and 2 on node 1 (host b)". Empty: nothing.
std::vector<std::string> differences(const NodeIdentity& first, const NodeIdentity& other);

// Flags that each host has for itself, in the spec of a rank that runs there.
void take_host_flags(EngineOptions& to, const EngineOptions& from);

}  // namespace sluice::engine
