// What goes on without a client that could end it: it must have ended before the ranks, the API and the loops go.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <list>
#include <memory>
#include <mutex>

#include "base/clock.h"
#include "engine/api/loop_event.h"

namespace sluice::engine {

class Background {
 public:
  using Events = std::list<std::shared_ptr<LoopEvent>>;

  // One that goes on, while this lives.
  class Entry {
   public:
    // Of try_begin() alone.
    Entry(Background& background, Events::iterator place) : background_(background), place_(place) {}
    ~Entry();
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

   private:
    Background& background_;
    const Events::iterator place_;
  };

  // Any thread. One that goes on from now, and is woken by `event` when it has to end. Null where stopping(): whoever
  // begins then would not be waited for.
  std::unique_ptr<Entry> try_begin(std::shared_ptr<LoopEvent> event);
  // Any thread. Once true, whoever is in the background ends at once, and nobody begins.
  bool stopping() const;
  // Any thread but those of the loops: tells everyone, and waits until all have ended.
  void stop();

 private:
  mutable std::mutex mu_;
  std::condition_variable changed_;
  bool stopping_ = false;  // guarded by mu_
  Events events_;          // guarded by mu_
};

}  // namespace sluice::engine
