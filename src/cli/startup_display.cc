#include "cli/startup_display.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/stderr_writer.h"

namespace sluice::cli {

StartupDisplay::StartupDisplay(std::vector<std::string> names, int descriptor, bool terminal)
    : descriptor_(descriptor), terminal_(terminal) {
  for (auto& name : names) workers_.push_back({.name = std::move(name)});
  if (terminal_) draw("");
}

void StartupDisplay::progress(size_t worker, double share, std::string_view what) {
  std::lock_guard lock(mutex_);
  State& state = workers_[worker];
  const bool new_phase = state.what != what;
  state.share = share;
  state.what = what;
  // Without a terminal, a line per phase and not per step.
  if (terminal_ || new_phase) show(worker);
}

void StartupDisplay::ready(size_t worker) {
  std::lock_guard lock(mutex_);
  State& state = workers_[worker];
  const bool known = state.what == "ready";  // its own last progress may have said so
  state.share = 1;
  state.what = "ready";
  if (terminal_ || !known) show(worker);
}

void StartupDisplay::down(size_t worker, std::string_view cause) {
  std::lock_guard lock(mutex_);
  workers_[worker].share = 0;
  workers_[worker].what = cause;
  show(worker);
}

void StartupDisplay::print(std::string_view line) {
  std::lock_guard lock(mutex_);
  if (terminal_ && !finished_) {
    draw(line);
  } else {
    write(fmt::format("{}\n", line));
  }
}

void StartupDisplay::finish() {
  std::lock_guard lock(mutex_);
  finished_ = true;
}

void StartupDisplay::show(size_t worker) {
  if (finished_) return;
  if (terminal_) {
    draw("");
  } else {
    write(fmt::format("{}: {}\n", workers_[worker].name, workers_[worker].what));
  }
}

std::string StartupDisplay::bar(const State& state) const {
  constexpr size_t kCells = 24;
  const auto full = static_cast<size_t>(state.share * kCells);
  return fmt::format("{} [{}{}] {:3.0f}% {:.60}", state.name, std::string(full, '#'), std::string(kCells - full, ' '),
                     state.share * 100, state.what);
}

void StartupDisplay::draw(std::string_view above) {
  std::string out;
  if (drawn_) out += fmt::format("\x1b[{}F\x1b[J", workers_.size());  // up to the first worker's line; clear from there
  if (!above.empty()) out += fmt::format("{}\n", above);
  out += "\x1b[?7l";  // a line that is too long is cut: a second row would not be counted
  for (const auto& state : workers_) out += bar(state) + "\n";
  out += "\x1b[?7h";
  drawn_ = true;
  write(out);
}

void StartupDisplay::write(std::string_view bytes) const {
  if (descriptor_ == STDERR_FILENO) return write_stderr(bytes);  // that nobody reads it must hold up nobody
  while (!bytes.empty()) {
    const ssize_t n = ::write(descriptor_, bytes.data(), bytes.size());
    if (n < 0 && errno != EINTR) return;  // nobody looks any more
    bytes.remove_prefix(static_cast<size_t>(std::max<ssize_t>(n, 0)));
  }
}

}  // namespace sluice::cli
