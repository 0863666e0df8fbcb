#include "gateway/kv_events/view.h"

#include <algorithm>

namespace sluice::gateway {
namespace {

// Of a worker's state: what is known, two flags, the block size, and since when what was sent to it counts.
constexpr uint64_t kKnowledgeMask = 3, kTrusted = 4, kToolsDiffer = 8;
constexpr uint64_t kSizeShift = 8, kSinceShift = 32;
constexpr uint64_t kLargestBlock = (1 << 24) - 1;
constexpr uint64_t kSizeMask = kLargestBlock << kSizeShift, kSinceMask = uint64_t{0xffffff} << kSinceShift;

// Blocks shorter than this are looked up several at a time.
constexpr uint32_t kStrideTokens = 16;

// An entry of what was sent: 20 bits of the block's name, 20 of the worker, 24 of the time in tenths of a second, which
// come again after 19 days.
constexpr int kNameShift = 44, kWorkerShift = 24;
constexpr uint32_t kWorkerMask = 0xfffff, kTickMask = 0xffffff;
constexpr Duration kTick = std::chrono::milliseconds(100);
constexpr uint32_t kLately = 100;  // ticks: engines publish when a prompt is computed, or later

uint32_t tick_of(TimePoint now) { return static_cast<uint32_t>(now.time_since_epoch() / kTick) & kTickMask; }
// From what the lowest bits of `then` say to `tick`.
uint32_t ticks_since(uint64_t then, uint32_t tick) { return (tick - static_cast<uint32_t>(then)) & kTickMask; }
uint64_t entry_of(routing::BlockName name, uint32_t worker, uint32_t tick) {
  return name >> kNameShift << kNameShift | static_cast<uint64_t>(worker & kWorkerMask) << kWorkerShift | tick;
}

}  // namespace

KvView::~KvView() {
  for (auto& chunk : states_) delete chunk.load();
}

std::atomic<uint64_t>& KvView::state_of(uint32_t worker) {
  auto& slot = states_[worker / kChunk % kChunks];
  Chunk* chunk = slot.load(std::memory_order_acquire);
  if (chunk == nullptr) {
    auto* fresh = new Chunk();
    if (slot.compare_exchange_strong(chunk, fresh, std::memory_order_acq_rel)) {
      chunk = fresh;
    } else {
      delete fresh;
    }
  }
  return (*chunk)[worker % kChunk];
}

uint64_t KvView::state(uint32_t worker) const {
  const Chunk* chunk = states_[worker / kChunk % kChunks].load(std::memory_order_acquire);
  return chunk == nullptr ? 0 : (*chunk)[worker % kChunk].load(std::memory_order_acquire);
}

KvView::Facts KvView::of(uint32_t worker) const {
  const uint64_t bits = state(worker);
  if ((bits & kTrusted) == 0) return {};
  return {static_cast<KvKnowledge>(bits & kKnowledgeMask), (bits & kToolsDiffer) != 0,
          static_cast<uint32_t>((bits & kSizeMask) >> kSizeShift)};
}

void KvView::change(uint32_t worker, uint64_t mask, uint64_t bits) {
  auto& state = state_of(worker);
  uint64_t old = state.load(std::memory_order_relaxed);
  while (!state.compare_exchange_weak(old, (old & ~mask) | bits, std::memory_order_acq_rel)) {
  }
}

KvKnowledge KvView::set_known(uint32_t worker, KvKnowledge knowledge, int64_t block_size, TimePoint now) {
  const auto size = static_cast<uint64_t>(std::clamp<int64_t>(block_size, 0, kLargestBlock));
  if (size > 0) {
    const auto place =
        std::ranges::find_if(block_sizes_, [&](const auto& known) { return known == size || known == 0; });
    if (place == block_sizes_.end()) {
      knowledge = KvKnowledge::kNothing;  // nobody would look for its blocks
    } else {
      *place = static_cast<uint32_t>(size);
    }
  }
  const bool is_new = (state(worker) & kKnowledgeMask) == 0 && knowledge != KvKnowledge::kNothing;
  change(worker, kKnowledgeMask | kSizeMask, static_cast<uint64_t>(knowledge) | size << kSizeShift);
  if (is_new) forget_sent(worker, now);
  return knowledge;
}

void KvView::forget_sent(uint32_t worker, TimePoint now) {
  change(worker, kSinceMask, static_cast<uint64_t>(tick_of(now)) << kSinceShift);
}

void KvView::set_trusted(uint32_t worker, bool is_trusted, bool tools_differ) {
  change(worker, kTrusted | kToolsDiffer, (is_trusted ? kTrusted : 0) | (tools_differ ? kToolsDiffer : 0));
}

void KvView::name(KvPrompt& prompt) const {
  for (size_t i = 0; i < block_sizes_.size(); ++i) {
    const uint32_t size = block_sizes_[i].load(std::memory_order_acquire);
    if (size == 0) return;
    if (i < prompt.names.size()) continue;
    prompt.names.push_back({.block_size = size, .names = {}});
    routing::name_blocks(prompt.tokens, size, prompt.names.back().names);
  }
}

void KvView::match(KvPrompt& prompt, TimePoint now, std::vector<Known>& found) const {
  found.clear();
  name(prompt);
  thread_local std::vector<routing::BlockIndex::Depth> depths;
  const uint32_t tick = tick_of(now);
  for (const KvPrompt::Names& named : prompt.names) {
    const auto add = [&](uint32_t worker, size_t blocks) {
      if (!counts(worker, prompt) || of(worker).block_size != named.block_size) return;
      const size_t tokens = blocks * named.block_size;
      const auto known = std::ranges::find(found, worker, &Known::worker);
      if (known == found.end()) {
        found.push_back({worker, tokens});
      } else {
        known->tokens = std::max(known->tokens, tokens);
      }
    };
    index.match(named.names, depths, std::max<size_t>(1, kStrideTokens / named.block_size));
    for (const auto& depth : depths) add(depth.worker, depth.blocks);
    for (size_t i = 0; i < named.names.size(); ++i) {
      const uint64_t entry = recent_[named.names[i] % kRecent].load(std::memory_order_relaxed);
      if (entry >> kNameShift != named.names[i] >> kNameShift || ticks_since(entry, tick) > kLately) break;
      const uint32_t worker = (entry >> kWorkerShift) & kWorkerMask;
      const uint64_t since = state(worker) >> kSinceShift;
      if (ticks_since(since, tick) >= ticks_since(entry, tick)) add(worker, i + 1);
    }
  }
}

template <class Visit>
void KvView::each_block(const KvPrompt& prompt, uint32_t worker, Visit visit) {
  const uint32_t size = of(worker).block_size;
  for (const KvPrompt::Names& named : prompt.names) {
    if (named.block_size != size) continue;
    for (const routing::BlockName name : named.names) visit(recent_[name % kRecent], name);
  }
}

void KvView::sent(const KvPrompt& prompt, uint32_t worker, TimePoint now) {
  each_block(prompt, worker, [&](std::atomic<uint64_t>& entry, routing::BlockName name) {
    entry.store(entry_of(name, worker, tick_of(now)), std::memory_order_relaxed);
  });
}

void KvView::unsent(const KvPrompt& prompt, uint32_t worker, TimePoint sent_at) {
  each_block(prompt, worker, [&](std::atomic<uint64_t>& entry, routing::BlockName name) {
    uint64_t own = entry_of(name, worker, tick_of(sent_at));
    entry.compare_exchange_strong(own, 0, std::memory_order_relaxed);
  });
}

}  // namespace sluice::gateway
