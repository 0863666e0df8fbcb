#include "testing/sim_rank.h"

namespace sluice::testing {

Duration SimCache::now() const { return from_seconds(seconds(real_clock().now() - start_) * time_scale_); }

SimEngine::Id SimCache::submit(const std::vector<uint64_t>& prompt, int64_t output_tokens) {
  const Duration at = now();
  collect(worker_.advance(at));
  const auto prompt_tokens = static_cast<int64_t>(prompt.size());
  ++totals_.total_requests;
  worker_.submit({.id = next_id_,
                  .blocks = block_hashes(prompt, simulation_.rules.block_tokens),
                  .prompt_tokens = prompt_tokens,
                  .decode = simulation_.decode + output_tokens * simulation_.decode_per_token,
                  .output_tokens = output_tokens},
                 at);
  return next_id_++;
}

bool SimCache::abort(SimEngine::Id id) {
  const Duration at = now();
  collect(worker_.advance(at));
  const bool known = worker_.abort(id, at);
  totals_.total_aborted += known;
  return known;
}

std::vector<SimEngine::Emission> SimCache::advance() {
  collect(worker_.advance(now()));
  return std::exchange(ready_, {});
}

void SimCache::collect(CacheWorker::Events events) {
  for (const WorkerJob& job : events.first_tokens) {
    totals_.total_prompt_tokens += job.prompt_tokens;
    totals_.total_cached_tokens += job.cached_tokens;
    totals_.last_hit_rate = static_cast<double>(job.cached_tokens) / static_cast<double>(job.prompt_tokens);
    // An only token is the last one.
    if (job.output_tokens > 1) {
      ready_.push_back({.id = job.id, .tokens = 1, .finished = false, .cached_tokens = job.cached_tokens});
    }
  }
  for (const WorkerJob& job : events.finished) {
    totals_.total_generated_tokens += job.output_tokens;
    ready_.push_back({.id = job.id, .tokens = job.output_tokens, .finished = true, .cached_tokens = job.cached_tokens});
  }
}

std::optional<TimePoint> SimCache::next_event() const {
  if (!ready_.empty()) return start_;  // it is due already
  const Duration next = worker_.next_event();
  if (next == Duration::max()) return std::nullopt;
  return start_ + from_seconds(seconds(next) / time_scale_);
}

int64_t SimCache::match(const std::vector<uint64_t>& prompt) const {
  return worker_.match(block_hashes(prompt, simulation_.rules.block_tokens));
}

SimLoad SimCache::load() const {
  SimLoad load = totals_;
  load.waiting = worker_.waiting();
  load.running = worker_.open() - load.waiting;
  load.used_tokens = worker_.used_tokens();
  load.waiting_tokens = worker_.waiting_tokens();
  load.max_tokens = simulation_.rules.kv_blocks * simulation_.rules.block_tokens;
  load.token_usage = worker_.kv_usage();
  return load;
}

}  // namespace sluice::testing
