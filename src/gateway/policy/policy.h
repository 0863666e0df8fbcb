// A load-balancing policy: a value in, a value out. It counts nothing, retries nothing, updates no index and allocates
// nothing; the exchange (gateway/exchange) does what a choice implies. Policies that keep keys (policy/manual) remember
// their own choices, min_cost what prefixes have waited for, and nothing else.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "gateway/load.h"
#include "gateway/options.h"
#include "gateway/policy/fleet_view.h"
#include "routing/prefix_index.h"

namespace sluice::gateway {

struct RequestFacts {
  std::string_view routing_text;  // of the prompt; empty where the request has none
  std::string_view routing_key;   // of --routing-key-headers; empty = none
  std::string_view identity;      // who asks: authorization, else x-forwarded-for, else cookie; empty = none of them
  int64_t prompt_tokens = 0;      // estimate
  TimePoint now{};
  // Longest match of routing_text in the model's prefix index; empty unless the policy says needs_prefix().
  routing::PrefixMatch prefix;
};

enum class Reason : uint8_t {
  kNoUsableWorker,
  kOnlyCandidate,
  kRandom,
  kNextInTurn,
  kLessWork,
  kPrefixHeld,     // a holder of the longest prefix, the least loaded one
  kImbalanced,     // the balance gate fired: least loaded worker
  kPrefixMiss,     // match rate not above the threshold: least loaded worker
  kHoldersGone,    // matched, but no holder may be used: least loaded worker
  kFirst,          // the first of the fleet
  kLeastCost,      // the least of a cost over the workers
  kHoldersBusy,    // holders of the prefix have let its requests wait for longer than one more takes: it becomes one
  kTarget,         // the client named the worker
  kRoutingKey,     // the worker that the routing key has
  kKeyAssigned,    // the routing key was new: it has one now
  kKeyMoved,       // those that the routing key has may not be used: it has another one too
  kHashed,         // the owner of the hash
  kHashSpilled,    // the owner of the hash had too much: the next one on the ring
  kKeepsResponse,  // no policy's: it keeps the response that the request goes on from, and no other worker can answer
};
inline constexpr size_t kNumReasons = static_cast<size_t>(Reason::kKeepsResponse) + 1;
std::string_view to_string(Reason reason);

struct Score {
  uint32_t worker = 0;
  double cost = 0;
};

struct Choice {
  std::optional<uint32_t> worker;  // Candidate::worker; none if there is no usable worker
  Reason reason = Reason::kNoUsableWorker;
  bool insert_prefix = false;     // the caller should record that this worker will hold the routing text
  bool takes_work = true;         // the worker does; where none does, it is one that may be used at all
  double match_rate = 0;          // share of the routing text believed cached on the chosen worker
  std::array<Score, 4> scores{};  // the workers that were compared, best known first
  uint8_t num_scores = 0;

  static Choice none() { return {}; }
  static Choice of(uint32_t worker, Reason reason) { return Choice{.worker = worker, .reason = reason}; }
  Choice& with_score(uint32_t worker, double cost) {
    if (num_scores < scores.size()) scores[num_scores++] = {worker, cost};
    return *this;
  }
};

class RoutingKeys;

class Policy {
 public:
  virtual ~Policy() = default;
  // Any thread; several at once.
  virtual Choice choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const = 0;
  // What it compares workers by, less is better, for somebody who asks why; requests in flight if it compares none.
  virtual double weigh(const Candidate& candidate, const RequestFacts& /*facts*/) const {
    return static_cast<double>(candidate.load->requests.load(std::memory_order_relaxed));
  }
  virtual bool needs_prefix() const { return false; }
  virtual bool needs_ring() const { return false; }
  // It looks at every worker that may be used; else it does with what a view of many offers (FleetView).
  virtual bool needs_all() const { return true; }
  // It reads routing_key and identity.
  virtual bool needs_keys() const { return false; }
  // A client may name its worker (X-SMG-Target-Worker): then it is not asked.
  virtual bool takes_target() const { return false; }
  // The polled engine load is read (gateway/control polls only then).
  virtual bool needs_engine_load() const { return false; }
  // Requests that have nothing in common are spread evenly over idle workers that are alike.
  virtual bool is_balanced() const { return true; }
  // Null unless it remembers keys.
  virtual const RoutingKeys* routing_keys() const { return nullptr; }
};

struct PolicyRow {
  std::string_view name;
  std::unique_ptr<Policy> (*make)(const GatewayOptions& options);
  std::string_view help;
};
std::span<const PolicyRow> policies();
// Null for an unknown name.
const PolicyRow* find_policy(std::string_view name);
// The policy that the options name, with --routing-key-override in front where that is asked for.
std::unique_ptr<Policy> make_policy(const GatewayOptions& options);

}  // namespace sluice::gateway
