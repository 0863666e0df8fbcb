#include "engine/schedule_policy.h"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <unordered_map>

#include "base/rng.h"

namespace sluice::engine {
namespace {

std::vector<size_t> by_arrival(const QueueView& queue) {
  std::vector<size_t> order(queue.waiting.size());
  std::iota(order.begin(), order.end(), size_t{0});
  return order;
}

// Ascending by `key`, equals by arrival.
template <class Key>
std::vector<size_t> sorted(const QueueView& queue, Key key) {
  auto order = by_arrival(queue);
  std::ranges::stable_sort(order, {}, [&](size_t i) { return key(queue.waiting[i]); });
  return order;
}

std::vector<size_t> order_fcfs(const QueueView& queue) {
  return sorted(queue, [](const WaitingRequest& r) { return -r.urgency; });
}

std::vector<size_t> order_lof(const QueueView& queue) {
  return sorted(queue, [](const WaitingRequest& r) { return std::pair(-r.urgency, -r.max_new_tokens); });
}

std::vector<size_t> order_lpm(const QueueView& queue) {
  return sorted(queue, [](const WaitingRequest& r) { return -r.cached_tokens; });
}

std::vector<size_t> order_random(const QueueView& queue) {
  auto order = by_arrival(queue);
  Rng rng(queue.round);
  for (size_t n = order.size(); n > 1; --n) std::swap(order[n - 1], order[rng.below(n)]);
  return order;
}

// Keys that run already first, the most frequent of them before the others; then the rest by arrival.
std::vector<size_t> order_routing_key(const QueueView& queue) {
  return sorted(queue, [&](const WaitingRequest& r) {
    const auto found = queue.running_per_key.find(r.routing_key);
    const bool runs = !r.routing_key.empty() && found != queue.running_per_key.end();
    return std::tuple(!runs, runs ? -found->second : 0, runs ? r.routing_key : std::string_view());
  });
}

// Depth first through the tree of prefixes, at each node into the subtree with the most waiting requests, so that those
// that share a prefix follow each other while it is in use. Those that end at a node come after those below it.
class SubtreeOrder {
 public:
  explicit SubtreeOrder(const QueueView& queue) {
    for (size_t i = 0; i < queue.waiting.size(); ++i) {
      const void* at = kRoot;
      ++nodes_[at].weight;
      for (const void* node : queue.waiting[i].path) {
        if (nodes_[node].weight++ == 0) nodes_[at].children.push_back(node);
        at = node;
      }
      nodes_[at].requests.push_back(i);
    }
  }

  std::vector<size_t> order() {
    std::vector<size_t> out;
    std::vector<std::pair<const void*, size_t>> path;  // with the next child to go into; chains are too long to recurse
    enter(path, kRoot);
    while (!path.empty()) {
      const Node& node = nodes_.at(path.back().first);
      if (path.back().second < node.children.size()) {
        enter(path, node.children[path.back().second++]);
      } else {
        out.insert(out.end(), node.requests.begin(), node.requests.end());
        path.pop_back();
      }
    }
    return out;
  }

 private:
  static constexpr const void* kRoot = nullptr;
  struct Node {
    int64_t weight = 0;  // requests here and below
    std::vector<const void*> children;
    std::vector<size_t> requests;
  };

  void enter(std::vector<std::pair<const void*, size_t>>& path, const void* node) {
    std::ranges::stable_sort(nodes_.at(node).children, {}, [&](const void* child) { return -nodes_.at(child).weight; });
    path.emplace_back(node, 0);
  }

  std::unordered_map<const void*, Node> nodes_;
};

std::vector<size_t> order_dfs_weight(const QueueView& queue) {
  if (queue.waiting.empty()) return {};
  return SubtreeOrder(queue).order();
}

constexpr size_t kAnyQueue = SIZE_MAX;

constexpr SchedulePolicy kPolicies[] = {
    {"fcfs", false, true, kAnyQueue, order_fcfs, "by arrival"},
    {"lpm", true, false, 128, order_lpm, "the longest cached prefix first; by arrival when more than 128 wait"},
    {"dfs-weight", true, false, kAnyQueue, order_dfs_weight, "requests that share a cached prefix one after another"},
    {"lof", false, true, kAnyQueue, order_lof, "the most output tokens asked for first"},
    {"random", false, false, kAnyQueue, order_random, "drawn anew at every step"},
    {"priority", false, true, kAnyQueue, order_fcfs, "fcfs with --enable-priority-scheduling"},
    {"routing-key", false, false, kAnyQueue, order_routing_key, "routing keys that run already first"},
};

}  // namespace

std::span<const SchedulePolicy> schedule_policies() { return kPolicies; }

std::vector<std::string_view> schedule_policy_names() {
  std::vector<std::string_view> names;
  for (const auto& policy : kPolicies) names.push_back(policy.name);
  return names;
}

const SchedulePolicy* find_schedule_policy(std::string_view name) {
  const auto* found = std::ranges::find(kPolicies, name, &SchedulePolicy::name);
  return found == std::end(kPolicies) ? nullptr : found;
}

}  // namespace sluice::engine
