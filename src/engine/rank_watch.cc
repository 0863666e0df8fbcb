#include "engine/rank_watch.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/result.h"

namespace sluice::engine {
namespace {

using State = ProcessSigns::State;

// More than this between two looks is time in which the watcher did not run either.
constexpr Duration kLongestTick = std::chrono::seconds(1);

struct ThreadStat {
  char state = '?';
  uint64_t disk_faults = 0;
  uint64_t ticks = 0;
};

// proc(5): the fields follow the name in parentheses, which may hold anything.
std::optional<ThreadStat> read_stat(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  if (!std::getline(file, text)) return std::nullopt;
  const size_t end = text.rfind(')');
  if (end == std::string::npos) return std::nullopt;
  std::istringstream fields(text.substr(end + 1));
  ThreadStat out;
  std::string skipped;
  uint64_t user = 0, system = 0;
  fields >> out.state;
  for (int i = 0; i < 8; ++i) fields >> skipped;  // ppid to cminflt
  fields >> out.disk_faults >> skipped >> user >> system;
  if (!fields) return std::nullopt;
  out.ticks = user + system;
  return out;
}

std::string place_of(const Pulse::Place& place) {
  switch (place.phase) {
    case Pulse::Phase::kOutside:
      return place.step == 0 ? "while it loads" : fmt::format("outside of steps, after step {}", place.step);
    case Pulse::Phase::kBetweenSteps:
      return fmt::format("after step {}", place.step);
    case Pulse::Phase::kStep:
      break;
  }
  return fmt::format("in step {}, layer {}", place.step, place.layer);
}

std::string_view describe(State state) {
  switch (state) {
    case State::kStopped:
      return "its process is stopped";
    case State::kTraced:
      return "its process is traced";
    case State::kRunnable:
      return "its process computes";
    case State::kWaiting:
      break;
  }
  return "all its threads wait";
}

}  // namespace

std::optional<ProcessSigns> read_process_signs(pid_t pid) {
  const auto whole = read_stat(fmt::format("/proc/{}/stat", pid));
  if (!whole) return std::nullopt;
  ProcessSigns out{.cpu = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(
                       static_cast<double>(whole->ticks) / static_cast<double>(::sysconf(_SC_CLK_TCK)))),
                   .disk_faults = whole->disk_faults};
  if (whole->state == 'T') out.state = State::kStopped;
  if (whole->state == 't') out.state = State::kTraced;
  if (out.state != State::kWaiting) return out;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(fmt::format("/proc/{}/task", pid), none)) {
    const auto thread = read_stat(entry.path().string() + "/stat");
    if (thread && thread->state == 'R') out.state = State::kRunnable;
  }
  return out;
}

Duration RankWatch::counted(const Look& before, const Look& now) {
  const Duration tick = std::clamp(now.at - before.at, Duration{0}, kLongestTick);
  if (now.process.state == State::kTraced) return Duration{0};
  if (now.process.state == State::kStopped) return tick;
  if (now.place.phase == Pulse::Phase::kOutside) return Duration{0};
  if (now.process.disk_faults != before.process.disk_faults) return Duration{0};
  // One that could run and hangs all the same uses its processor.
  if (now.process.state == State::kRunnable) return std::clamp(now.process.cpu - before.process.cpu, Duration{0}, tick);
  return tick;
}

std::optional<std::string> RankWatch::look(TimePoint now, const Pulse& pulse, const ProcessSigns& process,
                                           Duration limit) {
  const Look seen{.at = now, .beats = pulse.count(), .place = pulse.where(), .process = process};
  if (!last_ || last_->beats != seen.beats || last_->place != seen.place) {
    silent_ = Duration{0};
  } else {
    silent_ += counted(*last_, seen);
  }
  last_ = seen;
  if (silent_ < limit) return std::nullopt;
  return fmt::format("no progress for {:.1f} s {}; {}", seconds(silent_), place_of(seen.place),
                     describe(process.state));
}

}  // namespace sluice::engine
