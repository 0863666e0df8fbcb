// A continuous-batching engine reduced to its arithmetic, in virtual time: what a prompt costs is set by the tokens
// that the prefix cache does not hold, what a decode step costs by the number of running requests, and a finite KV pool
// makes requests wait and cached prefixes go. It holds no clock and no thread, so a test can run an hour in
// milliseconds; testing/sim_worker.h gives it real time and HTTP. The behaviours are those of SMG's mock worker
// (crates/mock_worker).
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace sluice::testing {

struct SimEngineOptions {
  double prefill_tokens_per_s = 8000;
  int64_t prefill_chunk = 2048;  // prompt tokens computed in one step at most, over all requests
  Duration decode_base = std::chrono::microseconds(6000);
  Duration decode_per_request = std::chrono::microseconds(350);
  int64_t max_running = 256;
  int64_t max_queued = 0;  // 0 = no bound
  int64_t kv_tokens = 524288;
  int64_t block_size = 16;
  int64_t context_length = 131072;  // prompt + output of one request
  bool prefix_cache = true;
};

// What the engine would report about itself. Counts are of this moment, cumulative fields since the start or the last
// restart.
struct SimLoad {
  int64_t running = 0;
  int64_t waiting = 0;
  int64_t used_tokens = 0;     // held by running requests: cached blocks that nobody uses are free to take
  int64_t waiting_tokens = 0;  // prompt tokens of the queue
  int64_t cached_tokens = 0;   // in the prefix cache and unused
  int64_t max_tokens = 0;
  double token_usage = 0;      // used / max
  double generated_per_s = 0;  // of the last step with decoding requests
  double last_hit_rate = 0;    // cached / prompt tokens of the last admitted request
  int64_t total_requests = 0;
  int64_t total_prompt_tokens = 0;
  int64_t total_cached_tokens = 0;
  int64_t total_generated_tokens = 0;
  int64_t total_aborted = 0;
};

// One thread at a time.
class SimEngine {
 public:
  using Id = uint64_t;

  struct Emission {
    Id id = 0;
    int64_t tokens = 0;  // generated so far, this one included
    bool finished = false;
    int64_t cached_tokens = 0;  // prompt tokens that came from the prefix cache
  };

  explicit SimEngine(SimEngineOptions options);
  ~SimEngine();

  // `prompt`: one hash per token; `output` > 0: tokens to generate, one hash each, so that a following turn which
  // repeats them finds them cached. kInvalidArgument: does not fit the context or the whole pool. kQueueFull.
  Result<Id> submit(std::vector<uint64_t> prompt, std::vector<uint64_t> output);
  // Forgets the request wherever it is; what it had computed of its prompt stays in the prefix cache. False if unknown.
  bool abort(Id id);

  bool has_work() const { return !waiting_.empty() || !running_.empty(); }

  // Admits requests and plans one step; returns how long it takes. nullopt if there is nothing to do. Then commit()
  // once that much time has passed; in between, submit and abort are allowed and count from the next step.
  std::optional<Duration> begin();
  // One emission per request that got a token.
  std::vector<Emission> commit();
  // begin and commit, with virtual time moving on. Nothing to do: no emission, and time stands still.
  std::vector<Emission> step();
  Duration now() const { return now_; }

  // Empties the prefix cache. False, and nothing done, while anything runs or waits.
  bool flush();
  // Prompt tokens of such a prompt that the prefix cache holds now.
  int64_t match(const std::vector<uint64_t>& prompt) const;
  SimLoad load() const;
  // Ends the process if the bookkeeping contradicts itself. For tests.
  void check_invariants() const;

 private:
  struct Request;
  struct Block {
    int64_t users = 0;
    // Valid while users == 0. A parent is always nearer to the back than its children, so the front is a leaf.
    std::list<uint64_t>::iterator idle;
  };

  std::vector<uint64_t> block_hashes(const std::vector<uint64_t>& tokens) const;
  size_t matched_blocks(const std::vector<uint64_t>& hashes, int64_t prompt_tokens) const;
  bool admit(Request& request);
  void publish(Request& request, int64_t computed_tokens);
  void release(Request& request);

  const SimEngineOptions options_;
  const int64_t capacity_;  // blocks

  Duration now_{0};
  Id next_id_ = 1;
  std::deque<std::unique_ptr<Request>> waiting_;
  std::vector<std::unique_ptr<Request>> running_;  // in the order of admission
  std::unordered_map<uint64_t, Block> blocks_;     // the prefix cache: used or idle blocks by the hash of their chain
  std::list<uint64_t> idle_;                       // blocks nobody uses, least recently used first
  int64_t private_blocks_ = 0;                     // held by running requests and not in blocks_
  bool planned_ = false;
  Duration planned_duration_{0};
  SimLoad totals_;
};

}  // namespace sluice::testing
