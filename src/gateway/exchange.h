// The life of one request that goes to a worker, as one coroutine: admit, read, scan, then attempts (choose, lease,
// forward, relay) until one has answered the client, and settle. Everything that it holds is an object, so that
// wherever it ends, everything is given back.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gateway/ask.h"
#include "gateway/body_scan.h"
#include "gateway/context.h"
#include "gateway/destination.h"
#include "gateway/live_exchanges.h"
#include "gateway/loop_state.h"
#include "gateway/outcome.h"
#include "gateway/rerank.h"
#include "gateway/usage.h"
#include "net/server.h"
#include "net/stream.h"

namespace sluice::gateway {

// Lives on the client's loop.
class Exchange {
 public:
  // `answer_headers` go on the answer, whoever makes it. `route` is the path as it is known here.
  Exchange(Context& context, LoopState& loop, net::ServerExchange& client, Endpoint endpoint, std::string_view route,
           std::string id, const net::Headers& answer_headers);

  // Answers the client. Returns the status of the answer (0 = the client left before one), the gateway's own error
  // code, if it made the answer, and when the head of the answer was there.
  struct End {
    int status = 0;
    std::string error_code;
    std::optional<TimePoint> head_at;
  };
  net::Task<End> run();

 private:
  struct Upstream;  // what one attempt holds
  // How an attempt ended of which the client has seen nothing: the worker's answer, or an error.
  struct Failure {
    Error error;
    std::optional<net::Response> answer;
    Outcome outcome = Outcome::kFault;
    bool rank_ended = false;  // as the answer says
    std::optional<Duration> retry_after;
    std::string worker_id;  // empty = there was no worker to ask
    bool reached = true;    // a part of the request may have gone out
  };
  Failure no_worker() const;
  Failure out_of_time() const;
  static Failure failure_with(net::Response answer, Outcome outcome, std::optional<Duration> retry_after,
                              const Worker& worker);
  using MaybeFailure = std::optional<Failure>;  // none: the client has its answer, or has left

  net::Task<> serve();
  void interrupt();
  std::shared_ptr<Exchange*> arm_total(std::optional<net::Timer>& timer);
  void abort_at_worker();
  net::Task<bool> queue_up();
  net::Task<bool> wait_for_slot(std::shared_ptr<Admission::Waiter> waiter, std::shared_ptr<net::Timer> timer);
  net::Task<bool> wait_for_any_worker();
  net::Task<> back_off(Duration pause);
  net::Task<bool> read_request();
  void take_retry_rules();
  net::Task<bool> find_keeper();

  net::Task<MaybeFailure> attempt();
  WorkerPtr choose(Breaker::Permit& permit, std::optional<WorkerLease>& lease);
  Work work(double matched_share) const;
  std::optional<Choice> choose_once(const Roster& roster, const RequestFacts& facts);
  // Whether only some workers may have the request, and which those are: the ranks of the keeper, or the target.
  bool is_bound() const { return keeper_ != nullptr || target_ != nullptr; }
  WorkerList bound_to(const Roster& roster) const;
  std::optional<Choice> choose_bound(const Roster& roster, TimePoint now, Reason reason);
  Choice choose_target(const Roster& roster, uint64_t place, TimePoint now);
  bool note_head(Upstream& upstream, const net::ResponseHead& head);
  net::Task<MaybeFailure> relay_whole(Upstream& upstream, net::ResponseHead head);
  void leave_alone(Worker& worker, TimePoint sent, std::optional<Duration> retry_after);
  Result<void> rebuild_rerank(net::Response& response);
  net::Task<MaybeFailure> relay_stream(Upstream& upstream, net::ResponseHead head);
  net::Task<> keep_alive(Upstream& upstream, Duration after);
  net::Task<> break_off(Upstream& upstream, const Error& error, bool with_event);

  // How long to pause before the next attempt; none = there is to be none.
  std::optional<Duration> pause_before_retry(const Failure& failure);
  bool moves_on_freely(const Failure& failure);
  bool others_left();  // an untried worker, of those that may have the request, could take it now
  void set_engine_aside();
  net::Task<> give_up(Failure failure);
  net::Task<> give_up_late();

  net::Task<> wait(net::Timer& timer, Duration duration);
  net::Task<> answer(net::Response response);
  net::Task<> fail(int status, std::string_view code, std::string message);
  net::Task<> unavailable(std::string_view code, std::string message, int64_t retry_after);
  int64_t seconds_without_worker();
  net::Task<> reject(int status, std::string_view code, std::string message);
  net::Headers headers_of(const net::ResponseHead& head, const Worker& worker) const;
  RequestSeries& series();
  // Returns how many tokens the answer has, 0 if it does not say.
  int64_t learn(std::string_view tail, Upstream& upstream);
  // False if only the latest look counts and the like was sent elsewhere since.
  bool claim_prefix(Worker& worker, double matched_share, const routing::PrefixMatch& found, bool only_latest);
  void withdraw_claim();
  void count_prediction(Worker& worker);
  void count_reported(int64_t cached_tokens, int64_t prompt_tokens);
  void count_request();
  void record_choice(const Roster& roster, const RequestFacts& facts, const Worker& worker, const Choice& choice);
  void forget_choice();
  void record_failure(const Failure& failure);
  void note(std::string_view text);
  Duration elapsed() const { return context_.clock.now() - begun_; }
  void phase(std::string_view name) { record_.phases.push_back({name, elapsed()}); }
  void settle();

  // Constant after construction.
  Context& context_;
  LoopState& loop_;
  net::ServerExchange& client_;
  const Endpoint endpoint_;
  const net::Headers& answer_headers_;
  const TimePoint begun_;

  std::shared_ptr<const std::string> body_;  // the index may keep it for the prompt in it
  BodyFacts facts_;
  Destination destination_;
  int64_t prompt_tokens_ = 0;  // estimate
  double matched_share_ = 0;   // of the prompt that the chosen worker is believed to hold
  // What the index has been told that the worker of this attempt will hold; none when it is known to be so.
  struct PrefixClaim {
    uint64_t number = 0;   // in the index
    size_t new_bytes = 0;  // of the routing text, that it did not hold before
    TimePoint made_at{};
  };
  std::optional<PrefixClaim> claim_;
  std::optional<RerankAsk> rerank_;  // of a rerank request
  WorkerPtr keeper_;                 // of the response that this goes on from: no other engine can answer
  WorkerPtr target_;                 // that the client has named, once that was usable
  RequestSeries* series_ = nullptr;
  bool counted_ = false;

  RetryRules retry_ = context_.retry;
  int64_t attempts_ = 0;
  int64_t pauses_ = 0;
  std::vector<uint32_t> tried_;
  WorkerPtr asked_;                           // last
  bool outlived_one_ = false;                 // a worker has died with it, and it moved on without being charged
  bool at_work_ = false;                      // it has the request and has not finished with it
  std::optional<net::Response> last_answer_;  // of a worker that was asked before

  // What a client that leaves interrupts.
  bool gone_ = false;
  bool timed_out_ = false;    // --total-timeout-secs
  bool with_client_ = false;  // waits for a client that may not send its body, or not read its answer
  net::ClientExchange* upstream_ = nullptr;
  net::Timer* waiting_ = nullptr;
  std::shared_ptr<Interruption> asking_;  // of all workers

  End end_;
  obs::RequestRecord record_;
  const LiveExchanges::Entry live_{loop_.exchanges, record_, begun_};
};

}  // namespace sluice::gateway
