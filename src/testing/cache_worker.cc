#include "testing/cache_worker.h"

#include <xxhash.h>

#include <algorithm>
#include <ranges>
#include <unordered_set>

namespace sluice::testing {

std::vector<uint64_t> block_hashes(std::string_view text, int64_t block_chars) {
  const auto size = static_cast<size_t>(block_chars);
  std::vector<uint64_t> hashes;
  hashes.reserve(text.size() / size);
  uint64_t chain = 0;
  for (size_t at = 0; at + size <= text.size(); at += size) {
    chain = XXH3_64bits_withSeed(text.data() + at, size, chain);
    hashes.push_back(chain);
  }
  return hashes;
}

WorkerJob job_of(std::string_view text, const CacheWorkerRules& rules, Duration decode) {
  const int64_t tokens = static_cast<int64_t>(text.size()) * rules.block_tokens / rules.block_chars;
  return {
      .blocks = block_hashes(text, rules.block_chars), .prompt_tokens = std::max<int64_t>(1, tokens), .decode = decode};
}

std::vector<uint64_t> block_hashes(std::span<const uint64_t> tokens, int64_t block_tokens) {
  const std::string_view bytes(reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes());
  return block_hashes(bytes, block_tokens * static_cast<int64_t>(sizeof(uint64_t)));
}

size_t BlockCache::match(const std::vector<uint64_t>& blocks) const {
  size_t count = 0;
  while (count < blocks.size() && blocks_.contains(blocks[count])) ++count;
  return count;
}

void BlockCache::insert(const std::vector<uint64_t>& blocks) {
  const size_t count = std::min(blocks.size(), capacity_);
  // From the end on, so that every parent comes to stand behind its child.
  for (const uint64_t block : blocks | std::views::take(count) | std::views::reverse) {
    const auto [at, is_new] = blocks_.try_emplace(block);
    if (is_new) {
      at->second = order_.insert(order_.end(), block);
    } else {
      order_.splice(order_.end(), order_, at->second);
    }
  }
  while (blocks_.size() > capacity_) {
    blocks_.erase(order_.front());
    order_.pop_front();
  }
}

void BlockCache::clear() {
  order_.clear();
  blocks_.clear();
}

int64_t CacheWorker::uncached_after_queue(const WorkerJob& job) const {
  size_t count = 0;
  while (count < job.blocks.size() && (cache_.contains(job.blocks[count]) || coming_.contains(job.blocks[count]))) {
    ++count;
  }
  return job.prompt_tokens - static_cast<int64_t>(count) * rules_.block_tokens;
}

void CacheWorker::submit(WorkerJob job, Duration now) {
  const int64_t uncached = uncached_after_queue(job);
  for (const uint64_t block : job.blocks) ++coming_[block];
  queue_.push_back({std::move(job), prefill_time(uncached), uncached});
  if (queue_.size() == 1) begin(now);
}

void CacheWorker::begin(Duration now) {
  WorkerJob& job = queue_.front().job;
  job.cached_tokens = static_cast<int64_t>(cache_.match(job.blocks)) * rules_.block_tokens;
  prefill_end_ = now + prefill_time(job.prompt_tokens - job.cached_tokens);
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

void CacheWorker::expect_no_more(const WorkerJob& job) {
  for (const uint64_t block : job.blocks) {
    const auto at = coming_.find(block);
    if (--at->second == 0) coming_.erase(at);
  }
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
    expect_no_more(at->job);
    queue_.erase(at);
    if (computing && !queue_.empty()) begin(now);
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
    expect_no_more(job);
    if (!queue_.empty()) begin(next);
    events.first_tokens.push_back(job);
    decode(std::move(job), next);
  }
  return events;
}

Duration CacheWorker::true_cost(const WorkerJob& job, Duration now) const {
  Duration wait{0};
  if (!queue_.empty()) wait = std::max(prefill_end_ - now, Duration(0));
  for (size_t i = 1; i < queue_.size(); ++i) wait += queue_[i].expected;
  return wait + prefill_time(uncached_after_queue(job));
}

int64_t CacheWorker::used_tokens() const {
  std::unordered_set<uint64_t> shared;
  int64_t own = 0;
  const auto add = [&](const WorkerJob& job) {
    shared.insert(job.blocks.begin(), job.blocks.end());
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
