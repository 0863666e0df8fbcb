// Tells a rank that hangs from one that is slow. A slow one gets on: the words of its Pulse change with every layer and
// every piece of a kernel. Where they do not, it is dead or starved, which the kernel (/proc) tells: time in which a
// rank that could run got no processor, or waited for its memory, does not count, and neither does time in which the
// watcher itself did not run.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/pulse.h"

namespace sluice::engine {

// What is seen of the process, all threads together.
struct ProcessSigns {
  enum class State : uint8_t { kStopped, kTraced, kRunnable, kWaiting };
  State state = State::kWaiting;
  Duration cpu{};            // that it has used
  uint64_t disk_faults = 0;  // pages that it had to wait for
};
// Absent: there is no such process any more.
std::optional<ProcessSigns> read_process_signs(pid_t pid);

// Used by one thread.
class RankWatch {
 public:
  // Nothing is asked of the rank: time does not count, and counts from zero afterwards.
  void rest() { last_.reset(); }
  // Called now and then, at least once a second. A description, once the rank has been silent for `limit`.
  std::optional<std::string> look(TimePoint now, const Pulse& pulse, const ProcessSigns& process, Duration limit);

 private:
  struct Look {
    TimePoint at;
    uint64_t beats = 0;
    Pulse::Place place;
    ProcessSigns process;
  };
  static Duration counted(const Look& before, const Look& now);

  std::optional<Look> last_;
  Duration silent_{};
};

}  // namespace sluice::engine
