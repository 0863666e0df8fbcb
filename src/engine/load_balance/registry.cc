#include <algorithm>

#include "engine/load_balance/cache_aware.h"
#include "engine/load_balance/method.h"
#include "engine/load_balance/round_robin.h"
#include "engine/load_balance/total_requests.h"
#include "engine/load_balance/total_tokens.h"

namespace sluice::engine {

const std::vector<LoadBalanceRow>& load_balance_methods() {
  static const std::vector<LoadBalanceRow> rows = {
      {"round_robin", {"auto"}, {"decode_round_robin"}, choose_round_robin, "the replicas in turn"},
      {"total_requests", {}, {"shortest_queue"}, choose_total_requests, "fewest requests"},
      {"total_tokens", {}, {"minimum_tokens"}, choose_total_tokens, "fewest tokens, then fewest requests"},
      {"cache_aware", {}, {}, choose_cache_aware, "least to compute, given what is cached", /*looks_at_prefixes=*/true},
  };
  return rows;
}

std::vector<std::string_view> load_balance_names() {
  std::vector<std::string_view> names;
  std::vector<std::string_view> old_names;
  for (const auto& row : load_balance_methods()) {
    names.insert(names.end(), row.aliases.begin(), row.aliases.end());
    names.push_back(row.name);
    old_names.insert(old_names.end(), row.old_names.begin(), row.old_names.end());
  }
  names.insert(names.end(), old_names.begin(), old_names.end());
  return names;
}

bool is_old_name(const LoadBalanceRow& row, std::string_view name) {
  return std::ranges::find(row.old_names, name) != row.old_names.end();
}

const LoadBalanceRow* find_load_balance(std::string_view name) {
  for (const auto& row : load_balance_methods()) {
    if (row.name == name || std::ranges::find(row.aliases, name) != row.aliases.end() || is_old_name(row, name)) {
      return &row;
    }
  }
  return nullptr;
}

}  // namespace sluice::engine
