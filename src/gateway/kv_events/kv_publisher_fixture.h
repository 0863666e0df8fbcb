// For tests: an engine's block cache that publishes what happens to it, with a buffer to ask, and an oracle of what it
// holds.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "protocol/kv_events.h"
#include "routing/block_index.h"

namespace sluice::gateway {

class PublishingCache {
 public:
  static constexpr size_t kBlock = 4;
  using Tokens = std::vector<int32_t>;

  struct Message {
    uint64_t sequence;
    std::string payload;
  };

  explicit PublishingCache(uint64_t seed, size_t buffer_steps = 10000) : rng_(seed), buffer_steps_(buffer_steps) {
    for (int32_t p = 0; p < 30; ++p) {
      Tokens prompt;
      for (size_t t = 0; t < kBlocks * kBlock; ++t) prompt.push_back(p < 3 ? p * 1000 + static_cast<int32_t>(t) : 0);
      if (p >= 3) {
        prompt = prompts_[rng_.below(prompts_.size())];
        for (size_t t = (1 + rng_.below(kBlocks - 1)) * kBlock; t < prompt.size(); ++t) prompt[t] = p * 100000;
      }
      prompts_.push_back(prompt);
    }
  }

  // Stores a prompt, or gives up a part of one with all that follows on it.
  Message step() {
    const Tokens& prompt = prompts_[rng_.below(prompts_.size())];
    return rng_.below(100) < 60 ? store(prompt) : give_up(prompt, rng_.below(kBlocks));
  }
  Message store(const Tokens& prompt) {
    protocol::KvEventBatch batch;
    for (size_t i = 0; (i + 1) * kBlock <= prompt.size(); ++i) {
      if (!held_.insert(key(prompt, i)).second) continue;
      batch.events.push_back({.kind = protocol::KvEvent::Kind::kStored,
                              .hashes = {hash_of(key(prompt, i))},
                              .parent = i == 0 ? std::nullopt : std::optional(hash_of(key(prompt, i - 1))),
                              .token_ids = {prompt.begin() + static_cast<ptrdiff_t>(i * kBlock),
                                            prompt.begin() + static_cast<ptrdiff_t>((i + 1) * kBlock)},
                              .block_size = kBlock,
                              .medium = "GPU"});
    }
    return publish(batch);
  }
  Message give_up(const Tokens& prompt, size_t from) {
    protocol::KvEventBatch batch;
    const Tokens stem = key(prompt, from);
    for (auto block = held_.begin(); block != held_.end();) {
      const bool follows = block->size() >= stem.size() && std::equal(stem.begin(), stem.end(), block->begin());
      if (follows) {
        batch.events.push_back(
            {.kind = protocol::KvEvent::Kind::kRemoved, .hashes = {hash_of(*block)}, .medium = "GPU"});
      }
      block = follows ? held_.erase(block) : std::next(block);
    }
    return publish(batch);
  }
  Message clear() {
    held_.clear();
    protocol::KvEventBatch batch;
    batch.events.push_back({.kind = protocol::KvEvent::Kind::kCleared});
    return publish(batch);
  }
  Message publish(protocol::KvEventBatch batch) {
    batch.timestamp = static_cast<double>(next_) + life_;
    buffer_.push_back({next_++, protocol::encode_kv_events(batch)});
    if (buffer_.size() > buffer_steps_) buffer_.pop_front();
    return buffer_.back();
  }
  // A new process.
  void restart() {
    held_.clear();
    buffer_.clear();
    next_ = 0;
    life_ += 0.25;
  }

  const std::deque<Message>& buffer() const { return buffer_; }
  const std::vector<Tokens>& prompts() const { return prompts_; }
  uint64_t next() const { return next_; }
  // Blocks that it holds of the prompt.
  uint32_t depth(const Tokens& prompt) const {
    uint32_t depth = 0;
    while ((depth + 1) * kBlock <= prompt.size() && held_.contains(key(prompt, depth))) ++depth;
    return depth;
  }
  size_t blocks() const { return held_.size(); }
  // Of the worker, in the index: the same as here for every prompt, and not a block more.
  bool is_known_to(const routing::BlockIndex& index, uint32_t worker) const {
    for (const Tokens& prompt : prompts_) {
      if (depth_in(index, worker, prompt) != depth(prompt)) return false;
    }
    return true;
  }
  static uint32_t depth_in(const routing::BlockIndex& index, uint32_t worker, const Tokens& prompt) {
    std::vector<routing::BlockName> names;
    routing::name_blocks(prompt, kBlock, names);
    std::vector<routing::BlockIndex::Depth> found;
    index.match(names, found);
    for (const auto& depth : found) {
      if (depth.worker == worker) return depth.blocks;
    }
    return 0;
  }

 private:
  static constexpr size_t kBlocks = 12;
  static Tokens key(const Tokens& prompt, size_t i) {
    return {prompt.begin(), prompt.begin() + static_cast<ptrdiff_t>((i + 1) * kBlock)};
  }
  static uint64_t hash_of(const Tokens& block) {
    uint64_t hash = 1469598103934665603ULL;
    for (const int32_t token : block) hash = (hash ^ static_cast<uint64_t>(token)) * 1099511628211ULL;
    return hash;
  }

  Rng rng_;
  const size_t buffer_steps_;
  std::vector<Tokens> prompts_;
  std::set<Tokens> held_;
  std::deque<Message> buffer_;
  uint64_t next_ = 0;
  double life_ = 0;
};

}  // namespace sluice::gateway
