// A worker that is all cache: prompts are computed one after another, first come first served, and pay for what the
// prefix cache does not hold; then they decode side by side. Virtual time, no thread. The policy simulator
// (gateway/simulator) calls it, and the simulated worker (testing/sim_worker.h) gives it sockets and real time, so that
// both speak of the same worker.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "testing/block_runs.h"

namespace sluice::testing {

struct CacheWorkerRules {
  int64_t block_chars = 64;  // of a prompt
  int64_t block_tokens = 16;
  int64_t kv_blocks = 3277;
  Duration prefill_base = std::chrono::milliseconds(1);
  Duration prefill_per_token = std::chrono::microseconds(20);
  int64_t decode_slots = 64;
};

// A request to such a worker decodes for so long, whatever decodes beside it.
struct CacheSimulation {
  CacheWorkerRules rules;
  Duration decode = std::chrono::milliseconds(100);
  Duration decode_per_token{0};  // of the tokens that are asked for
};

// The blocks of a text, each named by the hash of all text up to its end. A rest that fills no block has no name.
std::vector<uint64_t> block_hashes(std::string_view text, int64_t block_chars);
// Those that are missing: `hashes` are the first blocks of the text.
void complete_block_hashes(std::string_view text, int64_t block_chars, std::vector<uint64_t>& hashes);

// The same of tokens.
std::vector<uint64_t> block_hashes(std::span<const uint64_t> tokens, int64_t block_tokens);

// Blocks by name, least recently used first out and no parent before its child.
class BlockCache {
 public:
  explicit BlockCache(size_t capacity) : capacity_(capacity) {}

  // How many of the blocks it holds, from the first on.
  size_t match(BlockRuns::Chain blocks) const { return blocks_.match(blocks); }
  // All of them are in use now and held, as far as they fit.
  void insert(BlockRuns::Chain blocks);
  void clear() { blocks_.clear(); }
  size_t size() const { return blocks_.size(); }

 private:
  const size_t capacity_;
  BlockRuns blocks_;
};

// What is asked of a worker. `prompt` counts the rest that fills no block too.
struct WorkerJob {
  uint64_t id = 0;
  std::vector<uint64_t> blocks;
  int64_t prompt_tokens = 0;
  Duration decode{0};
  int64_t output_tokens = 0;  // nothing here depends on it
  int64_t cached_tokens = 0;  // set when its prefill begins
};

// What a prompt of that text is to such a worker. `blocks`: those of its beginning, where they are known.
WorkerJob job_of(std::string_view text, const CacheWorkerRules& rules, Duration decode,
                 std::vector<uint64_t> blocks = {});

class CacheWorker {
 public:
  explicit CacheWorker(CacheWorkerRules rules) : rules_(rules), cache_(static_cast<size_t>(rules.kv_blocks)) {}

  void submit(WorkerJob job, Duration now);
  // When the next thing happens here; Duration::max() = nothing to do.
  Duration next_event() const;
  struct Events {
    std::vector<WorkerJob> first_tokens;  // without their blocks
    std::vector<WorkerJob> finished;
  };
  // All that happens up to and at `now`, which does not go back.
  Events advance(Duration now);
  void advance(Duration now, Events& events);  // in place of what was there
  // Forgets the job wherever it is: what it had not computed is not cached. False if unknown.
  bool abort(uint64_t id, Duration now);

  // Prompt tokens of such blocks that the cache holds now.
  int64_t match(BlockRuns::Chain blocks) const {
    return static_cast<int64_t>(cache_.match(blocks)) * rules_.block_tokens;
  }
  // What only an oracle can know: the time until the prefills of all that is here will have ended, ...
  Duration prefill_left(Duration now) const;
  // ... and until that of a job that came now would.
  Duration true_cost(const WorkerJob& job, Duration now) const;
  // As a load endpoint tells.
  int64_t used_tokens() const;
  int64_t waiting_tokens() const;
  double kv_usage() const;
  int64_t open() const { return static_cast<int64_t>(queue_.size() + decoding_.size() + slotless_.size()); }
  int64_t waiting() const { return queue_.empty() ? 0 : static_cast<int64_t>(queue_.size()) - 1; }
  void flush() { cache_.clear(); }

 private:
  struct Queued {
    WorkerJob job;
    Duration expected{0};  // of its prefill
    int64_t expected_uncached = 0;
  };
  struct Decoding {
    WorkerJob job;
    Duration end{0};
  };

  Duration prefill_time(int64_t uncached) const { return rules_.prefill_base + uncached * rules_.prefill_per_token; }
  int64_t uncached_after_queue(const WorkerJob& job) const;
  void begin(Duration now);
  void begin_next(Duration now);
  void decode(WorkerJob job, Duration now);
  void fill_slot(Duration now);

  const CacheWorkerRules rules_;
  BlockCache cache_;
  std::deque<Queued> queue_;  // the first is being computed
  Duration prefill_end_{0};   // of the first
  Duration expected_behind_first_{0};
  BlockRuns coming_;  // blocks that the queue will have put into the cache
  std::deque<Decoding> decoding_;
  std::deque<WorkerJob> slotless_;
};

}  // namespace sluice::testing
