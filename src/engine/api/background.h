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
  // One that goes on, while this lives. It is woken by `event` when it has to end.
  class Entry {
   public:
    Entry(Background& background, std::shared_ptr<LoopEvent> event);
    ~Entry();
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

   private:
    Background& background_;
    std::list<std::shared_ptr<LoopEvent>>::iterator place_;
  };

  // Any thread. Once true, whoever is in the background ends at once, and nobody begins.
  bool stopping() const;
  // Any thread but those of the loops: tells everyone, and waits until all have ended. How many had to be told.
  size_t stop();

 private:
  mutable std::mutex mu_;
  std::condition_variable changed_;
  bool stopping_ = false;                         // guarded by mu_
  std::list<std::shared_ptr<LoopEvent>> events_;  // guarded by mu_
};

}  // namespace sluice::engine
