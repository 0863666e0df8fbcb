// A rank's process as the controller sees it, on this host or another. Dropping it ends the process.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/process.h"
#include "engine/rank_watch.h"
#include "parallel/shm_segment.h"

namespace sluice::engine {

// Used by one thread at a time.
class RankHandle {
 public:
  virtual ~RankHandle() = default;

  virtual pid_t pid() const = 0;  // 0: of another host
  // Of its process, as its host sees it; absent: it has ended. Of another host only whether it is stopped, half a
  // second late.
  virtual std::optional<ProcessSigns> signs() const = 0;
  virtual int descriptor() const = 0;  // readable once it has ended
  virtual std::optional<ExitStatus> poll() = 0;
  virtual std::optional<ExitStatus> wait(Duration bound) = 0;
  virtual void signal(int number) = 0;
  // How it ended, in one line, after poll() or wait() has given the status.
  virtual std::string cause() const = 0;
  // ", on node 1 at 10.0.0.2", for messages; empty for this host.
  virtual std::string place() const = 0;
  // "step 40, layer 3, dispatch", of an instance on several hosts; empty: nobody knows. Of another host a second late
  // until its end is known.
  virtual std::string last_seen() const = 0;
};

// `shown_in`: a segment of one rank, in which it says where it is; may be null.
std::unique_ptr<RankHandle> handle_of(Process process, std::shared_ptr<parallel::ShmSegment> shown_in = nullptr);

// How a process ended: its status, and the last line that it wrote where that is the reason.
std::string cause_of_end(const ExitStatus& status, const std::string& stderr_tail);

}  // namespace sluice::engine
