// The inside of the simulated worker. sim_worker.cc: its life and the way of a request to its handler;
// sim_generation.cc: generation requests; sim_documents.cc: everything else that it answers.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "net/server.h"
#include "testing/sim_rank.h"
#include "testing/sim_request.h"
#include "testing/sim_worker.h"

namespace sluice::testing {

// A canned answer, ready to be sent.
struct SimCanned {
  std::string whole;
  std::vector<std::string> events;  // JSON, the usage event of OpenAI last
  std::string stream;               // all of them as frames with the end mark, without the usage event
  std::string stream_with_usage;
};
SimCanned make_canned(const SimWorkerOptions& options, SimApi api);

struct SimTally {
  std::atomic<int64_t> requests{0}, generations{0}, completed{0}, client_gone{0}, aborted{0}, faults{0},
      health_checks{0}, load_reads{0}, flushes{0}, active{0};
};

// One generation request in the tally. It is closed before the last byte of its answer goes out, so that whoever has
// read that byte, in whatever thread, finds the request counted. One thread.
class SimEntry {
 public:
  explicit SimEntry(SimTally& tally) : tally_(tally) { ++tally_.active; }
  SimEntry(const SimEntry&) = delete;
  SimEntry& operator=(const SimEntry&) = delete;
  ~SimEntry() { close(); }

  // Only the end of a good answer is left to send.
  void complete() {
    if (closed_) return;
    ++tally_.completed;
    completed_ = true;
    close();
  }
  // That end did not get out.
  void cut() {
    if (!completed_) return;
    completed_ = false;
    --tally_.completed;
    ++tally_.client_gone;
  }
  // The client has left.
  void leave() {
    if (closed_) return;
    ++tally_.client_gone;
    close();
  }
  // It ends in neither way: it was refused, or cut by a fault.
  void close() {
    if (!std::exchange(closed_, true)) --tally_.active;
  }

 private:
  SimTally& tally_;
  bool closed_ = false;
  bool completed_ = false;
};

class SimWorker::Impl {
 public:
  Impl(net::LoopGroup& loops, SimWorkerOptions options);
  ~Impl();

  Result<void> start();
  void stop();
  void rename() { process_.clear(); }
  bool running() const;
  size_t step();
  void set_fault(SimFault fault);
  void set_health(SimHealth health);

  std::vector<std::shared_ptr<SimRank>> ranks() const {
    const std::lock_guard lock(mu_);
    return ranks_;
  }

  SimTokens tokens() const { return options_.cache ? SimTokens::kFourCharacters : SimTokens::kWords; }

  net::LoopGroup& loops_;
  const SimWorkerOptions options_;
  std::atomic<uint16_t> port_{0};
  SimTally tally_;

  mutable std::mutex mu_;
  std::deque<SimReceived> received_;  // guarded by mu_

 private:
  // What a generation request is handled with.
  struct Generation {
    net::ServerExchange& exchange;
    SimEntry& entry;
    SimApi api;
    const std::string& body;
    SimFault fault;
    std::shared_ptr<SimWait> wait;
    int64_t sent = 0;  // events of the stream
  };
  // A request in the simulated mode.
  struct Submitted {
    SimRequest request;
    size_t rank_number = 0;
    std::shared_ptr<SimRank> rank;
    SimReplyHead head;
    std::vector<SimSequence> sequences;
    TimePoint began;
  };

  // sim_worker.cc
  net::Task<> handle(net::ServerExchange& exchange);
  net::Task<> handle_other(net::ServerExchange& exchange, std::string_view path);
  SimFault take_fault(bool generation);
  void record(const net::ServerExchange& exchange, const std::string& body);
  void pause_for(Duration duration);

  // sim_generation.cc. Those that give a bool: false if the request has come to its end.
  net::Task<> generation(net::ServerExchange& exchange, SimApi api);
  net::Task<bool> suffer(net::ServerExchange& exchange, const SimFault& fault, std::shared_ptr<SimWait> wait);
  net::Task<> refuse(Generation& generation, net::Response response);
  net::Task<> canned(Generation& generation);
  net::Task<> simulated(Generation& generation);
  Result<size_t> choose_rank(const SimRequest& request) const;
  Result<void> submit(Generation& generation, Submitted& submitted, SimSubmission& submission);
  net::Task<> answer_whole(Generation& generation, std::string body);
  net::Task<bool> send_event(Generation& generation, std::string_view event);
  net::Task<bool> send_tokens(Generation& generation, Submitted& submitted, SimWait::Event event);
  net::Task<> end_stream(Generation& generation);

  // sim_documents.cc
  net::Response answer(const net::RequestHead& request, const std::string& body);
  net::Response models(std::string_view path) const;
  net::Response flush();
  net::Response abort(const std::string& body);
  void abort_requests(std::string_view rid, bool all);
  std::string model_info() const;
  std::string server_info() const;
  std::string load_document() const;
  std::string loads_document() const;
  std::string metrics() const;
  std::string vllm_metrics() const;
  // Which engine's way it has of saying how loaded it is; the paths of later ones are not found.
  enum class LoadPages { kLoads, kGetLoad, kMetrics, kVllm };
  std::atomic<LoadPages> load_pages_{LoadPages::kLoads};
  SimLoad load_of(SimRank& rank) const;
  Result<net::Response> control(std::string_view path, const std::string& body);

  std::vector<SimCanned> canned_;  // by SimApi
  std::atomic<uint64_t> next_rid_{1};

  // Guarded by mu_.
  SimFault fault_;
  SimHealth health_;
  std::vector<std::shared_ptr<SimRank>> ranks_;
  std::thread pause_;
  bool pausing_ = false;
  bool ending_ = false;
  std::condition_variable ended_;
  // So that the common case takes no lock.
  std::atomic<bool> any_fault_{false};

  mutable std::mutex life_mu_;           // taken before mu_
  std::unique_ptr<net::Server> server_;  // guarded by life_mu_
  std::string process_;                  // its name
};

}  // namespace sluice::testing
