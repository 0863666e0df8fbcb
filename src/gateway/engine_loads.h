// What the engines said of their load at the last poll, rank by rank, for smg_engine_* (--engine-metrics).
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace sluice::gateway {

// One entry of a worker's load document. What it does not say is none.
struct RankLoad {
  int64_t rank = 0;
  std::optional<double> running, waiting, token_usage, throughput, hit_rate;
};

// Any thread.
class EngineLoads {
 public:
  // By the worker's number. Empty: it did not answer, or has gone.
  void set(uint32_t worker, std::vector<RankLoad> ranks) {
    std::lock_guard lock(mutex_);
    if (ranks.empty()) {
      ranks_.erase(worker);
    } else {
      ranks_[worker] = std::move(ranks);
    }
  }
  std::vector<RankLoad> of(uint32_t worker) const {
    std::lock_guard lock(mutex_);
    const auto at = ranks_.find(worker);
    return at == ranks_.end() ? std::vector<RankLoad>() : at->second;
  }

 private:
  mutable std::mutex mutex_;  // guards ranks_
  std::map<uint32_t, std::vector<RankLoad>> ranks_;
};

}  // namespace sluice::gateway
