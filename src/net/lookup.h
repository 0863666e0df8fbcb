// From a host's name to its addresses.
#pragma once

#include <boost/asio/ip/address.hpp>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "net/loop.h"
#include "net/task.h"

namespace sluice::net {

using Addresses = std::vector<asio::ip::address>;

// Calls `done` with the addresses, in the order in which they are to be tried, on the loop that asked: at once, later
// or never. Does not block.
using Lookup = std::function<void(const std::string& host, std::function<void(Result<Addresses>)> done)>;

// The names that one client asks for. New connections within `fresh` of an answer use it again, so that many of them
// cost one look-up; after that the name is looked up anew. Names live as long as this: one for each host of a worker.
// Loop thread only.
class NameCache {
 public:
  NameCache(EventLoop& loop, Lookup lookup, Duration fresh);
  ~NameCache();

  // kNotFound: there is no such name, or it has no address; kUnavailable: the resolver cannot say; kTimeout at the
  // deadline; kCancelled after cancel(). Where the resolver fails, or is silent for a second or a quarter of the time
  // until the deadline, and the name had addresses before, those are the answer: a resolver that is down takes no
  // worker with it. `question`, if given, is set while this waits.
  struct Question;
  Task<Result<Addresses>> find(const std::string& host, TimePoint deadline, std::shared_ptr<Question>* question);
  // Ends a find() that waits.
  static void cancel(Question& question);

 private:
  struct Name;
  struct State;
  const std::shared_ptr<State> state_;
};

}  // namespace sluice::net
