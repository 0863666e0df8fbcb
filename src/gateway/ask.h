// One question of the gateway itself to a worker: a request with a whole answer, and an end to the wait.
#pragma once

#include <memory>
#include <set>
#include <string>

#include "gateway/fleet.h"
#include "net/client.h"
#include "net/loop.h"

namespace sluice::gateway {

struct Question {
  std::string method;
  std::string target;
  net::Headers headers;                     // as they go out
  std::shared_ptr<const std::string> body;  // null = none; shared by all who are asked
};

// Ends the questions of one asker when nobody waits for the answers any more. One loop's thread only.
class Interruption {
 public:
  // Those under way end at once with kCancelled, and so do later ones. Idempotent.
  void end();
  bool ended() const { return ended_; }

 private:
  friend class Watchdog;
  bool ended_ = false;
  std::set<class Watchdog*> under_way_;
};

// On the client's loop. Whatever the worker does, this ends within `bound`: kTimeout then. A kept-alive connection that
// turns out to be closed already is replaced once. Owns what it uses, but for the loop and its client. `interruption`
// may be null.
net::Task<Result<net::Response>> ask_worker(net::EventLoop& loop, net::Client& client, WorkerPtr worker,
                                            Question question, Duration bound,
                                            std::shared_ptr<Interruption> interruption = nullptr);

}  // namespace sluice::gateway
