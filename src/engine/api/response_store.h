// Responses that clients may ask for again, and go on from: the latest, in memory, within a number and a size. A server
// that runs for long would otherwise keep everything that it has ever said.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/result.h"
#include "protocol/responses_body.h"

namespace sluice::engine {

struct StoredResponse {
  protocol::ResponseState state;
  // What one that goes on from this begins with: its messages and the answer, as protocol::with_answer() has them.
  // Empty where it has no answer to go on from.
  std::string conversation;
  bool background = false;
};

inline bool can_be_gone_on_from(protocol::ResponseStatus status) {
  return status == protocol::ResponseStatus::kCompleted || status == protocol::ResponseStatus::kIncomplete;
}

// Any thread.
class ResponseStore {
 public:
  struct Limits {
    size_t count = 0;  // 0: nothing is kept
    size_t bytes = 0;
  };
  struct Size {
    size_t count = 0, bytes = 0;
    uint64_t dropped = 0;  // to make room
  };
  using Found = std::shared_ptr<const StoredResponse>;

  explicit ResponseStore(Limits limits) : limits_(limits) {}

  bool keeps() const { return limits_.count > 0; }

  // One that has ended. The least recently used go where there is no room; one that alone is too much is dropped
  // itself, and the others stay.
  void keep(StoredResponse response);

  // One that goes on in the background, without a conversation so far: it stays until finish(), and `cancel` may be
  // called until then, once, from any thread and with nothing locked: so also when it has just ended. `held`: bytes
  // that whoever makes it holds meanwhile, its messages above all, which count here. kExhausted where those that go on
  // leave no room for it.
  Result<void> begin(StoredResponse response, size_t held, std::function<void()> cancel);
  // Its first token is there.
  void progress(std::string_view id);
  // It has ended with this state; one that was cancelled before stays so. The conversation is kept where it can be gone
  // on from.
  void finish(protocol::ResponseState state, std::string conversation);

  // kNotFound with a message that says whether it was dropped or is not known.
  Result<Found> find(std::string_view id);
  // As it stands then. One that has ended stays as it is; kInvalidArgument for one that is not in the background.
  Result<Found> cancel(std::string_view id);
  // kNotFound likewise. One that goes on is cancelled.
  Result<void> remove(std::string_view id);

  // Ids of those that go on.
  std::vector<std::string> going_on() const;
  Size size() const;

 private:
  struct Entry {
    Found response;
    size_t bytes = 0;
    std::function<void()> cancel;             // empty: it has ended, or was cancelled
    bool ended = true;                        // its place is in unused_
    std::list<std::string>::iterator unused;  // while ended
  };
  using Entries = std::unordered_map<std::string, Entry>;

  // All with the lock held.
  Result<Entries::iterator> look_up(std::string_view id);
  void put(StoredResponse response, size_t held, bool ended, std::function<void()> cancel);
  void erase(Entries::iterator at);
  void make_room();
  void remember_dropped(const std::string& id);

  const Limits limits_;

  mutable std::mutex mu_;  // guards what follows
  Entries entries_;
  std::list<std::string> unused_;  // ids of those that have ended, the least recently used first
  size_t bytes_ = 0;
  size_t count_going_on_ = 0, bytes_going_on_ = 0;  // of those that have not ended
  uint64_t dropped_ = 0;
  std::deque<size_t> dropped_order_;  // hashes of ids, the latest
  std::unordered_set<size_t> dropped_ids_;
};

}  // namespace sluice::engine
