// A load generator that costs a few microseconds per request, so that it is never what limits a gateway on the other
// core: one thread, one epoll, requests whose bodies are ready text. Closed loop, or open loop with Poisson arrivals.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "answer_reader.h"
#include "base/clock.h"
#include "base/result.h"
#include "gateway/simulator/workload.h"

namespace sluice::compare {

struct LoadOptions {
  std::vector<uint16_t> ports;  // on 127.0.0.1; requests go to them in turn
  int64_t connections = 64;     // closed loop: requests in flight; open loop: connections from the start
  bool open_loop = false;       // requests come when the workload says
  bool stream = false;
  int64_t max_tokens = 16;
  Duration warm_up = std::chrono::seconds(1);
  Duration window = std::chrono::seconds(3);  // measured, after the warm-up
  Duration spread{0};                         // closed loop: the first requests come evenly over so much time
};

// Of the answers that ended, and the events that came, in the window.
struct LoadResult {
  double seconds = 0;
  int64_t requests = 0;
  std::map<std::string, int64_t> errors;  // by reason
  std::vector<float> latencies_ms;        // from when a request was due
  int64_t chunks = 0;
  int64_t merged = 0;  // of the chunks: came in one read with the one before
  int64_t late = 0;    // of the chunks: more than 5 ms under way
  std::vector<float> chunk_delays_ms;
  int64_t in_flight = 0;     // at the end
  double oldest_s = 0;       // of these
  double send_delay_ms = 0;  // the latest that a request was sent after it was due, for want of a connection or CPU

  int64_t failed() const;
};

// Where a request goes instead of to the ports in turn, and header lines of its own.
struct Routed {
  size_t port_index = 0;
  std::string headers;
};

// One thread.
class HttpLoad {
 public:
  HttpLoad(LoadOptions options, gateway::Workload& workload);
  ~HttpLoad();

  std::function<Routed(const std::string& text)> route;
  std::function<void()> on_begin, on_end;  // of the window

  // Opens the connections, loads, and closes them. kUnavailable: nobody listens.
  Result<LoadResult> run();

 private:
  struct Connection;

  Result<Connection*> connect(size_t port_index);
  void start(Connection& connection, const std::string& text, std::string_view headers, TimePoint due);
  void send_some(Connection& connection);
  void read_some(Connection& connection);
  void take_events(TimePoint now);
  void ended(Connection& connection, TimePoint now);
  void failed(Connection& connection, const std::string& reason);
  void drop(Connection& connection);
  void issue(std::string text, TimePoint due);
  void issue_due(TimePoint now);
  TimePoint next_due() const;
  void begin_or_end(TimePoint now);

  const LoadOptions options_;
  gateway::Workload& workload_;
  const std::string body_head_, body_tail_;
  int epoll_ = -1;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::vector<std::vector<Connection*>> idle_;  // by port
  size_t turn_ = 0;

  TimePoint began_;
  std::optional<gateway::SimulatedRequest> coming_;  // open loop
  std::deque<TimePoint> starts_;                     // closed loop: of requests that follow no answer
  bool measuring_ = false, over_ = false;
  TimePoint window_began_;
  LoadResult result_;
  std::vector<StampedEvent> events_;  // of one read
};

// Percentile of values in any order; 0 without values.
double percentile(std::vector<float>& values, double share);

// The result as members of a JSON object.
std::string to_json(LoadResult& result);

}  // namespace sluice::compare
