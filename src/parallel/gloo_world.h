// What the groups of one rank share over gloo: the connections, what is known of the other ranks, and two threads that
// sleep unless something happens - one hears failures and signs of life from other ranks, one looks after waits that
// last.
#pragma once

#include <gloo/rendezvous/context.h>
#include <gloo/transport/unbound_buffer.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/progress.h"
#include "parallel/shm_segment.h"

namespace sluice::parallel {

using GlooBuffer = gloo::transport::UnboundBuffer;

// Where a rank says it is. What it says comes beside the calls and with them, and so not always in order: the number
// only grows.
struct Place {
  uint64_t number = 0;
  Progress where;
};

class GlooWorld {
 public:
  // `hosts`: where each rank is, for messages. `shown_in`: see GlooJoin.
  GlooWorld(std::shared_ptr<gloo::rendezvous::Context> context, std::vector<std::string> hosts, GroupOptions options,
            std::shared_ptr<ShmSegment> shown_in = nullptr);
  ~GlooWorld();
  GlooWorld(const GlooWorld&) = delete;
  GlooWorld& operator=(const GlooWorld&) = delete;

  const GroupOptions& options() const { return options_; }
  int rank() const { return context_->rank; }
  std::unique_ptr<GlooBuffer> buffer(void* at, size_t bytes) const { return context_->createUnboundBuffer(at, bytes); }
  // Numbers for groups that this rank makes.
  uint64_t next_group() { return static_cast<uint64_t>(rank() + 1) << 32 | ++groups_; }

  // Any thread.
  void progress(const Progress& progress);
  Place place() const;  // this rank's
  Progress last_progress(int rank) const { return signs_[static_cast<size_t>(rank)].where(); }
  // When it was last heard of, by this rank's clock.
  TimePoint last_sign(int rank) const { return signs_[static_cast<size_t>(rank)].when(); }
  // "; rank 3 is on 10.0.0.2, last heard of in step 40, layer 3, gather", for messages that name it.
  std::string whereabouts(int rank) const;
  void heard_of(int rank) { signs_[static_cast<size_t>(rank)].seen(options_.clock->now()); }
  // From `rank` itself. A place older than what is known of it is forgotten.
  void heard_of(int rank, const Place& place);
  // Keeps the first error, ends this rank's wait and tells the others.
  void fail(const Error& error);
  std::optional<Error> failure() const;

  // Of a thread that makes calls. The first of wait.missing is for whom it waits, the others may be missing as well.
  Result<void> wait_receive(GlooBuffer& buffer, const Wait& wait);
  Result<void> wait_send(GlooBuffer& buffer, const Wait& wait);
  // This rank does something: the others are to know, and waits may follow. Any thread.
  void active();

 private:
  // What ranks tell each other beside the calls.
  struct Message;
  struct Sent;
  struct Told;

  template <class WaitFunction, class AbortFunction>
  Result<void> wait_on(const Wait& wait, WaitFunction wait_function, AbortFunction abort);
  void keep(const Error& error);  // with mu_ held
  void broadcast(const Message& message);
  void hear();
  void take(const Message& message);
  void look_after_waits();
  Result<void> look(Wait at, TimePoint now) const;  // with mu_ held

  const std::shared_ptr<gloo::rendezvous::Context> context_;
  const std::vector<std::string> hosts_;  // by rank of the world
  const GroupOptions options_;
  const std::shared_ptr<ShmSegment> shown_in_;
  std::vector<SignOfLife> signs_;  // by rank of the world
  std::mutex places_mu_;
  std::vector<uint64_t> place_numbers_;  // of what signs_ have, by rank of the world; guarded by places_mu_
  std::atomic<uint64_t> places_{0};      // that this rank has been in
  std::atomic<uint32_t> groups_{0};
  std::atomic<bool> active_{false};  // since the thread that looks after waits last looked
  std::atomic<bool> parked_{false};  // that thread has nothing to do

  mutable std::mutex mu_;
  std::condition_variable changed_;
  // Guarded by mu_.
  std::optional<Error> failure_;
  struct UnderWay {
    Wait wait;  // .lost: of lost_ before it began
    std::function<void()> abort;
  };
  std::list<UnderWay> waits_;  // one of each thread that makes calls
  Duration lost_{};            // LostTime, all of the thread that looks after them
  bool stopping_ = false;

  std::mutex sent_mu_;
  std::vector<Told> told_;  // by rank; guarded by sent_mu_

  std::unique_ptr<Message> heard_;
  std::unique_ptr<GlooBuffer> heard_buffer_;
  std::thread hearing_;
  std::thread looking_;
};

}  // namespace sluice::parallel
