#include "testing/sim_engine.h"

#include <algorithm>

#include "base/check.h"

namespace sluice::testing {
namespace {

// splitmix64's finaliser.
uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace

struct SimEngine::Request {
  Id id = 0;
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  std::vector<uint64_t> hashes;  // of every full block of prompt and output
  int64_t cached_tokens = 0;
  int64_t prefilled = 0;        // prompt tokens that are in the KV pool
  int64_t prefill_planned = 0;  // of the step under way
  bool decode_planned = false;
  int64_t generated = 0;
  int64_t shared_blocks = 0;   // the first blocks of the chain, counted in blocks_
  int64_t private_blocks = 0;  // the rest, up to the reserved end of the output
};

SimEngine::SimEngine(SimEngineOptions options) : options_(options), capacity_(options.kv_tokens / options.block_size) {
  SLUICE_CHECK(options_.block_size > 0 && capacity_ > 0, "kv_tokens {} holds no block of {}", options_.kv_tokens,
               options_.block_size);
  SLUICE_CHECK(options_.prefill_tokens_per_s > 0 && options_.prefill_chunk > 0 && options_.max_running > 0,
               "a rate of the simulated engine is not positive");
  totals_.max_tokens = capacity_ * options_.block_size;
}

SimEngine::~SimEngine() = default;

std::vector<uint64_t> SimEngine::block_hashes(const std::vector<uint64_t>& tokens) const {
  std::vector<uint64_t> hashes;
  hashes.reserve(tokens.size() / options_.block_size);
  uint64_t chain = 0x9e3779b97f4a7c15;
  for (size_t i = 0; i < tokens.size(); ++i) {
    chain = mix(chain * 31 + tokens[i] + 1);
    if ((i + 1) % options_.block_size == 0) hashes.push_back(chain);
  }
  return hashes;
}

// The last token of a prompt is always computed: its logits are what the first token is drawn from.
size_t SimEngine::matched_blocks(const std::vector<uint64_t>& hashes, int64_t prompt_tokens) const {
  if (!options_.prefix_cache) return 0;
  const size_t limit = std::min<size_t>(hashes.size(), (prompt_tokens - 1) / options_.block_size);
  size_t n = 0;
  while (n < limit && blocks_.contains(hashes[n])) ++n;
  return n;
}

int64_t SimEngine::match(const std::vector<uint64_t>& prompt) const {
  if (prompt.empty()) return 0;
  return static_cast<int64_t>(matched_blocks(block_hashes(prompt), prompt.size())) * options_.block_size;
}

Result<SimEngine::Id> SimEngine::submit(std::vector<uint64_t> prompt, std::vector<uint64_t> output) {
  if (prompt.empty()) return Error{ErrorCode::kInvalidArgument, "the prompt is empty"};
  if (output.empty()) return Error{ErrorCode::kInvalidArgument, "max_new_tokens must be at least 1"};
  const auto total = static_cast<int64_t>(prompt.size() + output.size());
  const int64_t longest = std::min(options_.context_length, capacity_ * options_.block_size);
  if (total > longest) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("{} prompt tokens and {} output tokens exceed the context length of {}", prompt.size(),
                             output.size(), longest)};
  }
  if (options_.max_queued > 0 && static_cast<int64_t>(waiting_.size()) >= options_.max_queued) {
    return Error{ErrorCode::kQueueFull, "The request queue is full."};
  }
  auto request = std::make_unique<Request>();
  request->id = next_id_++;
  request->prompt_tokens = static_cast<int64_t>(prompt.size());
  request->output_tokens = static_cast<int64_t>(output.size());
  prompt.insert(prompt.end(), output.begin(), output.end());
  request->hashes = block_hashes(prompt);
  ++totals_.total_requests;
  const Id id = request->id;
  waiting_.push_back(std::move(request));
  return id;
}

bool SimEngine::admit(Request& request) {
  const auto matched = static_cast<int64_t>(matched_blocks(request.hashes, request.prompt_tokens));
  int64_t matched_idle = 0;
  for (int64_t i = 0; i < matched; ++i) matched_idle += blocks_.at(request.hashes[i]).users == 0;
  const int64_t tokens = request.prompt_tokens + request.output_tokens;
  const int64_t wanted = (tokens + options_.block_size - 1) / options_.block_size - matched;
  const int64_t held = static_cast<int64_t>(blocks_.size()) + private_blocks_;
  const int64_t evictable = static_cast<int64_t>(idle_.size()) - matched_idle;
  if (wanted > capacity_ - held + evictable) return false;

  for (int64_t i = 0; i < matched; ++i) {
    Block& block = blocks_.at(request.hashes[i]);
    if (block.users++ == 0) idle_.erase(block.idle);
  }
  for (int64_t over = held + wanted - capacity_; over > 0; --over) {
    blocks_.erase(idle_.front());
    idle_.pop_front();
  }
  request.shared_blocks = matched;
  request.private_blocks = wanted;
  private_blocks_ += wanted;
  request.cached_tokens = request.prefilled = matched * options_.block_size;
  totals_.total_prompt_tokens += request.prompt_tokens;
  totals_.total_cached_tokens += request.cached_tokens;
  totals_.last_hit_rate = static_cast<double>(request.cached_tokens) / static_cast<double>(request.prompt_tokens);
  return true;
}

// Makes the full blocks of the first `computed_tokens` findable by others. A block that somebody else published
// meanwhile is shared and our copy goes.
void SimEngine::publish(Request& request, int64_t computed_tokens) {
  if (!options_.prefix_cache) return;
  const int64_t full = std::min<int64_t>(computed_tokens / options_.block_size, request.hashes.size());
  for (; request.shared_blocks < full; ++request.shared_blocks) {
    auto [it, is_new] = blocks_.try_emplace(request.hashes[request.shared_blocks]);
    if (!is_new && it->second.users == 0) idle_.erase(it->second.idle);
    ++it->second.users;
    --request.private_blocks;
    --private_blocks_;
  }
}

void SimEngine::release(Request& request) {
  private_blocks_ -= request.private_blocks;
  request.private_blocks = 0;
  for (int64_t i = request.shared_blocks - 1; i >= 0; --i) {  // leaf first: it is the first to be evicted
    Block& block = blocks_.at(request.hashes[i]);
    if (--block.users == 0) block.idle = idle_.insert(idle_.end(), request.hashes[i]);
  }
  request.shared_blocks = 0;
}

bool SimEngine::abort(Id id) {
  const auto is_it = [id](const auto& request) { return request->id == id; };
  if (auto it = std::find_if(waiting_.begin(), waiting_.end(), is_it); it != waiting_.end()) {
    waiting_.erase(it);
    ++totals_.total_aborted;
    return true;
  }
  if (auto it = std::find_if(running_.begin(), running_.end(), is_it); it != running_.end()) {
    publish(**it, (*it)->prefilled);
    release(**it);
    running_.erase(it);
    ++totals_.total_aborted;
    return true;
  }
  return false;
}

std::optional<Duration> SimEngine::begin() {
  SLUICE_CHECK(!planned_, "begin() without commit() of the step before");
  // First come, first served: a large request at the head is not overtaken, or it would starve.
  while (!waiting_.empty() && static_cast<int64_t>(running_.size()) < options_.max_running &&
         admit(*waiting_.front())) {
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  if (running_.empty()) return std::nullopt;

  int64_t prefill = 0;
  int64_t decoding = 0;
  for (auto& request : running_) {
    const int64_t missing = request->prompt_tokens - request->prefilled;
    if (missing > 0) {
      request->prefill_planned = std::min(missing, options_.prefill_chunk - prefill);
      prefill += request->prefill_planned;
    } else {
      request->decode_planned = true;
      ++decoding;
    }
  }
  planned_duration_ = from_seconds(static_cast<double>(prefill) / options_.prefill_tokens_per_s);
  if (decoding > 0) planned_duration_ += options_.decode_base + options_.decode_per_request * decoding;
  if (decoding > 0 && planned_duration_.count() > 0) {
    totals_.generated_per_s = static_cast<double>(decoding) / seconds(planned_duration_);
  }
  planned_ = true;
  return planned_duration_;
}

std::vector<SimEngine::Emission> SimEngine::commit() {
  SLUICE_CHECK(planned_, "commit() without begin()");
  planned_ = false;
  now_ += planned_duration_;
  std::vector<Emission> emissions;
  for (auto& request : running_) {
    const bool prefilling = request->prefill_planned > 0;
    request->prefilled += std::exchange(request->prefill_planned, 0);
    const bool prompt_done = prefilling && request->prefilled == request->prompt_tokens;
    if (prefilling) publish(*request, request->prefilled);
    if (!std::exchange(request->decode_planned, false) && !prompt_done) continue;
    ++request->generated;
    ++totals_.total_generated_tokens;
    const bool finished = request->generated == request->output_tokens;
    emissions.push_back({request->id, request->generated, finished, request->cached_tokens});
    if (!finished) continue;
    // The last token was drawn and not computed: its key and value are not in the pool.
    publish(*request, request->prompt_tokens + request->generated - 1);
    release(*request);
    request.reset();
  }
  std::erase(running_, nullptr);
  return emissions;
}

std::vector<SimEngine::Emission> SimEngine::step() {
  if (!begin()) return {};
  return commit();
}

bool SimEngine::flush() {
  if (has_work()) return false;
  blocks_.clear();
  idle_.clear();
  return true;
}

SimLoad SimEngine::load() const {
  SimLoad load = totals_;
  load.running = static_cast<int64_t>(running_.size());
  load.waiting = static_cast<int64_t>(waiting_.size());
  for (const auto& request : waiting_) load.waiting_tokens += request->prompt_tokens;
  const auto idle = static_cast<int64_t>(idle_.size());
  load.used_tokens = (static_cast<int64_t>(blocks_.size()) - idle + private_blocks_) * options_.block_size;
  load.cached_tokens = idle * options_.block_size;
  load.token_usage = static_cast<double>(load.used_tokens) / static_cast<double>(load.max_tokens);
  if (running_.empty()) load.generated_per_s = 0;
  return load;
}

void SimEngine::check_invariants() const {
  std::unordered_map<uint64_t, int64_t> users;
  int64_t own = 0;
  for (const auto& request : running_) {
    own += request->private_blocks;
    for (int64_t i = 0; i < request->shared_blocks; ++i) ++users[request->hashes[i]];
    SLUICE_CHECK(request->generated < request->output_tokens, "request {} runs past its end", request->id);
  }
  SLUICE_CHECK(own == private_blocks_, "private blocks: {} held, {} counted", own, private_blocks_);
  const auto held = static_cast<int64_t>(blocks_.size()) + private_blocks_;
  SLUICE_CHECK(held <= capacity_, "{} blocks of {} held", held, capacity_);
  for (const auto& [hash, block] : blocks_) {
    const auto it = users.find(hash);
    const int64_t counted = it == users.end() ? 0 : it->second;
    SLUICE_CHECK(counted == block.users, "block {:x}: {} users, {} counted", hash, counted, block.users);
  }
  for (const auto& [hash, count] : users) SLUICE_CHECK(blocks_.contains(hash), "block {:x} in use is gone", hash);
  size_t idle = 0;
  for (const uint64_t hash : idle_) {
    SLUICE_CHECK(blocks_.contains(hash) && blocks_.at(hash).users == 0, "block {:x} is in use and idle", hash);
    ++idle;
  }
  const auto unused = static_cast<size_t>(
      std::count_if(blocks_.begin(), blocks_.end(), [](const auto& entry) { return entry.second.users == 0; }));
  SLUICE_CHECK(idle == unused, "{} idle blocks listed, {} unused", idle, unused);
}

}  // namespace sluice::testing
