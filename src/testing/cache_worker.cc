#include "testing/cache_worker.h"

#include <xxhash.h>

#include <algorithm>
#include <ranges>

namespace sluice::testing {

void complete_block_hashes(std::string_view text, int64_t block_chars, std::vector<uint64_t>& hashes) {
  const auto size = static_cast<size_t>(block_chars);
  hashes.reserve(text.size() / size);
  uint64_t chain = hashes.empty() ? 0 : hashes.back();
  for (size_t at = hashes.size() * size; at + size <= text.size(); at += size) {
    chain = XXH3_64bits_withSeed(text.data() + at, size, chain);
    hashes.push_back(chain);
  }
}

std::vector<uint64_t> block_hashes(std::string_view text, int64_t block_chars) {
  std::vector<uint64_t> hashes;
  complete_block_hashes(text, block_chars, hashes);
  return hashes;
}

WorkerJob job_of(std::string_view text, const CacheWorkerRules& rules, Duration decode, std::vector<uint64_t> blocks) {
  const int64_t tokens = static_cast<int64_t>(text.size()) * rules.block_tokens / rules.block_chars;
  complete_block_hashes(text, rules.block_chars, blocks);
  return {.blocks = std::move(blocks), .prompt_tokens = std::max<int64_t>(1, tokens), .decode = decode};
}

std::vector<uint64_t> block_hashes(std::span<const uint64_t> tokens, int64_t block_tokens) {
  const std::string_view bytes(reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes());
  return block_hashes(bytes, block_tokens * static_cast<int64_t>(sizeof(uint64_t)));
}

void BlockCache::insert(BlockRuns::Chain blocks) {
  blocks_.use(blocks.first(std::min(blocks.size(), capacity_)));
  blocks_.shrink_to(capacity_);
}

int64_t CacheWorker::uncached_after_queue(const WorkerJob& job) const {
  const size_t count = std::max(cache_.match(job.blocks), coming_.match(job.blocks));
  return job.prompt_tokens - static_cast<int64_t>(count) * rules_.block_tokens;
}

void CacheWorker::submit(WorkerJob job, Duration now) {
  const int64_t uncached = uncached_after_queue(job);
  coming_.add(job.blocks);
  const Duration expected = prefill_time(uncached);
  queue_.push_back({std::move(job), expected, uncached});
  if (queue_.size() == 1) {
    begin(now);
  } else {
    expected_behind_first_ += expected;
  }
}

void CacheWorker::begin(Duration now) {
  WorkerJob& job = queue_.front().job;
  job.cached_tokens = static_cast<int64_t>(cache_.match(job.blocks)) * rules_.block_tokens;
  prefill_end_ = now + prefill_time(job.prompt_tokens - job.cached_tokens);
}

// The first one has left.
void CacheWorker::begin_next(Duration now) {
  if (queue_.empty()) return;
  expected_behind_first_ -= queue_.front().expected;
  begin(now);
}

void CacheWorker::decode(WorkerJob job, Duration now) {
  if (static_cast<int64_t>(decoding_.size()) >= rules_.decode_slots) {
    slotless_.push_back(std::move(job));
    return;
  }
  const Duration end = now + job.decode;
  const auto at = std::ranges::upper_bound(decoding_, end, {}, &Decoding::end);
  decoding_.insert(at, {std::move(job), end});
}

void CacheWorker::fill_slot(Duration now) {
  if (slotless_.empty()) return;
  WorkerJob job = std::move(slotless_.front());
  slotless_.pop_front();
  decode(std::move(job), now);
}

bool CacheWorker::abort(uint64_t id, Duration now) {
  const auto is_it = [id](const auto& entry) { return entry.job.id == id; };
  if (const auto at = std::ranges::find_if(queue_, is_it); at != queue_.end()) {
    const bool computing = at == queue_.begin();
    coming_.remove(at->job.blocks);
    if (!computing) expected_behind_first_ -= at->expected;
    queue_.erase(at);
    if (computing) begin_next(now);
    return true;
  }
  if (const auto at = std::ranges::find_if(decoding_, is_it); at != decoding_.end()) {
    decoding_.erase(at);
    fill_slot(now);
    return true;
  }
  return std::erase_if(slotless_, [id](const WorkerJob& job) { return job.id == id; }) > 0;
}

Duration CacheWorker::next_event() const {
  Duration next = Duration::max();
  if (!queue_.empty()) next = prefill_end_;
  if (!decoding_.empty()) next = std::min(next, decoding_.front().end);
  return next;
}

CacheWorker::Events CacheWorker::advance(Duration now) {
  Events events;
  advance(now, events);
  return events;
}

void CacheWorker::advance(Duration now, Events& events) {
  events.first_tokens.clear();
  events.finished.clear();
  for (Duration next = next_event(); next <= now; next = next_event()) {
    if (!decoding_.empty() && decoding_.front().end == next) {
      events.finished.push_back(std::move(decoding_.front().job));
      decoding_.pop_front();
      fill_slot(next);
      continue;
    }
    WorkerJob job = std::move(queue_.front().job);
    queue_.pop_front();
    cache_.insert(job.blocks);
    coming_.remove(job.blocks);
    begin_next(next);
    events.first_tokens.push_back({.id = job.id,
                                   .blocks = {},
                                   .prompt_tokens = job.prompt_tokens,
                                   .decode = job.decode,
                                   .output_tokens = job.output_tokens,
                                   .cached_tokens = job.cached_tokens});
    decode(std::move(job), next);
  }
}

Duration CacheWorker::prefill_left(Duration now) const {
  Duration left = expected_behind_first_;
  if (!queue_.empty()) left += std::max(prefill_end_ - now, Duration(0));
  return left;
}

Duration CacheWorker::true_cost(const WorkerJob& job, Duration now) const {
  return prefill_left(now) + prefill_time(uncached_after_queue(job));
}

int64_t CacheWorker::used_tokens() const {
  BlockRuns shared;
  int64_t own = 0;
  const auto add = [&](const WorkerJob& job) {
    shared.add(job.blocks);
    own += job.prompt_tokens - static_cast<int64_t>(job.blocks.size()) * rules_.block_tokens;
  };
  for (const Queued& queued : queue_ | std::views::take(1)) add(queued.job);
  for (const Decoding& decoding : decoding_) add(decoding.job);
  for (const WorkerJob& job : slotless_) add(job);
  return own + static_cast<int64_t>(shared.size()) * rules_.block_tokens;
}

int64_t CacheWorker::waiting_tokens() const {
  int64_t tokens = 0;
  for (const Queued& queued : queue_ | std::views::drop(1)) tokens += queued.expected_uncached;
  return tokens;
}

double CacheWorker::kv_usage() const {
  const auto capacity = static_cast<double>(rules_.kv_blocks * rules_.block_tokens);
  return std::min(1.0, static_cast<double>(used_tokens()) / capacity);
}

}  // namespace sluice::testing
