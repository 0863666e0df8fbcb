// Continuous batching: decides at every step which requests compute what, keeps their KV in the pool and the prefix
// cache, and turns logits into output.
//
// A step is plan(), launch(), commit():
//   plan    const. What the step would do: admissions with their cached prefixes, chunk sizes, retractions. Dropping a
//           plan leaves no trace.
//   launch  takes what the plan names (slots, locks, rows) and hands the step to the device (engine/step_device.h).
//   commit  waits for it and takes in what came of it: new tokens, finished requests, what enters the prefix cache.
// Messages (add, abort, flush) come between calls. Prefill goes before decode, or together with it in mixed steps; one
// long prompt at a time is cut into chunks. The rules of admission, retraction and order are SGLang's.
//
// On a device of depth 2 the next step is planned and launched while one is computed, as if that were over already:
// who decodes goes on with a token that is not known yet (kFutureToken), which the device fills in. Whoever turns out
// to have ended is computed once more in vain, and gives its slots back when that is over. What cannot be planned so
// (retractions, admissions beside a prompt that is not in the prefix cache yet, pauses, flushes) waits for the commit.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "engine/batch.h"
#include "engine/joint_step.h"
#include "engine/kv_pool.h"
#include "engine/messages.h"
#include "engine/radix_cache.h"
#include "engine/request.h"
#include "engine/schedule_policy.h"
#include "engine/scheduler_tuning.h"
#include "engine/step_device.h"
#include "engine/step_times.h"
#include "engine/step_work.h"
#include "models/runner.h"

namespace sluice::engine {

// In Pulse::beats the line of the thread that schedules: the first ones are those of the threads that compute.
inline constexpr int kLoopBeats = 15;

struct SchedulerOptions {
  int64_t kv_slots = 0;  // KvPlan::slots of the runner, the dummy page included
  int64_t page_size = 1;
  int64_t max_running_requests = 1;
  std::optional<int64_t> max_queued_requests;
  int64_t chunked_prefill_size = 0;  // 0: prompts are not cut
  int64_t max_prefill_tokens = 16384;
  std::optional<int64_t> prefill_max_requests;
  int64_t context_length = 0;
  const SchedulePolicy* policy = &schedule_policies().front();  // one of schedule_policies()
  bool prefix_cache = true;
  RadixOptions radix;
  struct Priorities {
    bool enabled = false;
    bool low_first = false;             // small values are the urgent ones
    bool refused_if_disabled = false;   // 503 for a request that brings one while they are not enabled
    int64_t preemption_threshold = 10;  // who is more urgent by more than this takes the place of a running request
  } priorities;
  bool mixed_chunk = false;      // decoding goes on in the steps that compute prompts
  double mixed_chunk_gap = 3.0;  // > 1: times the length of a decode step that such a step may take
  // Steps are computed together with others', which last as long: see others_decode() and step_took().
  bool joint_steps = false;
  double conservativeness = 1.0;
  SchedulerTuning tuning;
  uint64_t seed = 0;                 // of requests that bring none
  bool keep_routed_experts = false;  // for return_routed_experts; of a model with experts
  // Of hidden states and log-probabilities that all requests which have begun may come to keep for their answers.
  // Others that want some wait; one that wants more has all of it for itself.
  int64_t most_answer_bytes = int64_t{256} << 20;
  // How long a request may wait for its first step, and run from there on; 503 after it.
  std::optional<Duration> waiting_timeout, running_timeout;
};

struct StepPlan {
  enum class Kind { kIdle, kPrefill, kDecode, kMixed };
  struct Sequence {
    Request* request = nullptr;
    int64_t cached = 0;      // prefix to take from the cache, for a request that is admitted
    int64_t new_tokens = 0;  // to compute
    bool last = true;        // after them the request can sample
  };

  bool has_prompt() const;
  bool continues_prompt() const;  // one that is partly computed

  Kind kind = Kind::kIdle;
  // Position at which prompts could go on that wait in this step: decoding is to be measured, or the other groups are
  // told of them first, or they are held back.
  std::optional<int64_t> prompts_wait_at;
  std::vector<Sequence> sequences;
  std::vector<Request*> retract;  // there is no room for
  std::vector<Request*> preempt;  // a more urgent one takes the place of
};

// What a step did and when: the scheduler from `begun` to `launched`, and from `taken` to `committed`; the device from
// `started` to `computed`, which may be while the scheduler does something for another step.
struct StepReport {
  StepPlan::Kind kind = StepPlan::Kind::kIdle;
  TimePoint begun, launched, started, computed, taken, committed;
  int64_t sequences = 0, tokens = 0;
  int64_t cached = 0;  // tokens taken from the prefix cache
  int64_t retracted = 0;
  // After it.
  int64_t running = 0, waiting = 0;
  int64_t used_tokens = 0, cached_tokens = 0;
};

// Used by one thread.
class Scheduler {
 public:
  // `runner` has its KV allocated for `options` (slots, max_running_requests rows) and outlives the scheduler, as do
  // `clock` and `device`. `token_bytes` gives a token's text, for stop strings. `device`: null computes steps in
  // launch(); one of depth 2 is for models without states.
  Scheduler(const SchedulerOptions& options, models::Runner& runner,
            std::function<std::string_view(int32_t)> token_bytes, const Clock& clock, StepDevice* device = nullptr);
  // Waits for steps in flight.
  ~Scheduler();

  // A request that cannot be served gets its answer (kAbort with a status) at once.
  // `grammar`: what its tokens are held to, if anything.
  void add(GenerateRequest request, std::shared_ptr<const Grammar> grammar = nullptr);
  // Ends a request in any phase, now; unknown ids are ignored.
  void abort(const AbortRequest& request);
  // kUnavailable, saying what is in the way, unless nothing runs, and nothing waits for anything but the end of a
  // pause.
  Result<void> flush_cache();

  // Nothing is computed until go_on(). What is in flight is aborted, goes back to the queue, or stays as it is; what
  // comes waits.
  enum class Pause { kAbort, kRetract, kInPlace };
  void pause(Pause how);
  void go_on() { paused_ = false; }
  bool paused() const { return paused_; }

  // Nobody is served, and nothing is in flight.
  bool idle() const { return requests_.empty() && flights_ == 0; }
  bool has_work() const { return !paused_ && !idle(); }
  // Nothing holds KV or a place in a step.
  bool nothing_runs() const { return requests_.size() == waiting_.size() && flights_ == 0; }
  // Steps that are launched and not committed, 0 to 2; at most 1 between calls of step().
  int in_flight() const { return flights_; }
  // Whether anybody waits for the one that is launched first; it may be asked while that is computed, also by who
  // computes it (Runner::ask_between_layers). If not, the step may be cancelled.
  bool step_is_wanted() const;
  // Commits them. What changes under a model's feet (weights, recordings) comes after it.
  Result<void> settle();
  // Ends what has waited or run for too long. Between steps, and at next_due() when there are none.
  void expire();
  // When expire() or snapshot() will have something new to do or to tell although nothing happens; absent: never.
  std::optional<TimePoint> next_due() const;
  // Gets every step from now on; empty: nobody does.
  void observe(std::function<void(const StepReport&)> observer) { observer_ = std::move(observer); }

  StepPlan plan() const;
  // Nothing but decoding; the prompts of `plan`, which has some, wait.
  StepPlan plan_without_prompts(const StepPlan& plan) const;
  // Not of an idle plan. With a step in flight: of a plan that goes on with it, see may_follow().
  void launch(StepPlan plan);
  // Of the step launched first. An error is the runner's: this rank cannot go on.
  Result<void> commit();
  // Both, with nothing in flight.
  Result<void> run(StepPlan plan);
  // All of it, and expire(). A step of a scheduler that is idle or paused does nothing. On a device of depth 2: with
  // nothing in flight a step is launched; otherwise the one after it is launched, if it can be planned, and the first
  // committed.
  Result<void> step();

  // Of joint_steps: prompts must not hold up those who decode elsewhere either.
  void others(const OtherGroups& others) { others_ = others; }
  // A step of all took so long.
  void step_took(const StepShape& step, Duration time) {
    if (options_.mixed_chunk) times_.record(step, seconds(time));
  }
  // This scheduler's part of a step.
  StepShape shape_of(const StepPlan& plan) const;
  // What the other groups are told of it.
  StepOutlook outlook(const StepPlan& plan) const;
  // Share of the KV pool that holds what runs.
  double token_usage() const;

  // What happened since the last call.
  std::vector<RequestOutput> take_outputs();
  // What happened to the prefix cache since the last call; nothing unless RadixOptions::record_events.
  std::vector<protocol::KvEvent> take_kv_events() { return cache_.take_events(); }
  LoadSnapshot snapshot();

  // Longest sequence (prompt and output), and the prompt length that is refused.
  int64_t max_req_len() const { return max_req_len_; }
  int64_t max_req_input_len() const { return max_req_len_ - 5; }
  double new_token_ratio() const { return new_token_ratio_; }

  // Walks everything and checks that no slot, lock or row is lost; for tests.
  void check_invariants() const;

 private:
  static constexpr Duration kThroughputWindow = std::chrono::seconds(1);
  struct Budget;
  struct Admission;
  struct Flight {
    StepPlan plan;
    StepWork work;
    StepReport times;
    StepShape shape;  // both if learns()
    TimePoint launched;
  };

  std::string refusal(const GenerateRequest& request) const;
  void refuse(const GenerateRequest& request, int32_t status, std::string message);
  bool queue_has_room(const Request& request);
  StepPlan plan_prefill() const;
  StepPlan plan_decode() const;
  bool prompts_must_wait() const;
  StepShape decoding_beside(const StepPlan& plan) const;
  PromptRoom room_for(const StepPlan& plan, int64_t position) const;
  void plan_decoding(StepPlan& plan) const;
  void plan_admissions(StepPlan& plan, Budget& budget) const;
  std::optional<Admission> admission(const Request& request, const StepPlan& plan, const Budget& budget) const;
  // What a request may come to keep at once of what goes into its answer, and how much of that it has no promise of.
  int64_t answer_bytes(const Request& request) const;
  int64_t unpromised_bytes(const Request& request) const { return answer_bytes(request) - request.answer_promised; }
  bool preempt_for(const Request& request, StepPlan& plan, Budget& budget) const;
  std::vector<Request*> admission_order() const;
  std::vector<Request*> wait_for_twins(std::vector<Request*> order, std::vector<WaitingRequest>& seen) const;
  int64_t expected_output(const Request& request) const;
  double reserved_for(const Request& request) const;
  // It ends where it must, and leaves nothing in a cache.
  bool knows_length(const Request& request) const { return !options_.prefix_cache && request.in.sampling.ignore_eos; }
  bool all_will_fit(const Request& request, const StepPlan& plan) const;
  int64_t new_slots(const Request& request, int64_t tokens) const;
  int64_t freed_by(const Request& request, std::unordered_map<const RadixCache::Node*, int64_t>& unlocked) const;

  std::span<int32_t> table_row(const Request& request) const;
  void make_room(int64_t tokens);
  void admit(Request& request, int64_t cached);
  void retract(Request& request);
  Flight& flight(int number) { return ring_[static_cast<size_t>(first_flight_ + number) % 2]; }
  bool learns() const { return options_.mixed_chunk && !options_.joint_steps; }
  bool may_look_ahead() const;
  bool may_follow(const StepPlan& next) const;
  void add_to_batch(const StepPlan::Sequence& sequence, std::span<const int32_t> new_slots, StepWork& work);
  void advance(StepWork::Row& row);
  void take(StepWork::Row& row, bool cancelled);
  void share_prefix(Request& request);
  void drop_doubles(Request& request);
  void keep_state(const Request& request, RadixCache::Node* end);
  void release(Request& request, bool keep_in_cache);

  void count_step(const StepWork& work);
  void count_routing_keys(TimePoint now);
  void take_token(Request& request, StepWork::Row& row);
  FinishReason finish_of(Request& request, const StepWork::Row& row);
  void report(const Flight& flight);
  void emit(Request& request, FinishReason finish);
  std::vector<int32_t> experts_of(Request& request) const;
  void end(Request& request, FinishReason finish);
  // `computed`: what it holds KV of.
  void bury(Request& request, bool computed = true);
  int64_t num_running() const { return std::ssize(requests_) - std::ssize(waiting_); }

  const SchedulerOptions options_;
  models::Runner& runner_;
  const std::function<std::string_view(int32_t)> token_bytes_;
  const Clock& clock_;
  const int64_t max_req_len_;
  const int64_t table_width_;
  const double initial_ratio_;
  const double smallest_ratio_;

  KvPool pool_;
  RadixCache cache_;
  StepComputer computer_;  // the device's while a step is in flight
  StepTimes times_;
  int64_t answer_promised_ = 0;  // Request::answer_promised of all
  OtherGroups others_;
  std::vector<int32_t> free_rows_;

  std::unordered_map<std::string, std::unique_ptr<Request>> requests_;  // by rid
  std::map<uint64_t, Request*> waiting_;                                // by arrival
  Request* chunked_ = nullptr;                                          // its prompt is partly computed
  std::vector<Request*> running_;                                       // they decode in the next step
  std::vector<std::unique_ptr<Request>> ended_;                         // while they are in flight
  std::array<Flight, 2> ring_;
  int first_flight_ = 0, flights_ = 0;
  std::optional<Error> failure_;  // of a step
  double new_token_ratio_;
  uint64_t arrivals_ = 0;
  bool paused_ = false;
  std::function<void(const StepReport&)> observer_;
  mutable TimePoint planning_since_;  // of the plan made last, where somebody observes

  std::vector<RequestOutput> outputs_;
  LoadSnapshot totals_;  // the counters and rates; the rest is filled by snapshot()
  TimePoint next_key_count_{};
  bool keys_changed_ = false;  // perhaps, since they were counted
  TimePoint window_start_;
  uint64_t window_tokens_ = 0;

  InlineDevice inline_device_;
  StepDevice& device_;
};

}  // namespace sluice::engine
