// The life of one request that goes to a worker, as one coroutine: admit, read, scan, choose, lease, forward, relay,
// settle. Everything that it holds is an object, so that wherever it ends, everything is given back.
#pragma once

#include <optional>
#include <string>

#include "gateway/context.h"
#include "gateway/outcome.h"
#include "net/server.h"
#include "net/stream.h"

namespace sluice::gateway {

// Lives on the client's loop.
class Exchange {
 public:
  // `answer_headers` go on the answer, whoever makes it. `route` is the path as it is known here.
  Exchange(Context& context, LoopState& loop, net::ServerExchange& client, Endpoint endpoint, std::string_view route,
           std::string id, const net::Headers& answer_headers);

  // Answers the client. Returns the status of the answer (0 = the client left before one) and the gateway's own error
  // code, if it made the answer.
  struct End {
    int status = 0;
    std::string error_code;
  };
  net::Task<End> run();

 private:
  enum class Next { kDone, kElsewhere, kAgain };  // kElsewhere: at once; kAgain: after a pause
  struct Upstream;                                // one attempt and what it holds

  net::Task<> serve();
  net::Task<bool> admit(Admission::Slot& slot);
  WorkerPtr choose();
  net::Task<Next> attempt(WorkerPtr worker, bool may_retry);
  net::Task<Next> relay(Upstream& upstream, net::ResponseHead head);
  net::Task<Next> relay_stream(Upstream& upstream, net::ResponseHead head);
  net::Task<Next> failed(Upstream& upstream, Error error, bool may_retry);
  net::Task<> sleep(Duration duration);
  net::Task<> answer(net::Response response);
  net::Task<> fail(int status, std::string_view code, std::string message);

  net::RequestHead upstream_head(const Worker& worker) const;
  net::Headers relayed_headers(const net::Headers& headers, const Worker& worker) const;
  RequestSeries& series();
  void learn_usage(std::string_view tail, Worker& worker);
  void phase(std::string_view name) { record_.phases.push_back({name, context_.clock.now() - begun_}); }
  void settle();

  Context& context_;
  LoopState& loop_;
  net::ServerExchange& client_;
  const Endpoint endpoint_;
  const std::string route_;
  const net::Headers& answer_headers_;
  const TimePoint begun_;

  std::string body_;
  BodyFacts facts_;
  std::string model_;  // label: the model of the worker
  std::vector<uint32_t> tried_;
  int64_t attempts_ = 0;
  bool may_retry_ = false;
  std::optional<net::Response> last_answer_;  // of a worker, to be retried
  std::optional<Duration> retry_after_;
  WorkerPtr last_worker_;
  Choice choice_;

  // What a client that leaves interrupts.
  bool gone_ = false;
  net::ClientExchange* upstream_ = nullptr;
  net::Timer timer_;

  End end_;
  obs::RequestRecord record_;
};

}  // namespace sluice::gateway
