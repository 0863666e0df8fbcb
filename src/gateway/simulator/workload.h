// What the policy simulator replays: prompts with their times, generated or from a trace.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace sluice::gateway {

struct SimulatedRequest {
  Duration at{0};                        // open loop: when it comes
  std::string_view text;                 // until the workload is asked for the next one
  std::optional<Duration> decode;        // of this one; none = what the simulation says
  std::optional<int64_t> output_tokens;  // of its answer; none = kSimulatedTokens
  // Somebody else sends it to this worker, the gateway does not know of it, and it is in no figure. Open loops only.
  std::optional<uint32_t> of_others;
  // Requests with the same number, unless it is 0, have their first `beginning_chars` characters in common. It saves
  // time where they are looked at once for all, and changes nothing.
  uint64_t beginning = 0;
  size_t beginning_chars = 0;
};

// One thread.
class Workload {
 public:
  virtual ~Workload() = default;
  // None: there are no more.
  virtual std::optional<SimulatedRequest> next() = 0;
};

// Groups that share a beginning and ask a question that never repeats; the groups come in random order, each once a
// round.
struct GroupsOptions {
  int64_t groups = 64;
  int64_t system_chars = 8192;
  int64_t question_chars = 512;
  bool hot = false;  // half of all requests are group 0's
  double rate = 0;   // requests per second, Poisson; 0 = all at once, for a closed loop
  uint64_t seed = 1;
};
std::unique_ptr<Workload> make_groups(const GroupsOptions& options);

// A trace of JSON lines. Each line has "timestamp" in milliseconds, and either "text" or, as the traces of Mooncake,
// the "hash_ids" of its blocks of 512 tokens with "input_length" in tokens; "output_length" in tokens is optional.
// kNotFound, kInvalidArgument with the line.
Result<std::unique_ptr<Workload>> read_trace(const std::string& path, Duration decode_per_token);

}  // namespace sluice::gateway
