// What is known of the workers' KV caches, as the event loops see it: which workers count, the index of their blocks,
// and what was sent to them since, of which their events cannot tell yet. Reads take no lock.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "base/clock.h"
#include "gateway/kv_events/knowledge.h"
#include "routing/block_index.h"

namespace sluice::gateway {

// A prompt in tokens, with the names of its blocks for each size of block that is in use.
struct KvPrompt {
  std::vector<int32_t> tokens;
  bool has_tools = false;
  struct Names {
    uint32_t block_size = 0;
    std::vector<routing::BlockName> names;
  };
  std::vector<Names> names;
};

class KvView {
 public:
  struct Facts {
    KvKnowledge knowledge = KvKnowledge::kNothing;  // of a worker that is not trusted: nothing
    bool tools_differ = false;                      // prompts with tools are rendered otherwise there
    uint32_t block_size = 0;
  };

  explicit KvView(size_t index_bytes) : index(index_bytes) {}
  ~KvView();
  KvView(const KvView&) = delete;
  KvView& operator=(const KvView&) = delete;

  routing::BlockIndex index;  // the subscriber's thread writes

  // Any thread. What a prompt of that kind finds at the worker.
  Facts of(uint32_t worker) const;
  bool counts(uint32_t worker, const KvPrompt& prompt) const {
    const Facts facts = of(worker);
    return facts.knowledge != KvKnowledge::kNothing && !(facts.tools_differ && prompt.has_tools);
  }

  // Some worker's events have been heard: prompts are worth reading. Any thread.
  bool knows_any() const { return block_sizes_[0].load(std::memory_order_relaxed) != 0; }

  // Returns what is known from now on: kNothing where there are four other sizes of block, and nobody would look for
  // its own. Subscriber's thread.
  KvKnowledge set_known(uint32_t worker, KvKnowledge knowledge, int64_t block_size, TimePoint now);
  // Whether its tokens are those of the prompts here. Control thread.
  void set_trusted(uint32_t worker, bool is_trusted, bool tools_differ);

  struct Known {
    uint32_t worker = 0;
    size_t tokens = 0;  // of the prompt, from the first on
  };
  // Loop threads. Those workers that count and hold a part of the prompt, or were sent one lately. Names the blocks.
  void match(KvPrompt& prompt, TimePoint now, std::vector<Known>& found) const;
  // The prompt goes to the worker: until its events can tell, it counts as held.
  void sent(const KvPrompt& prompt, uint32_t worker, TimePoint now);
  // It was not computed there after all: what counts since that time, and was sent to nobody later, does not.
  void unsent(const KvPrompt& prompt, uint32_t worker, TimePoint sent_at);
  // Its cache was emptied: what was sent before counts no more. Any thread.
  void forget_sent(uint32_t worker, TimePoint now);

 private:
  static constexpr uint32_t kChunk = 1024;
  static constexpr uint32_t kChunks = 4096;
  using Chunk = std::array<std::atomic<uint64_t>, kChunk>;
  std::atomic<uint64_t>& state_of(uint32_t worker);
  uint64_t state(uint32_t worker) const;
  void change(uint32_t worker, uint64_t mask, uint64_t bits);
  void name(KvPrompt& prompt) const;
  // visit(entry of recent_, name) for each block of the prompt.
  template <class Visit>
  void each_block(const KvPrompt& prompt, uint32_t worker, Visit visit);

  std::array<std::atomic<Chunk*>, kChunks> states_{};
  std::array<std::atomic<uint32_t>, 4> block_sizes_{};  // in use, 0 = none

  // What was sent: for a block the worker that it went to last, and when. An entry gives way to any other one.
  static constexpr size_t kRecent = 1 << 15;
  std::array<std::atomic<uint64_t>, kRecent> recent_{};
};

}  // namespace sluice::gateway
