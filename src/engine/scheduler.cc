#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/pulse.h"

namespace sluice::engine {
namespace {

// Priorities beyond this are cut, so that their differences are numbers too.
constexpr int64_t kMostUrgent = int64_t{1} << 60;

int64_t urgency_of(const SchedulerOptions::Priorities& priorities, std::optional<int64_t> priority) {
  if (!priorities.enabled) return 0;
  if (!priority) return -kMostUrgent - 1;
  const int64_t value = std::clamp(*priority, -kMostUrgent, kMostUrgent);
  return priorities.low_first ? -value : value;
}

using Range = StepWork::Range;

// Those whose logits are wanted for input logprobs: the row of position p predicts position p + 1.
Range scored_rows(const Request& r, int64_t n) {
  if (!r.wants_input_logprobs()) return {};
  const int64_t from = std::max(r.kv_len, r.in.logprob_start_len - 1);
  const int64_t to = std::min(r.kv_len + n, r.prompt_len - 1);
  return {from - r.kv_len, std::max<int64_t>(0, to - from)};
}

// Those that go through the head beside the one that a token is chosen from: for input logprobs, and for hidden states.
Range head_rows(const Request& r, const StepPlan::Sequence& s, const Range& scored) {
  if (!r.in.return_hidden_states) return scored;
  const int64_t from = std::max<int64_t>(0, r.hidden_rows - r.kv_len);
  const Range hidden{from, std::max<int64_t>(0, s.new_tokens - (s.last ? 1 : 0) - from)};
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
                     std::function<std::string_view(int32_t)> token_bytes, const Clock& clock, StepDevice* device)
    : options_(options),
      runner_(runner),
      token_bytes_(std::move(token_bytes)),
      clock_(clock),
      // Less than the pool by a page, so that a request alone always fits.
      max_req_len_(
          std::min(options.context_length - 1, (options.kv_slots / options.page_size - 2) * options.page_size)),
      table_width_(static_cast<int64_t>(runner.slot_table().size()) / options.max_running_requests),
      initial_ratio_(std::min(options.tuning.initial_ratio * options.conservativeness, 1.0)),
      smallest_ratio_(initial_ratio_ * options.tuning.smallest_ratio_factor),
      pool_(options.kv_slots, options.page_size),
      cache_(pool_, options.radix),
      computer_(runner, clock, options.kv_slots, options.keep_routed_experts),
      new_token_ratio_(initial_ratio_),
      window_start_(clock.now()),
      device_(device ? *device : inline_device_) {
  SLUICE_CHECK(device_.depth() == 1 || options.radix.state_rows == 0,
               "states are copied between steps, which a device of depth {} does not wait for", device_.depth());
  SLUICE_CHECK(table_width_ >= max_req_len_, "slot table of width {} for sequences of {}", table_width_, max_req_len_);
  for (auto row = static_cast<int32_t>(options.max_running_requests); row-- > 0;) free_rows_.push_back(row);
}

Scheduler::~Scheduler() {
  for (; flights_ > 0; --flights_) (void)device_.wait();
}

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
  const bool health = request.is_health_check;
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
  (void)settle();  // an error stays in failure_
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

std::optional<TimePoint> Scheduler::next_due() const {
  std::optional<TimePoint> first;
  const auto consider = [&](TimePoint due) {
    if (!first || due < *first) first = due;
  };
  if (options_.waiting_timeout || options_.running_timeout) {
    for (const auto& [rid, r] : requests_) {
      const auto& limit = r->begun ? options_.running_timeout : options_.waiting_timeout;
      if (limit) consider(r->begun.value_or(r->arrived) + *limit + Duration{1});
    }
  }
  if (window_tokens_ > 0 || totals_.gen_throughput > 0) consider(window_start_ + kThroughputWindow);
  if (keys_changed_) consider(next_key_count_);
  return first;
}

Result<void> Scheduler::flush_cache() {
  SLUICE_TRY_VOID(settle());
  if (!idle() && !(paused_ && nothing_runs())) {
    return Error{ErrorCode::kUnavailable, fmt::format("the cache cannot be flushed while {} requests run and {} wait",
                                                      num_running(), waiting_.size())};
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
  const int64_t answer = unpromised_bytes(r);
  r.answer_promised += answer;
  answer_promised_ += answer;
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
  SLUICE_CHECK(r.in_flight == 0, "request {} is retracted in a step in flight", r.in.rid);
  if (r.phase == Request::Phase::kChunked) {
    chunked_ = nullptr;
  } else {
    std::erase(running_, &r);
  }
  if (r.in.return_routed_experts) r.experts = experts_of(r);
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

void Scheduler::add_to_batch(const StepPlan::Sequence& s, std::span<const int32_t> new_slots, StepWork& work) {
  Request& r = *s.request;
  const auto slots = table_row(r);
  const int64_t end = r.kv_len + s.new_tokens;
  const int64_t in_last_page = std::min(pool_.ceil(r.kv_len), end);
  for (int64_t p = r.kv_len; p < in_last_page; ++p) {
    slots[static_cast<size_t>(p)] = slots[static_cast<size_t>(p) - 1] + 1;
  }
  std::copy_n(new_slots.begin(), end - in_last_page, slots.begin() + in_last_page);
  StepWork::Row row{.request = &r,
                    .prompt = r.phase != Request::Phase::kRunning,
                    .last = s.last,
                    .samples = s.last && !r.in.embed && r.max_new > 0,
                    .scores = r.phase != Request::Phase::kRunning && r.wants_input_logprobs(),
                    .cached = s.cached,
                    .first_position = r.kv_len,
                    .new_tokens = s.new_tokens,
                    .generated = r.generated(),
                    .scored = scored_rows(r, s.new_tokens)};
  row.head = head_rows(r, s, row.scored);
  for (int64_t i = 0; i < row.scored.count; ++i) {
    row.targets.push_back(r.tokens[static_cast<size_t>(r.kv_len + row.scored.from + i + 1)]);
  }
  if (r.in.return_hidden_states) row.hidden_from = std::exchange(r.hidden_rows, std::max(r.hidden_rows, end));
  if (r.pending > 0) {
    // The last of its tokens, and the only one of this step: prompts are known.
    SLUICE_CHECK(r.in_flight == 1 && s.new_tokens == 1, "{} tokens of request {} depend on {} steps in flight",
                 s.new_tokens, r.in.rid, r.in_flight);
    work.futures.push_back({.at = static_cast<size_t>(work.batch.tokens()), .row = r.step_row});
  }
  const auto at = static_cast<size_t>(r.kv_len), n = static_cast<size_t>(s.new_tokens);
  std::span<const float> embeds;
  if (!r.in.input_embeds.empty() && r.kv_len < r.prompt_len) {
    const auto width = r.in.input_embeds.size() / static_cast<size_t>(r.prompt_len);
    const auto count = static_cast<size_t>(std::min(end, r.prompt_len) - r.kv_len);
    embeds = std::span(r.in.input_embeds).subspan(at * width, count * width);
  }
  work.batch.add({.tokens = std::span(r.tokens).subspan(at, n),
                  .slots = slots.subspan(at, n),
                  .first_position = r.kv_len,
                  .table_row = r.row,
                  .logits_from = row.head.from,
                  .logits_count = row.head.count,
                  .last_logit = s.last,
                  .embeds = embeds});
  r.step_row = work.rows.size();
  work.rows.push_back(std::move(row));
  advance(work.rows.back());
}

// Where the request stands once this step is computed, as far as that is known already.
void Scheduler::advance(StepWork::Row& row) {
  Request& r = *row.request;
  ++r.in_flight;
  r.kv_in_flight += row.new_tokens;
  r.kv_len += row.new_tokens;
  if (row.prompt) chunked_ = row.last ? (chunked_ == &r ? nullptr : chunked_) : &r;
  if (!row.last) return;
  r.phase = Request::Phase::kRunning;
  if (row.samples) {
    r.tokens.push_back(kFutureToken);
    ++r.pending;
  }
  const bool goes_on = row.samples && r.generated() < r.max_new;
  if (row.prompt && goes_on) running_.push_back(&r);
  if (!row.prompt && !goes_on) std::erase(running_, &r);
}

void Scheduler::launch(StepPlan plan) {
  SLUICE_CHECK(flights_ == 0 || (flights_ < device_.depth() && plan.retract.empty() && plan.preempt.empty()),
               "a step is launched with {} in flight that it cannot follow", flights_);
  Flight& next = flight(flights_);
  if (learns()) {
    next.shape = shape_of(plan);
    next.launched = clock_.now();
  }
  for (Request* r : plan.preempt) retract(*r);
  if (!plan.retract.empty()) {
    for (Request* r : plan.retract) retract(*r);
    double decoded = 0;
    double allowed = 0;
    for (const Request* r : running_) {
      decoded += static_cast<double>(r->generated());
      allowed += static_cast<double>(r->max_new);
    }
    const double expected = decoded + static_cast<double>(options_.tuning.retract_decode_steps * std::ssize(running_));
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
  next.work.clear();
  std::span<const int32_t> left = slots;
  for (const auto& s : plan.sequences) {
    const auto n = static_cast<size_t>(new_slots(*s.request, s.new_tokens));
    add_to_batch(s, left.first(n), next.work);
    left = left.subspan(n);
  }
  next.plan = std::move(plan);
  next.times = {.begun = planning_since_};
  if (observer_) next.times.launched = clock_.now();
  ++flights_;
  device_.submit([this, &work = next.work] { return computer_.compute(work); });
}

// ---- commit

Result<void> Scheduler::commit() {
  SLUICE_CHECK(flights_ > 0, "no step is in flight");
  Flight& done = flight(0);
  auto computed = device_.wait();
  --flights_;
  first_flight_ = (first_flight_ + 1) % 2;
  if (!computed.ok()) {
    failure_ = computed.error();
    return computed;
  }
  if (observer_) done.times.taken = clock_.now();
  ++totals_.steps_total;
  if (!done.work.cancelled) count_step(done.work);
  for (auto& row : done.work.rows) take(row, done.work.cancelled);
  if (requests_.empty()) new_token_ratio_ = initial_ratio_;
  if (flights_ == 0) {
    if (chunked_) drop_doubles(*chunked_);
    for (Request* r : running_) drop_doubles(*r);
  }
  if (learns() && !done.work.cancelled) {
    // What those who decode wait for: all of it, or its computing, beside which the rest is done.
    const Duration took = device_.depth() == 1 ? clock_.now() - done.launched : done.work.computed - done.work.started;
    times_.record(done.shape, seconds(took));
  }
  if (observer_) report(done);
  return {};
}

void Scheduler::take(StepWork::Row& row, bool cancelled) {
  Request& r = *row.request;
  --r.in_flight;
  r.kv_in_flight -= row.new_tokens;
  SLUICE_CHECK(r.ended || !cancelled, "a step was cancelled that request {} waits for", r.in.rid);
  if (r.ended) {
    if (r.in_flight == 0) bury(r, !cancelled);
    return;
  }
  if (row.scores) {
    if (r.in.logprob_start_len == 0 && r.input_logprobs.empty()) {
      r.input_logprobs.emplace_back();  // nothing predicts the first token
    }
    for (auto& logprobs : row.input_logprobs) r.input_logprobs.push_back(std::move(logprobs));
  }
  r.hidden.insert(r.hidden.end(), row.hidden.begin(), row.hidden.end());
  if (row.prompt) share_prefix(r);
  if (!row.last) return;
  if (row.prompt) {
    r.input_logprobs_done = true;
    if (!r.prefilled_once) {
      r.prefilled_once = true;
      r.times.prefilled_unix_nanos = clock_.unix_nanos();
      r.times.prefill = seconds(clock_.now() - *r.begun);
      totals_.prompt_tokens_total += static_cast<uint64_t>(r.prompt_len);
      totals_.cached_tokens_total += static_cast<uint64_t>(r.cached_tokens);
    }
  }
  take_token(r, row);
}

void Scheduler::count_step(const StepWork& work) {
  int64_t cached = 0;
  int64_t computed = 0;
  int64_t decoding = 0;
  for (const auto& row : work.rows) {
    if (row.prompt) {
      cached += row.cached;
      computed += row.new_tokens;
    } else {
      ++decoding;
    }
  }
  const double forward = seconds(work.forward_time);
  totals_.forward_seconds[computed == 0 ? 1 : decoding == 0 ? 0 : 2] += forward;
  if (computed > 0) {
    totals_.cache_hit_rate = static_cast<double>(cached) / static_cast<double>(cached + computed);
  } else {
    const double decay = (initial_ratio_ - smallest_ratio_) / static_cast<double>(options_.tuning.ratio_decay_steps);
    new_token_ratio_ = std::max(smallest_ratio_, new_token_ratio_ - decay);
  }
}

// Puts the whole pages of what is computed into the prefix cache, so that others share it while this request still
// runs, and takes over the cache's slots where somebody else was first; unless a step in flight reads its own there.
void Scheduler::share_prefix(Request& r) {
  if (!options_.prefix_cache) return;
  const auto row = table_row(r);
  const int64_t whole = pool_.floor(r.kv_len - r.kv_in_flight);
  auto [held, end] = cache_.insert(r.in.extra_key, r.first(whole), row.first(static_cast<size_t>(whole)));
  if (held > r.owned_from) {
    const auto doubles = row.subspan(static_cast<size_t>(r.owned_from), static_cast<size_t>(held - r.owned_from));
    if (r.in_flight > 0) {
      r.doubles.insert(r.doubles.end(), doubles.begin(), doubles.end());
    } else {
      pool_.free(doubles);
      RadixCache::copy_slots(end, row.first(static_cast<size_t>(whole)));
    }
  }
  int64_t found = whole;
  if (end) keep_state(r, end);
  if (r.in_flight == 0 && options_.radix.state_rows == 0 &&
      cache_.peek(r.in.extra_key, r.first(r.match_limit())) > r.kv_len) {
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

// Nobody reads them any more. A request that is left alone must not hold more than its length.
void Scheduler::drop_doubles(Request& r) {
  if (r.doubles.empty()) return;
  pool_.free(r.doubles);
  r.doubles.clear();
  RadixCache::copy_slots(r.node, table_row(r).first(static_cast<size_t>(r.owned_from)));
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
    // Not what was computed after a token that nobody knows: the grammar of an earlier step refused to go on.
    kept = pool_.floor(std::min(r.kv_len, r.length() - r.pending));
    const auto [held, end] = cache_.insert(r.in.extra_key, r.first(kept), row.first(static_cast<size_t>(kept)));
    give_back(r.owned_from, held);
    if (end) keep_state(r, end);
  }
  give_back(kept, r.kv_len);
  pool_.free(r.doubles);
  r.doubles.clear();
  cache_.unlock(r.node);
  free_rows_.push_back(r.row);
  r.node = nullptr;
  r.row = -1;
  r.kv_len = r.owned_from = 0;
}

void Scheduler::take_token(Request& r, StepWork::Row& row) {
  if (!row.samples) {  // an embedding, or prefill only
    end(r, {.kind = FinishKind::kLength});
    outputs_.back().embedding = std::move(row.embedding);
    return;
  }
  if (row.rejected) {
    const std::string& field = r.in.sampling.grammar_field;
    return end(r, {.kind = FinishKind::kAbort,
                   .message = row.too_slow
                                  ? fmt::format("{} takes too long, {:.1f} s for the next token: it probably has very "
                                                "many ways to read what is there already",
                                                field, seconds(r.longest_grammar_time))
                                  : fmt::format("no token of the vocabulary goes on with {}", field),
                   .status_code = 400});
  }
  r.tokens[static_cast<size_t>(r.length() - r.pending)] = row.token;
  --r.pending;
  if (row.logprobs) r.output_logprobs.push_back(std::move(*row.logprobs));
  ++totals_.generation_tokens_total;
  ++window_tokens_;

  const FinishReason finish = finish_of(r, row);
  if (finish.kind != FinishKind::kNone) return end(r, finish);
  const int64_t interval = std::max<int64_t>(1, r.in.stream_interval);
  if ((r.known() - 1) % interval == 0) emit(r, finish);
}

// In the runtime's order: length, then tokens, then strings.
FinishReason Scheduler::finish_of(Request& r, const StepWork::Row& row) {
  const SamplingParams& params = r.in.sampling;
  const int32_t token = row.token;
  if (r.known() >= r.max_new) return {.kind = FinishKind::kLength};
  if (!params.ignore_eos && (contains(params.stop_token_ids, token) || contains(runner_.info().eos_token_ids, token))) {
    return {.kind = FinishKind::kStopToken, .matched_token = token};
  }
  if (row.grammar_over) {
    const bool is_end = contains(runner_.info().eos_token_ids, token);
    return {.kind = FinishKind::kStopToken, .matched_token = is_end ? token : -1};
  }
  if (r.longest_stop > 0 || r.stop_regexes) {
    r.tail += token_bytes_(token);
    for (const auto& stop : params.stop) {
      if (r.tail.find(stop) != std::string::npos) return {.kind = FinishKind::kStopString, .matched_string = stop};
    }
    if (r.stop_regexes) {
      beat(kLoopBeats);
      if (const auto* pattern = r.stop_regexes->find(r.tail, r.tail_is_cut ? 1 : 0)) {
        return {.kind = FinishKind::kStopString, .matched_string = *pattern};
      }
    }
    // Only what a stop can still begin in, and of an expression's the byte before it.
    const size_t kept =
        std::max(r.longest_stop > 0 ? r.longest_stop - 1 : 0, r.stop_regexes ? StopRegexes::kTail + 1 : 0);
    if (r.tail.size() > kept) {
      r.tail.erase(0, r.tail.size() - kept);
      r.tail_is_cut = true;
    }
  }
  return {};
}

void Scheduler::emit(Request& r, FinishReason finish) {
  RequestOutput out{.rid = r.in.rid,
                    .finish = std::move(finish),
                    .prompt_tokens = r.prompt_len,
                    .completion_tokens = r.known(),
                    .cached_tokens = r.cached_tokens,
                    .retractions = r.retractions,
                    .times = r.times};
  out.new_ids.assign(r.tokens.begin() + r.prompt_len + r.sent, r.tokens.end() - r.pending);
  r.sent = r.known();
  if (r.input_logprobs_done) out.input_logprobs = std::exchange(r.input_logprobs, {});
  out.output_logprobs = std::exchange(r.output_logprobs, {});
  outputs_.push_back(std::move(out));
}

// Of what is computed, or was before it was retracted.
std::vector<int32_t> Scheduler::experts_of(Request& r) const {
  std::vector<int32_t> now;
  if (r.row >= 0) {
    now = computer_.routed_experts(table_row(r).first(static_cast<size_t>(r.kv_len - r.kv_in_flight)));
  }
  return now.size() < r.experts.size() ? std::move(r.experts) : now;
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
  if (r.in.return_routed_experts) experts = experts_of(r);
  answer_promised_ -= std::exchange(r.answer_promised, 0);
  emit(r, std::move(finish));
  outputs_.back().hidden_states = std::move(r.hidden);
  outputs_.back().routed_experts = std::move(experts);
  r.ended = true;
  const auto at = requests_.find(r.in.rid);
  ended_.push_back(std::move(at->second));
  requests_.erase(at);
  if (r.in_flight == 0) bury(r);
}

// The answer is given, and no step in flight computes for it any more: whatever it held is free.
void Scheduler::bury(Request& r, bool computed) {
  release(r, /*keep_in_cache=*/computed);
  if (r.grammar_tokens > 0) {
    GrammarWalks& walks = totals_.grammar_walks;
    walks.mean.observe(kGrammarWalkSeconds, seconds(r.grammar_time) / static_cast<double>(r.grammar_tokens));
    walks.longest.observe(kGrammarWalkSeconds, seconds(r.longest_grammar_time));
  }
  std::erase_if(ended_, [&](const auto& owned) { return owned.get() == &r; });
}

// ---- steps

Result<void> Scheduler::step() {
  expire();
  if (failure_) return *failure_;
  if (paused_) return {};
  if (flights_ == 0) {
    StepPlan next = plan();
    if (next.kind == StepPlan::Kind::kIdle) {
      SLUICE_CHECK(idle(), "{} requests are known and none can go on", requests_.size());
      return {};
    }
    launch(std::move(next));
    if (device_.depth() > 1) return {};
  } else if (may_look_ahead()) {
    if (StepPlan next = plan(); may_follow(next)) launch(std::move(next));
  }
  return commit();
}

Result<void> Scheduler::run(StepPlan plan) {
  launch(std::move(plan));
  return commit();
}

bool Scheduler::step_is_wanted() const {
  const Flight& first = ring_[static_cast<size_t>(first_flight_)];
  return flights_ > 0 && !std::ranges::all_of(first.work.rows, [](const auto& row) { return row.request->ended; });
}

Result<void> Scheduler::settle() {
  if (failure_) return *failure_;
  while (flights_ > 0) SLUICE_TRY_VOID(commit());
  return {};
}

// Those who are about to end hold slots until their step is committed: nobody is retracted because of them.
bool Scheduler::may_look_ahead() const {
  int64_t needed = 0;
  for (const Request* r : running_) needed += new_slots(*r, 1);
  return flights_ < device_.depth() && needed <= pool_.available() + cache_.evictable();
}

// What a plan must not do while a step is in flight: take slots from those whom the step computes, or admit anybody
// while a prompt is computed, which is in the prefix cache once that is committed.
bool Scheduler::may_follow(const StepPlan& next) const {
  if (next.kind == StepPlan::Kind::kIdle || !next.retract.empty() || !next.preempt.empty()) return false;
  const StepWork& work = ring_[static_cast<size_t>(first_flight_)].work;
  if (std::ranges::none_of(work.rows, &StepWork::Row::prompt)) return true;
  return std::ranges::none_of(next.sequences,
                              [](const StepPlan::Sequence& s) { return s.request->phase == Request::Phase::kWaiting; });
}

}  // namespace sluice::engine
