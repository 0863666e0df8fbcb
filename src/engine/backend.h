// What the HTTP API needs of the ranks behind it. The DataParallelController is the one of production; tests of the API
// have one of their own, without processes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "engine/messages.h"

namespace sluice::engine {

// A rank as it stands.
struct RankState {
  bool ready = false;
  int64_t pid = 0;       // 0: not running, or not here
  int64_t restarts = 0;  // starts after the first
  RankReady info;        // of the last time that it became ready
  LoadSnapshot load;     // its last word; zeros before the first
  // With --enable-eplb, of the instance that it is the first rank of, since the server's start.
  moe::RankTokens expert_tokens;
};

// Any thread.
class Backend {
 public:
  virtual ~Backend() = default;

  // Gets every piece of news of one request, in order, on the backend's thread; it must not wait. The last one, and no
  // other, has finish.kind != kNone: each request that was accepted ends exactly once, also when its rank dies.
  using OnOutput = std::function<void(RequestOutput)>;

  // Sends the request to `pinned_rank`, or to the rank that the load-balance method chooses, and returns that rank.
  // kInvalidArgument: no such rank (names the range), or the rid is in use. kUnavailable: the pinned rank, or every
  // rank, is down. A request that had no output yet when its rank died is sent to another one, unless it was pinned.
  virtual Result<int64_t> submit(GenerateRequest request, std::optional<int64_t> pinned_rank, OnOutput on_output) = 0;

  // Asks for the end of a request; its last output says kAbort, unless it finished before. An unknown rid is ignored.
  virtual void abort(const std::string& rid) = 0;
  virtual void abort_all() = 0;
  // Every rid in flight. For prefix rules of clients ("<rid>_<n>" of a batch).
  virtual std::vector<std::string> running() const = 0;

  // Sends it to every rank that is up. `done` is called once, on the backend's thread: when all have done it; with what
  // is in the way, rank by rank (kUnavailable); or with kTimeout naming the ranks that did not answer within `at_most`.
  // A rank that starts later takes over a pause and loaded weights.
  // By rank, what those that said something said: of ControlKind::kRecordExperts.
  using RankAnswers = std::map<int64_t, std::string>;
  using OnControl = std::function<void(Result<RankAnswers>)>;
  virtual void control(ControlKind kind, std::string text, Duration at_most, OnControl done) = 0;
  // Empties the prefix cache of every rank.
  void flush_cache(OnControl done) { control(ControlKind::kFlushCache, "", std::chrono::seconds(30), std::move(done)); }

  // [dp_size]
  virtual std::vector<RankState> ranks() const = 0;
};

}  // namespace sluice::engine
