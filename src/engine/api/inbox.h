// What the ranks say about the samples of one client request, on its way from the backend's thread to the connection's
// loop.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "engine/api/loop_event.h"
#include "engine/api/sample_meter.h"
#include "engine/messages.h"

namespace sluice::engine {

// While the client is slow to read, news of a sample are joined to one, so that what waits here is at most the rest of
// the sample, never a queue of messages.
class Inbox {
 public:
  Inbox(net::EventLoop& loop, std::vector<SampleMeter> meters);

  // The backend's thread.
  void put(size_t sample, RequestOutput output);

  // Loop thread.
  net::Task<bool> wait(Duration at_most = Duration::max()) { return event_->wait(at_most); }
  std::vector<std::pair<size_t, RequestOutput>> take();
  void wake() { event_->notify(); }
  const std::shared_ptr<LoopEvent>& event() const { return event_; }
  // Nothing is kept any more; measuring goes on to the end of each sample.
  void close();

 private:
  struct Slot {
    SampleMeter meter;
    bool has_news = false;
    RequestOutput news;
  };

  const std::shared_ptr<LoopEvent> event_;

  std::mutex mu_;
  bool closed_ = false;        // guarded by mu_
  std::vector<Slot> slots_;    // guarded by mu_
  std::vector<size_t> order_;  // guarded by mu_; samples that have news
};

}  // namespace sluice::engine
