// The requests in flight: which rank has each one, who wants its output, and what becomes of it when the rank dies.
// Every request that was accepted gets exactly one last output, from its rank or from here.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/backend.h"
#include "engine/dp_budget.h"
#include "engine/prefix_belief.h"

namespace sluice::engine {

// Any thread. It calls nobody back and sends nothing: what is to be sent is queued for take_outgoing(), and what is to
// be delivered is returned, so that the lock is never held meanwhile.
class Dispatcher {
 public:
  // All three outlive the dispatcher.
  Dispatcher(const LoadBalanceRow& method, const LoadBoard& board, const Clock& clock);

  // As in Backend.
  Result<int64_t> submit(GenerateRequest request, std::optional<int64_t> pinned_rank, Backend::OnOutput on_output);
  void abort(const std::string& rid);
  void abort_all();
  std::vector<std::string> running() const;

  struct Outgoing {
    int64_t rank = 0;
    uint64_t incarnation = 0;
    ToRank message;
  };
  // In the order in which it must reach each rank.
  std::vector<Outgoing> take_outgoing();

  struct Delivery {
    std::shared_ptr<const Backend::OnOutput> to;
    RequestOutput output;
  };
  // What a rank sent. News of requests that it does not have, or of another incarnation, is dropped.
  std::vector<Delivery> outputs(int64_t rank, uint64_t incarnation, OutputBatch batch);

  void rank_ready(int64_t rank, uint64_t incarnation);
  // Ranks that have ended together. Their requests without output go to others where they may; the rest end here.
  struct Lost {
    size_t moved = 0;
    std::vector<Delivery> ended;
  };
  Lost ranks_lost(std::span<const int64_t> ranks, const std::string& cause);
  // The rank's prefix cache was emptied.
  void rank_flushed(int64_t rank);
  // Ends everything with 503.
  std::vector<Delivery> end_all(const std::string& cause);

  // [ranks] Requests that each has.
  std::vector<size_t> in_flight() const;
  // The rank's last word on the load board.
  LoadSnapshot word(int64_t rank) const;

 private:
  struct Flight {
    GenerateRequest request;  // emptied with the first output: it cannot be sent again then
    std::shared_ptr<const Backend::OnOutput> on_output;
    int64_t rank = 0;
    uint64_t incarnation = 0;
    int dispatches = 0;
    bool pinned = false;
    bool started = false;
    bool aborted = false;
    uint64_t seq = 0;           // of its last dispatch
    PrefixBelief::Sent prefix;  // with it
    RequestOutput counts;       // the counters of its last output
  };
  using Flights = std::unordered_map<std::string, Flight>;

  bool may_move(const Flight& flight) const;
  std::optional<int64_t> choose(const GenerateRequest& request);
  void dispatch(Flight& flight, int64_t rank);
  static Delivery last_output(const std::string& rid, Flight& flight, int32_t status, const std::string& message,
                              bool rank_ended = false);

  const LoadBalanceRow& method_;

  mutable std::mutex mutex_;  // guards what follows; no other lock is taken under it
  mutable DpBudget budget_;
  std::optional<PrefixBelief> prefixes_;  // for a method that looks at them
  std::vector<uint64_t> incarnations_;    // [ranks] 0 = takes no requests
  int64_t previous_ = -1;
  uint64_t last_seq_ = 0;
  Flights flights_;
  std::vector<Outgoing> outgoing_;
};

}  // namespace sluice::engine
