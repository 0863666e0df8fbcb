// The gateway's options (gateway-reference.md 2.2, 2.3, 1.3). One row each in options.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/options.h"

namespace sluice::gateway {

struct GatewayOptions {
  std::string host;
  int64_t port;
  StringList worker_urls;
  std::string policy;
  double cache_threshold;
  int64_t balance_abs_threshold;
  double balance_rel_threshold;
  int64_t eviction_interval_secs;
  int64_t max_tree_size;
  int64_t prefix_index_bytes;
};

const OptionTable<GatewayOptions>& gateway_option_table();

}  // namespace sluice::gateway
