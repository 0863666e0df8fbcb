// How a request finds its replica: a load-balance method. A value in, a value out: it counts nothing and remembers
// nothing; the DataParallelController counts what it dispatched and says where the last request went.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace sluice::engine {

// One rank as the dispatcher knows it. A rank that is not active gets nothing.
struct RankLoad {
  bool active = false;
  int64_t requests = 0;  // running, waiting and on their way
  int64_t tokens = 0;    // KV slots in use, sequences that wait, prompts on their way
  int64_t waiting = 0;   // of those: not in use yet
  int64_t capacity = 0;  // KV slots; 0: not known
  // Of the request that is dispatched, for methods that look at prefixes: its prompt's tokens, and those of them that
  // the rank is believed to have cached.
  int64_t prompt = 0;
  int64_t cached = 0;
};

struct LoadBalanceRow {
  std::string_view name;
  std::vector<std::string_view> aliases;
  std::vector<std::string_view> old_names;  // accepted, with a line in the log
  // `previous` is the rank of the last choice, -1 before the first. Nothing if no rank is active.
  std::optional<int64_t> (*choose)(std::span<const RankLoad> ranks, int64_t previous);
  std::string_view help;
  bool looks_at_prefixes = false;  // RankLoad::prompt and cached are set
};

const std::vector<LoadBalanceRow>& load_balance_methods();

// Every name that --load-balance-method takes: names and aliases first, then the old ones.
std::vector<std::string_view> load_balance_names();
// The row with this name, alias or old name; null if there is none.
const LoadBalanceRow* find_load_balance(std::string_view name);
bool is_old_name(const LoadBalanceRow& row, std::string_view name);

}  // namespace sluice::engine
