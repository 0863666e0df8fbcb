// In which order requests that wait are admitted: a scheduling policy. A value in, a value out: it counts nothing and
// remembers nothing, so that the same queue gives the same order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string_view>
#include <vector>

namespace sluice::engine {

// A waiting request as a policy sees it.
struct WaitingRequest {
  int64_t max_new_tokens = 0;
  int64_t urgency = 0;           // its priority, larger is sooner; 0 for all without priority scheduling
  std::string_view routing_key;  // empty: none
  // Of its longest cached prefix, for policies that go by the cache: tokens, and the nodes of the path from the root
  // on.
  int64_t cached_tokens = 0;
  std::vector<const void*> path;
};

struct QueueView {
  std::span<const WaitingRequest> waiting;                // by arrival
  std::map<std::string_view, int64_t> running_per_key{};  // running requests of each routing key
  uint64_t round = 0;                                     // number of the step, for a policy that draws
};

struct SchedulePolicy {
  std::string_view name;
  bool by_cache = false;            // looks at cached prefixes; without a prefix cache it is fcfs
  bool by_priority = false;         // heeds urgency: may be used with priority scheduling
  size_t longest_queue = SIZE_MAX;  // requests, beyond which it is fcfs
  // Places in `waiting`, each once, the first to be admitted first.
  std::vector<size_t> (*order)(const QueueView& queue);
  std::string_view help;
};

// fcfs is the first.
std::span<const SchedulePolicy> schedule_policies();
std::vector<std::string_view> schedule_policy_names();
// Null if there is none of that name.
const SchedulePolicy* find_schedule_policy(std::string_view name);

}  // namespace sluice::engine
