#include "gateway/options.h"

namespace sluice::gateway {

const OptionTable<GatewayOptions>& gateway_option_table() {
  using O = GatewayOptions;
  static const OptionTable<O> table({
      {.name = "host", .field = &O::host, .value = std::string("0.0.0.0"), .read_by = "gateway/gateway",
       .group = "Listening", .help = "Address to listen on: a name, IPv4 or IPv6."},
      {.name = "port", .field = &O::port, .value = int64_t{30000}, .range = {0, 65535}, .read_by = "gateway/gateway",
       .group = "Listening", .help = "Port to listen on; 0 takes a free one and prints it."},
      {.name = "worker-urls", .field = &O::worker_urls, .value = StringList{}, .metavar = "URL",
       .read_by = "gateway/gateway", .group = "Workers", .help = "Workers to start with; more can be added with POST /workers."},
      {.name = "policy", .field = &O::policy, .value = std::string("cache_aware"),
       .choices = {"random", "round_robin", "power_of_two", "cache_aware"}, .read_by = "gateway/gateway",
       .group = "Routing", .help = "How a worker is chosen."},
      {.name = "cache-threshold", .aliases = {"cache-match-threshold"}, .field = &O::cache_threshold, .value = 0.3,
       .range = {0.0, 1.0}, .read_by = "gateway/policy/cache_aware", .group = "Routing",
       .help = "Affinity counts only if the share of the prompt that a worker holds is greater than this."},
      {.name = "balance-abs-threshold", .aliases = {"spill-abs-threshold"}, .field = &O::balance_abs_threshold,
       .value = int64_t{64}, .range = {0, 1e9}, .read_by = "gateway/policy/cache_aware", .group = "Routing",
       .help = "Imbalanced if max - min requests in flight is greater than this, and the relative rule holds too."},
      {.name = "balance-rel-threshold", .aliases = {"spill-rel-threshold"}, .field = &O::balance_rel_threshold,
       .value = 1.5, .range = {1.0, 1e9}, .read_by = "gateway/policy/cache_aware", .group = "Routing",
       .help = "Imbalanced if max is greater than min times this, and the absolute rule holds too."},
      {.name = "eviction-interval-secs", .aliases = {"eviction-interval"}, .field = &O::eviction_interval_secs,
       .value = int64_t{60}, .range = {1, 86400}, .read_by = "gateway/gateway", .group = "Routing",
       .help = "Seconds between two rounds of background ageing of the prefix index; the bounds never wait for it."},
      {.name = "max-tree-size", .field = &O::max_tree_size, .value = int64_t{1} << 26, .range = {1, 1e15},
       .read_by = "gateway/gateway", .group = "Routing",
       .help = "Characters of prefix text per worker that the prefix index holds at most."},
      {.name = "prefix-index-bytes", .field = &O::prefix_index_bytes, .value = int64_t{256} << 20, .range = {65536, 1e15},
       .read_by = "gateway/gateway", .group = "Routing",
       .help = "Hard bound on the memory of the whole prefix index, allocator overhead included."},
  });
  return table;
}

}  // namespace sluice::gateway
