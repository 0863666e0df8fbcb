#include "engine/scheduler.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "base/pulse.h"

namespace sluice::engine {
namespace {

// engine-reference.md 10.3 and 10.4.
constexpr double kInitialRatio = 0.7;
constexpr double kSmallestRatioFactor = 0.14;
constexpr double kRatioDecaySteps = 600;
constexpr double kRetractDecodeSteps = 20;

constexpr Duration kCountKeysEvery = std::chrono::milliseconds(100);

constexpr std::string_view kHealthCheckPrefix = "HEALTH_CHECK";

// Priorities beyond this are cut, so that their differences are numbers too.
constexpr int64_t kMostUrgent = int64_t{1} << 60;

int64_t urgency_of(const SchedulerOptions::Priorities& priorities, std::optional<int64_t> priority) {
  if (!priorities.enabled) return 0;
  if (!priority) return -kMostUrgent - 1;
  const int64_t value = std::clamp(*priority, -kMostUrgent, kMostUrgent);
  return priorities.low_first ? -value : value;
}

// Some of a sequence's tokens in a step, relative to the first.
struct Rows {
  int64_t from = 0;
  int64_t count = 0;
};

// Those whose logits are wanted for input logprobs: the row of position p predicts position p + 1.
Rows logprob_rows(const Request& r, int64_t first_position, int64_t n) {
  if (!r.wants_input_logprobs()) return {};
  const int64_t from = std::max(first_position, r.in.logprob_start_len - 1);
  const int64_t to = std::min(first_position + n, r.prompt_len - 1);
  return {from - first_position, std::max<int64_t>(0, to - from)};
}

// Those that go through the head beside the one that a token is chosen from: for input logprobs, and for hidden states.
Rows head_rows(const Request& r, int64_t first_position, const StepPlan::Sequence& s) {
  const Rows scored = logprob_rows(r, first_position, s.new_tokens);
  if (!r.in.return_hidden_states) return scored;
  const int64_t from = std::max<int64_t>(0, r.hidden_rows - first_position);
  const Rows hidden{from, std::max<int64_t>(0, s.new_tokens - (s.last ? 1 : 0) - from)};
  if (scored.count == 0) return hidden;
  if (hidden.count == 0) return scored;
  const int64_t first = std::min(scored.from, hidden.from);
  return {first, std::max(scored.from + scored.count, hidden.from + hidden.count) - first};
}

bool contains(const std::vector<int32_t>& tokens, int32_t token) {
  return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, models::Runner& runner,
                     std::function<std::string_view(int32_t)> token_bytes, const Clock& clock)
    : options_(options),
      runner_(runner),
      token_bytes_(std::move(token_bytes)),
      clock_(clock),
      // Less than the pool by a page, so that a request alone always fits.
      max_req_len_(
          std::min(options.context_length - 1, (options.kv_slots / options.page_size - 2) * options.page_size)),
      table_width_(static_cast<int64_t>(runner.slot_table().size()) / options.max_running_requests),
      initial_ratio_(std::min(kInitialRatio * options.conservativeness, 1.0)),
      smallest_ratio_(initial_ratio_ * kSmallestRatioFactor),
      pool_(options.kv_slots, options.page_size),
      cache_(pool_, options.radix),
      new_token_ratio_(initial_ratio_),
      window_start_(clock.now()) {
  SLUICE_CHECK(table_width_ >= max_req_len_, "slot table of width {} for sequences of {}", table_width_, max_req_len_);
  for (auto row = static_cast<int32_t>(options.max_running_requests); row-- > 0;) free_rows_.push_back(row);
  if (options.keep_routed_experts) {
    routed_experts_.emplace(options.kv_slots, runner.info().num_layers, runner.last_routing());
  }
}

Scheduler::~Scheduler() = default;

// ---- messages

std::string Scheduler::refusal(const GenerateRequest& request) const {
  const auto length = static_cast<int64_t>(request.input_ids.size());
  if (length == 0) return "input_ids must hold at least one token";
  if (length >= max_req_input_len()) {
    return fmt::format(
        "Input length ({} tokens) exceeds the maximum allowed length ({} tokens). Use a shorter input or enable "
        "--allow-auto-truncate.",
        length, max_req_input_len() - 1);
  }
  const int64_t vocab = runner_.info().vocab_size;
  const auto outside = [&](int32_t token) { return token < 0 || token >= vocab; };
  for (const int32_t token : request.input_ids) {
    if (token == -1 && !request.input_embeds.empty()) continue;
    if (outside(token)) return fmt::format("input_ids holds {}, the vocabulary is [0, {})", token, vocab);
  }
  for (const int32_t token : request.token_ids_logprob) {
    if (outside(token)) return fmt::format("token_ids_logprob holds {}, the vocabulary is [0, {})", token, vocab);
  }
  for (const auto& [token, bias] : request.sampling.logit_bias) {
    if (outside(token)) return fmt::format("logit_bias holds {}, the vocabulary is [0, {})", token, vocab);
  }
  if (request.sampling.max_new_tokens < 0) {
    return fmt::format("max_new_tokens must be at least 0, not {}", request.sampling.max_new_tokens);
  }
  if (request.logprob_start_len >= length) {
    return fmt::format("logprob_start_len ({}) must be below the number of input tokens ({})",
                       request.logprob_start_len, length);
  }
  if (requests_.contains(request.rid)) return fmt::format("rid '{}' is in use", request.rid);
  return {};
}

void Scheduler::refuse(const GenerateRequest& request, int32_t status, std::string message) {
  ++totals_.aborted_total;
  outputs_.push_back({.rid = request.rid,
                      .finish = {.kind = FinishKind::kAbort, .message = std::move(message), .status_code = status},
                      .prompt_tokens = static_cast<int64_t>(request.input_ids.size())});
}

void Scheduler::add(GenerateRequest request, std::shared_ptr<const Grammar> grammar) {
  totals_.last_dispatch_seq = std::max(totals_.last_dispatch_seq, request.dispatch_seq);
  const bool health = request.rid.starts_with(kHealthCheckPrefix);
  if (health && (!idle() || paused_)) {
    // The rank listens, which is all that the check wants to know: an answer without a token.
    outputs_.push_back({.rid = std::move(request.rid),
                        .finish = {.kind = FinishKind::kLength},
                        .prompt_tokens = static_cast<int64_t>(request.input_ids.size())});
    return;
  }
  if (!health) ++totals_.requests_total;
  if (std::string message = refusal(request); !message.empty()) return refuse(request, 400, std::move(message));
  std::optional<StopRegexes> stop_regexes;
  if (!request.sampling.stop_regex.empty()) {
    auto compiled = StopRegexes::compile(request.sampling.stop_regex);
    if (!compiled.ok()) return refuse(request, 400, compiled.error().message);
    stop_regexes = std::move(*compiled);
  }
  if (request.priority && !options_.priorities.enabled && options_.priorities.refused_if_disabled) {
    return refuse(request, 503,
                  "Using priority is disabled for this server. Please send a new request without a priority.");
  }

  auto owned = std::make_unique<Request>();
  Request& r = *owned;
  r.in = std::move(request);
  r.urgency = urgency_of(options_.priorities, r.in.priority);
  if (!queue_has_room(r)) return refuse(r.in, 503, "The request queue is full.");
  r.arrival = arrivals_++;
  r.arrived = clock_.now();
  // Requests without a seed differ from each other, and a rank with a seed repeats itself.
  r.seed = r.in.sampling.seed.value_or(static_cast<uint64_t>(random_unit(options_.seed, r.arrival) * 0x1.0p53));
  r.tokens = std::move(r.in.input_ids);
  r.in.input_ids = {};
  r.prompt_len = r.length();
  r.max_new = std::min(r.in.sampling.max_new_tokens, max_req_len_ - r.prompt_len - 1);
  std::erase(r.in.sampling.stop, "");
  for (const auto& stop : r.in.sampling.stop) r.longest_stop = std::max(r.longest_stop, stop.size());
  if (grammar) r.grammar = grammar->start();
  r.grammar_begun = r.in.sampling.grammar_after < 0;
  if (stop_regexes) r.stop_regexes = std::move(*stop_regexes);
  waiting_.emplace(r.arrival, &r);
  requests_.emplace(r.in.rid, std::move(owned));
}

// Where the queue is full and this request is more urgent than another one, that one goes: the least urgent, and of
// those the newest.
bool Scheduler::queue_has_room(const Request& request) {
  if (!options_.max_queued_requests || static_cast<int64_t>(waiting_.size()) < *options_.max_queued_requests) {
    return true;
  }
  const auto last = std::ranges::min_element(waiting_, {}, [](const auto& entry) {
    return std::pair(entry.second->urgency, -static_cast<int64_t>(entry.first));
  });
  Request& least = *last->second;
  if (least.urgency >= request.urgency) return false;
  ++totals_.aborted_total;
  end(least, {.kind = FinishKind::kAbort,
              .message = "The request is aborted by a higher priority request.",
              .status_code = 503});
  return true;
}

void Scheduler::abort(const AbortRequest& request) {
  std::vector<Request*> which;
  if (request.all) {
    for (const auto& [rid, r] : requests_) which.push_back(r.get());
    std::sort(which.begin(), which.end(), [](auto* a, auto* b) { return a->arrival < b->arrival; });
  } else if (const auto found = requests_.find(request.rid); found != requests_.end()) {
    which.push_back(found->second.get());
  }
  for (Request* r : which) {
    ++totals_.aborted_total;
    end(*r, {.kind = FinishKind::kAbort, .message = "Aborted"});
  }
}

void Scheduler::pause(Pause how) {
  paused_ = true;
  if (how == Pause::kAbort) abort({.all = true});
  if (how != Pause::kRetract) return;
  if (chunked_) retract(*chunked_);
  while (!running_.empty()) retract(*running_.back());
}

void Scheduler::expire() {
  if (!options_.waiting_timeout && !options_.running_timeout) return;
  const TimePoint now = clock_.now();
  const auto over = [&](TimePoint since, const std::optional<Duration>& limit) {
    return limit && now - since > *limit;
  };
  std::vector<Request*> waited, ran;
  for (const auto& [rid, r] : requests_) {
    if (r->begun ? over(*r->begun, options_.running_timeout) : over(r->arrived, options_.waiting_timeout)) {
      (r->begun ? ran : waited).push_back(r.get());
    }
  }
  const auto end_with_503 = [this](Request* r, std::string message) {
    ++totals_.aborted_total;
    end(*r, {.kind = FinishKind::kAbort, .message = std::move(message), .status_code = 503});
  };
  for (Request* r : waited) {
    end_with_503(r, fmt::format("Request waiting timeout reached: it waited {:.1f} s.", seconds(now - r->arrived)));
  }
  for (Request* r : ran) {
    end_with_503(r, fmt::format("Request running timeout reached: it ran {:.1f} s.", seconds(now - *r->begun)));
  }
}

Result<void> Scheduler::flush_cache() {
  if (!idle() && !(paused_ && nothing_runs())) {
    return Error{ErrorCode::kUnavailable, fmt::format("the cache cannot be flushed while {} requests run and {} wait",
                                                      running_.size() + (chunked_ ? 1 : 0), waiting_.size())};
  }
  cache_.reset();
  return {};
}

std::vector<RequestOutput> Scheduler::take_outputs() { return std::exchange(outputs_, {}); }

// ---- launch

std::span<int32_t> Scheduler::table_row(const Request& r) const {
  return runner_.slot_table().subspan(static_cast<size_t>(r.row * table_width_), static_cast<size_t>(table_width_));
}

void Scheduler::make_room(int64_t tokens) {
  const int64_t missing = tokens - pool_.available();
  if (missing <= 0) return;
  const TimePoint begun = clock_.now();
  const int64_t freed = cache_.evict(missing);
  totals_.eviction_seconds.observe(kEvictionSeconds, seconds(clock_.now() - begun));
  totals_.evicted_tokens_total += static_cast<uint64_t>(freed);
  SLUICE_CHECK(freed >= missing, "a plan needs {} slots, {} are free after evicting {}", tokens, pool_.available(),
               freed);
}

void Scheduler::admit(Request& r, int64_t cached) {
  waiting_.erase(r.arrival);
  SLUICE_CHECK(!free_rows_.empty(), "{} requests run and no row is free", running_.size());
  r.row = free_rows_.back();
  free_rows_.pop_back();
  if (!r.begun) {
    r.begun = clock_.now();
    r.times.begun_unix_nanos = clock_.unix_nanos();
    r.times.queue = seconds(*r.begun - r.arrived);
  }
  r.phase = Request::Phase::kChunked;  // until its last chunk is done
  if (cached > 0) {
    const auto match = cache_.match(r.in.extra_key, r.first(cached));
    SLUICE_CHECK(static_cast<int64_t>(match.slots.size()) == cached, "planned with {} cached tokens, found {}", cached,
                 match.slots.size());
    std::copy(match.slots.begin(), match.slots.end(), table_row(r).begin());
    cache_.lock(match.node);
    r.node = match.node;
    if (match.state_row >= 0) runner_.copy_state(match.state_row, r.row);
  }
  r.kv_len = r.owned_from = cached;
  if (!r.prefilled_once && r.retractions == 0) r.cached_tokens = cached;
}

void Scheduler::retract(Request& r) {
  if (r.phase == Request::Phase::kChunked) {
    chunked_ = nullptr;
  } else {
    std::erase(running_, &r);
  }
  release(r, /*keep_in_cache=*/false);
  if (r.wants_input_logprobs()) r.input_logprobs.clear();
  r.phase = Request::Phase::kWaiting;
  ++r.retractions;
  ++totals_.retracted_total;
  totals_.retracted_input_tokens_total += static_cast<uint64_t>(r.prompt_len);
  totals_.retracted_output_tokens_total += static_cast<uint64_t>(r.generated());
  waiting_.emplace(r.arrival, &r);
}

// Slots that a request needs for so many further tokens: none while they fit into its last page.
int64_t Scheduler::new_slots(const Request& r, int64_t tokens) const {
  return pool_.ceil(r.kv_len + tokens) - pool_.ceil(r.kv_len);
}

void Scheduler::add_to_batch(const StepPlan::Sequence& s, std::span<const int32_t> new_slots) {
  const Request& r = *s.request;
  const auto row = table_row(r);
  const int64_t end = r.kv_len + s.new_tokens;
  const int64_t in_last_page = std::min(pool_.ceil(r.kv_len), end);
  for (int64_t p = r.kv_len; p < in_last_page; ++p) row[static_cast<size_t>(p)] = row[static_cast<size_t>(p) - 1] + 1;
  std::copy_n(new_slots.begin(), end - in_last_page, row.begin() + in_last_page);
  const Rows rows = head_rows(r, r.kv_len, s);
  const auto at = static_cast<size_t>(r.kv_len), n = static_cast<size_t>(s.new_tokens);
  std::span<const float> embeds;
  if (!r.in.input_embeds.empty() && r.kv_len < r.prompt_len) {
    const auto width = r.in.input_embeds.size() / static_cast<size_t>(r.prompt_len);
    const auto count = static_cast<size_t>(std::min(end, r.prompt_len) - r.kv_len);
    embeds = std::span(r.in.input_embeds).subspan(at * width, count * width);
  }
  batch_.add({.tokens = std::span(r.tokens).subspan(at, n),
              .slots = row.subspan(at, n),
              .first_position = r.kv_len,
              .table_row = r.row,
              .logits_from = rows.from,
              .logits_count = rows.count,
              .last_logit = s.last,
              .embeds = embeds});
}

Result<std::span<const float>> Scheduler::launch(const StepPlan& plan) {
  if (options_.mixed_chunk) launched_ = clock_.now();
  for (Request* r : plan.preempt) retract(*r);
  if (!plan.retract.empty()) {
    for (Request* r : plan.retract) retract(*r);
    double decoded = 0;
    double allowed = 0;
    for (const Request* r : running_) {
      decoded += static_cast<double>(r->generated());
      allowed += static_cast<double>(r->max_new);
    }
    const double expected = decoded + kRetractDecodeSteps * static_cast<double>(running_.size());
    new_token_ratio_ = std::min(1.0, expected / (allowed + 1));
  }
  // All locks first: what this step uses must not be evicted to make room for it.
  int64_t total = 0;
  for (const auto& s : plan.sequences) {
    if (s.request->phase == Request::Phase::kWaiting) admit(*s.request, s.cached);
    total += new_slots(*s.request, s.new_tokens);
  }
  make_room(total);
  std::vector<int32_t> slots;
  SLUICE_CHECK(pool_.alloc(total, slots), "{} slots are missing", total - pool_.available());
  batch_.clear();
  std::span<const int32_t> left = slots;
  for (const auto& s : plan.sequences) {
    const auto n = static_cast<size_t>(new_slots(*s.request, s.new_tokens));
    add_to_batch(s, left.first(n));
    left = left.subspan(n);
  }
  const TimePoint start = clock_.now();
  auto logits = runner_.forward(batch_.view());
  forward_time_ = clock_.now() - start;
  if (routed_experts_ && logits.ok()) routed_experts_->record(batch_.view().kv_slots, runner_.last_routing());
  return logits;
}

// ---- commit

void Scheduler::commit(const StepPlan& plan, std::span<const float> logits) {
  const auto vocab = static_cast<size_t>(runner_.info().vocab_size);
  const bool learns = options_.mixed_chunk && !options_.joint_steps;
  const StepShape shape = learns ? shape_of(plan) : StepShape{};
  ++totals_.steps_total;
  count_step(plan);
  const size_t all = logits.size();
  for (const auto& s : plan.sequences) {
    Request& r = *s.request;
    const int64_t from = r.kv_len;
    const Rows rows = head_rows(r, from, s);
    r.kv_len += s.new_tokens;
    const Rows scored = logprob_rows(r, from, s.new_tokens);
    if (r.wants_input_logprobs()) {
      const auto before = static_cast<size_t>(scored.count > 0 ? scored.from - rows.from : 0);
      take_input_logprobs(r, from, s.new_tokens, logits.subspan(before * vocab));
    }
    if (r.in.return_hidden_states) take_hidden(r, from, s, (all - logits.size()) / vocab);
    logits = logits.subspan(static_cast<size_t>(rows.count) * vocab);
    if (r.phase != Request::Phase::kRunning) {
      chunked_ = s.last ? (chunked_ == &r ? nullptr : chunked_) : &r;
      share_prefix(r);
      if (!s.last) continue;
      r.phase = Request::Phase::kRunning;
      running_.push_back(&r);
      r.input_logprobs_done = true;
      if (!r.prefilled_once) {
        r.prefilled_once = true;
        r.times.prefilled_unix_nanos = clock_.unix_nanos();
        r.times.prefill = seconds(clock_.now() - *r.begun);
        totals_.prompt_tokens_total += static_cast<uint64_t>(r.prompt_len);
        totals_.cached_tokens_total += static_cast<uint64_t>(r.cached_tokens);
      }
    }
    take_token(r, logits.first(vocab), (all - logits.size()) / vocab);
    logits = logits.subspan(vocab);
  }
  if (idle()) new_token_ratio_ = initial_ratio_;
  if (learns) times_.record(shape, seconds(clock_.now() - launched_));
}

void Scheduler::count_step(const StepPlan& plan) {
  int64_t cached = 0;
  int64_t computed = 0;
  int64_t decoding = 0;
  for (const auto& s : plan.sequences) {
    if (s.request->phase == Request::Phase::kRunning) {
      ++decoding;
    } else {
      cached += s.cached;
      computed += s.new_tokens;
    }
  }
  totals_.forward_seconds[computed == 0 ? 1 : decoding == 0 ? 0 : 2] += seconds(forward_time_);
  if (computed > 0) {
    totals_.cache_hit_rate = static_cast<double>(cached) / static_cast<double>(cached + computed);
  } else {
    new_token_ratio_ =
        std::max(smallest_ratio_, new_token_ratio_ - (initial_ratio_ - smallest_ratio_) / kRatioDecaySteps);
  }
}

void Scheduler::take_input_logprobs(Request& r, int64_t from, int64_t n, std::span<const float> logits) {
  const auto vocab = static_cast<size_t>(runner_.info().vocab_size);
  const Rows rows = logprob_rows(r, from, n);
  if (r.in.logprob_start_len == 0 && r.input_logprobs.empty()) {
    r.input_logprobs.emplace_back();  // nothing predicts the first token
  }
  for (int64_t i = 0; i < rows.count; ++i) {
    beat(0);
    const int32_t token = r.tokens[static_cast<size_t>(from + rows.from + i + 1)];
    r.input_logprobs.push_back(sampler_.logprobs(logits.subspan(static_cast<size_t>(i) * vocab, vocab), token,
                                                 r.in.top_logprobs_num, r.in.token_ids_logprob));
  }
}

// `first_row`: of what went through the head for this sequence, among the step's rows.
void Scheduler::take_hidden(Request& r, int64_t from, const StepPlan::Sequence& s, size_t first_row) {
  const Rows rows = head_rows(r, from, s);
  const int64_t count = rows.count + (s.last ? 1 : 0);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = i < rows.count ? from + rows.from + i : from + s.new_tokens - 1;
    if (position != r.hidden_rows) continue;  // had before a retraction
    beat(0);
    const auto row = runner_.hidden(static_cast<int64_t>(first_row) + i);
    r.hidden.insert(r.hidden.end(), row.begin(), row.end());
    ++r.hidden_rows;
  }
}

// Puts the whole pages of what is computed into the prefix cache, so that others share it while this request still
// runs, and takes over the cache's slots where somebody else was first.
void Scheduler::share_prefix(Request& r) {
  if (!options_.prefix_cache) return;
  const auto row = table_row(r);
  const int64_t whole = pool_.floor(r.kv_len);
  auto [held, end] = cache_.insert(r.in.extra_key, r.first(whole), row.first(static_cast<size_t>(whole)));
  if (held > r.owned_from) {
    pool_.free(row.subspan(static_cast<size_t>(r.owned_from), static_cast<size_t>(held - r.owned_from)));
    RadixCache::copy_slots(end, row.first(static_cast<size_t>(whole)));
  }
  int64_t found = whole;
  if (end) keep_state(r, end);
  if (options_.radix.state_rows == 0 && cache_.peek(r.in.extra_key, r.first(r.match_limit())) > r.kv_len) {
    // Another request has computed more of the prompt in the meantime.
    if (r.kv_len > whole) pool_.free(row.subspan(static_cast<size_t>(whole), static_cast<size_t>(r.kv_len - whole)));
    const auto match = cache_.match(r.in.extra_key, r.first(r.match_limit()));
    std::copy(match.slots.begin(), match.slots.end(), row.begin());
    end = match.node;
    found = static_cast<int64_t>(match.slots.size());
    if (!r.prefilled_once && r.retractions == 0) r.cached_tokens += found - r.kv_len;
    r.kv_len = found;
  }
  cache_.lock(end);
  cache_.unlock(r.node);
  r.node = end;
  r.owned_from = found;
}

// The state after what is computed, if the cache holds all of that.
void Scheduler::keep_state(const Request& r, RadixCache::Node* end) {
  if (pool_.floor(r.kv_len) != r.kv_len) return;
  if (const auto row = cache_.keep_state(end)) runner_.copy_state(r.row, *row);
}

void Scheduler::release(Request& r, bool keep_in_cache) {
  if (r.row < 0) return;
  const auto row = table_row(r);
  const auto give_back = [&](int64_t from, int64_t to) {
    if (to > from) pool_.free(row.subspan(static_cast<size_t>(from), static_cast<size_t>(to - from)));
  };
  int64_t kept = r.owned_from;
  if (keep_in_cache && options_.prefix_cache) {
    // Duplicates of what the cache holds are freed, the rest is the cache's from now on.
    kept = pool_.floor(r.kv_len);
    const auto [held, end] = cache_.insert(r.in.extra_key, r.first(kept), row.first(static_cast<size_t>(kept)));
    give_back(r.owned_from, held);
    if (end) keep_state(r, end);
  }
  give_back(kept, r.kv_len);
  cache_.unlock(r.node);
  free_rows_.push_back(r.row);
  r.node = nullptr;
  r.row = -1;
  r.kv_len = r.owned_from = 0;
}

void Scheduler::end_embedding(Request& r, size_t row) {
  std::vector<float> embedding = runner_.hidden(static_cast<int64_t>(row));
  if (runner_.info().num_labels == 0) {
    double square = 0;
    for (const float x : embedding) square += static_cast<double>(x) * static_cast<double>(x);
    const auto scale = static_cast<float>(square > 0 ? 1 / std::sqrt(square) : 0);
    for (float& x : embedding) x *= scale;
  }
  end(r, {.kind = FinishKind::kLength});
  outputs_.back().embedding = std::move(embedding);
}

void Scheduler::take_token(Request& r, std::span<const float> row, size_t index) {
  beat(0);
  if (r.in.embed) return end_embedding(r, index);
  if (r.max_new == 0) return end(r, {.kind = FinishKind::kLength});  // prefill only
  std::vector<int32_t> forbidden;
  if (r.generated() < r.in.sampling.min_new_tokens) {
    forbidden = r.in.sampling.stop_token_ids;
    const auto& eos = runner_.info().eos_token_ids;
    forbidden.insert(forbidden.end(), eos.begin(), eos.end());
  }
  std::span<const uint32_t> allowed;
  const bool constrained = r.grammar && r.grammar_begun;
  if (constrained) allowed = allowed_tokens(r, forbidden);
  const int32_t token = sampler_.sample({.logits = row,
                                         .params = &r.in.sampling,
                                         .counts = &r.counts,
                                         .allowed = allowed,
                                         .forbidden = forbidden,
                                         .seed = r.seed,
                                         .position = static_cast<uint64_t>(r.generated())});
  r.grammar_begun |= token == r.in.sampling.grammar_after;
  if (constrained && !r.grammar->accept(token)) {
    return end(r, {.kind = FinishKind::kAbort,
                   .message = fmt::format("no token of the vocabulary goes on with {}", r.in.sampling.grammar_field),
                   .status_code = 400});
  }
  if (r.in.return_logprob) {
    r.output_logprobs.push_back(sampler_.logprobs(row, token, r.in.top_logprobs_num, r.in.token_ids_logprob));
  }
  r.tokens.push_back(token);
  if (has_penalties(r.in.sampling)) ++r.counts[token];
  ++totals_.generation_tokens_total;
  ++window_tokens_;

  const FinishReason finish = finish_of(r, token);
  if (finish.kind != FinishKind::kNone) return end(r, finish);
  const int64_t interval = std::max<int64_t>(1, r.in.stream_interval);
  if ((r.generated() - 1) % interval == 0) emit(r, finish);
}

// What the grammar allows, less what is forbidden as long as anything is left: where only the end may come, it comes.
std::span<const uint32_t> Scheduler::allowed_tokens(Request& r, std::vector<int32_t>& forbidden) {
  mask_.assign((static_cast<size_t>(runner_.info().vocab_size) + 31) / 32, 0);
  const TimePoint begun = clock_.now();
  const bool constrained = r.grammar->allowed(mask_);
  const Duration took = clock_.now() - begun;
  ++r.grammar_tokens;
  r.grammar_time += took;
  r.longest_grammar_time = std::max(r.longest_grammar_time, took);
  if (!constrained) return {};
  const std::vector<int32_t> ends = std::exchange(forbidden, {});
  std::vector<uint32_t> rest = ends.empty() ? std::vector<uint32_t>() : mask_;
  for (const int32_t token : ends) {
    if (token >= 0 && static_cast<size_t>(token) / 32 < rest.size()) rest[token / 32] &= ~(uint32_t{1} << (token % 32));
  }
  if (std::any_of(rest.begin(), rest.end(), [](uint32_t word) { return word != 0; })) mask_ = std::move(rest);
  return mask_;
}

// In the runtime's order: length, then tokens, then strings.
FinishReason Scheduler::finish_of(Request& r, int32_t token) {
  const SamplingParams& params = r.in.sampling;
  if (r.generated() >= r.max_new) return {.kind = FinishKind::kLength};
  if (!params.ignore_eos && (contains(params.stop_token_ids, token) || contains(runner_.info().eos_token_ids, token))) {
    return {.kind = FinishKind::kStopToken, .matched_token = token};
  }
  if (r.grammar && r.grammar->finished()) return {.kind = FinishKind::kStopToken, .matched_token = token};
  if (r.longest_stop > 0 || r.stop_regexes) {
    r.tail += token_bytes_(token);
    for (const auto& stop : params.stop) {
      if (r.tail.find(stop) != std::string::npos) return {.kind = FinishKind::kStopString, .matched_string = stop};
    }
    if (r.stop_regexes) {
      if (const auto* pattern = r.stop_regexes->find(r.tail)) {
        return {.kind = FinishKind::kStopString, .matched_string = *pattern};
      }
    }
    // Only what a stop can still begin in.
    const size_t kept = std::max(r.longest_stop > 0 ? r.longest_stop - 1 : 0, r.stop_regexes ? StopRegexes::kTail : 0);
    if (r.tail.size() > kept) r.tail.erase(0, r.tail.size() - kept);
  }
  return {};
}

void Scheduler::emit(Request& r, FinishReason finish) {
  RequestOutput out{.rid = r.in.rid,
                    .finish = std::move(finish),
                    .prompt_tokens = r.prompt_len,
                    .completion_tokens = r.generated(),
                    .cached_tokens = r.cached_tokens,
                    .retractions = r.retractions,
                    .times = r.times};
  out.new_ids.assign(r.tokens.begin() + r.prompt_len + r.sent, r.tokens.end());
  r.sent = r.generated();
  if (r.input_logprobs_done) out.input_logprobs = std::exchange(r.input_logprobs, {});
  out.output_logprobs = std::exchange(r.output_logprobs, {});
  outputs_.push_back(std::move(out));
}

void Scheduler::end(Request& r, FinishReason finish) {
  switch (r.phase) {
    case Request::Phase::kWaiting:
      waiting_.erase(r.arrival);
      break;
    case Request::Phase::kChunked:
      chunked_ = nullptr;
      break;
    case Request::Phase::kRunning:
      std::erase(running_, &r);
      break;
  }
  std::vector<int32_t> experts;
  if (routed_experts_ && r.in.return_routed_experts && r.row >= 0) {
    experts = routed_experts_->of(table_row(r).first(static_cast<size_t>(r.kv_len)));
  }
  release(r, /*keep_in_cache=*/true);
  if (r.grammar_tokens > 0) {
    GrammarWalks& walks = totals_.grammar_walks;
    walks.mean.observe(kGrammarWalkSeconds, seconds(r.grammar_time) / static_cast<double>(r.grammar_tokens));
    walks.longest.observe(kGrammarWalkSeconds, seconds(r.longest_grammar_time));
  }
  emit(r, std::move(finish));
  outputs_.back().hidden_states = std::move(r.hidden);
  outputs_.back().routed_experts = std::move(experts);
  const std::string rid = r.in.rid;
  requests_.erase(rid);
}

Result<void> Scheduler::step() {
  expire();
  if (paused_) return {};
  const StepPlan next = plan();
  if (next.kind == StepPlan::Kind::kIdle) {
    SLUICE_CHECK(idle(), "{} requests are known and none can go on", requests_.size());
    return {};
  }
  return run(next);
}

Result<void> Scheduler::run(const StepPlan& plan) {
  StepReport times{.begun = planning_since_};
  if (observer_) times.planned = clock_.now();
  SLUICE_TRY(const auto logits, launch(plan));
  if (observer_) times.launched = clock_.now();
  commit(plan, logits);
  if (observer_) report(plan, times);
  return {};
}

void Scheduler::report(const StepPlan& plan, StepReport report) {
  report.committed = clock_.now();
  report.kind = plan.kind;
  report.sequences = static_cast<int64_t>(plan.sequences.size());
  for (const auto& s : plan.sequences) {
    report.tokens += s.new_tokens;
    report.cached += s.cached;
  }
  report.retracted = static_cast<int64_t>(plan.retract.size());
  report.running = static_cast<int64_t>(running_.size()) + (chunked_ ? 1 : 0);
  report.waiting = static_cast<int64_t>(waiting_.size());
  report.cached_tokens = cache_.evictable();
  report.used_tokens = pool_.capacity() - pool_.available() - report.cached_tokens;
  observer_(report);
}

// ---- reports

double Scheduler::token_usage() const {
  return 1 - static_cast<double>(pool_.available() + cache_.evictable()) / static_cast<double>(pool_.capacity());
}

LoadSnapshot Scheduler::snapshot() {
  const TimePoint now = clock_.now();
  if (const double window = seconds(now - window_start_); window >= 1.0) {
    totals_.gen_throughput = static_cast<double>(window_tokens_) / window;
    window_start_ = now;
    window_tokens_ = 0;
  }
  LoadSnapshot s = totals_;
  s.unix_nanos = clock_.unix_nanos();
  s.num_running_reqs = static_cast<int64_t>(running_.size()) + (chunked_ ? 1 : 0);
  s.num_waiting_reqs = static_cast<int64_t>(waiting_.size());
  s.num_paused_reqs = paused_ ? static_cast<int64_t>(requests_.size()) : 0;
  s.num_cached_tokens = cache_.evictable();
  s.num_used_tokens = pool_.capacity() - pool_.available() - cache_.evictable();
  for (const auto& [arrival, r] : waiting_) {
    s.num_waiting_tokens += r->length();
    s.num_retracted_reqs += r->retractions > 0;
  }
  for (const Request* r : running_) s.decode_sum_seq_lens += r->length();
  s.new_token_ratio = new_token_ratio_;
  if (now >= next_key_count_) count_routing_keys(now);
  s.routing_keys = totals_.routing_keys;
  s.max_total_num_tokens = pool_.capacity();
  s.max_running_requests = options_.max_running_requests;
  if (runner_.info().state_bytes_per_sequence > 0) {
    s.num_used_states = options_.max_running_requests - std::ssize(free_rows_);
    s.max_total_states = options_.max_running_requests + options_.radix.state_rows;
  }
  return s;
}

// Now and then only: it visits every request.
void Scheduler::count_routing_keys(TimePoint now) {
  next_key_count_ = now + kCountKeysEvery;
  struct Numbers {
    int64_t running = 0, all = 0;
  };
  std::unordered_map<std::string_view, Numbers> keys;
  for (const auto& [rid, r] : requests_) {
    if (r->in.routing_key.empty()) continue;
    Numbers& numbers = keys[r->in.routing_key];
    ++numbers.all;
    numbers.running += r->phase != Request::Phase::kWaiting;
  }
  const auto bucket = [](int64_t number) {
    return std::lower_bound(std::begin(kRequestsPerKey), std::end(kRequestsPerKey), number) -
           std::begin(kRequestsPerKey);
  };
  RoutingKeyCounts& counts = totals_.routing_keys = {};
  for (const auto& [key, numbers] : keys) {
    ++counts.all[bucket(numbers.all)];
    if (numbers.running == 0) continue;
    ++counts.unique_running;
    ++counts.running[bucket(numbers.running)];
  }
}

void Scheduler::check_invariants() const {
  cache_.check_invariants();
  int64_t own = 0;
  size_t rows = 0;
  for (const auto& [rid, r] : requests_) {
    own += pool_.ceil(r->kv_len) - r->owned_from;
    SLUICE_CHECK(pool_.floor(r->owned_from) == r->owned_from, "request {} shares {} tokens", rid, r->owned_from);
    rows += r->row >= 0;
    SLUICE_CHECK((r->phase == Request::Phase::kWaiting) == (r->row < 0), "request {} has row {}", rid, r->row);
  }
  SLUICE_CHECK(pool_.available() + cache_.evictable() + cache_.locked() + own == pool_.capacity(),
               "{} free + {} evictable + {} locked + {} owned of {}", pool_.available(), cache_.evictable(),
               cache_.locked(), own, pool_.capacity());
  SLUICE_CHECK(rows + free_rows_.size() == static_cast<size_t>(options_.max_running_requests), "{} rows used, {} free",
               rows, free_rows_.size());
  SLUICE_CHECK(requests_.size() == waiting_.size() + running_.size() + (chunked_ ? 1 : 0), "a request is in no queue");
  if (requests_.empty()) SLUICE_CHECK(cache_.locked() == 0, "{} tokens stay locked", cache_.locked());
}

}  // namespace sluice::engine
