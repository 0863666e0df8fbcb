// Child processes: ranks of an engine, workers of `sluice serve`. A child is started by exec (never a fork that goes on
// running our code), watched through a pidfd, and ends when its parent ends, however the parent ends.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace sluice {

struct ExitStatus {
  int code = 0;    // when signal is 0
  int signal = 0;  // the signal that ended it, or 0

  bool ok() const { return code == 0 && signal == 0; }
  // "exit 3", "killed by SIGKILL"
  std::string to_string() const;
};

struct ProcessOptions {
  std::string program;                 // a path; it is not searched for in PATH
  std::vector<std::string> arguments;  // without the program's name
  // Added to this process's environment, or replacing entries of it.
  std::map<std::string, std::string> environment;
  // Descriptors that the child gets, each with the environment variable that tells it the number ("SLUICE_READY_FD").
  // They stay the caller's. Every other descriptor from 3 on is closed in the child.
  std::map<std::string, int> descriptors;
  // A process group of its own: a Ctrl-C in the terminal reaches only the parent, and terminate() the grandchildren.
  bool own_group = true;
  // Keeps the last lines that the child writes to stderr, for stating the cause of its end; they still go to our
  // stderr.
  bool keep_stderr_tail = false;
  // With keep_stderr_tail: gets each line, without its end, instead of our stderr. On a thread of the process's own.
  std::function<void(std::string_view)> on_stderr_line = {};
  // It goes on when this process ends, and let_go() makes it independent of its Process too.
  bool outlives_parent = false;
  // What it prints joins its stderr, so that our own stdout stays ours.
  bool stdout_to_stderr = false;
};

// A running or finished child. Dropping it kills what still runs. Used by one thread at a time.
class Process {
 public:
  // kNotFound, kPermissionDenied or kExhausted, naming the program.
  static Result<Process> start(const ProcessOptions& options);

  Process(Process&&) noexcept;
  Process& operator=(Process&&) noexcept;
  ~Process();

  pid_t pid() const;
  // Readable when the child has ended: for poll, epoll or an Asio descriptor. Stays ours.
  int pidfd() const;

  // The status if the child has ended. The first answer reaps it.
  std::optional<ExitStatus> poll();
  // Waits at most `bound`.
  std::optional<ExitStatus> wait(Duration bound);

  // To the child, or to its whole group where it has its own. Nothing happens once it has been reaped.
  void signal(int number);
  // SIGTERM, at most `grace` of waiting, SIGKILL to whatever of the group is left; returns the reaped status.
  ExitStatus terminate(Duration grace);

  // With outlives_parent: dropping this Process does nothing to the child any more.
  void let_go();

  // The last 20 lines of its stderr; complete once poll() or wait() has given the status.
  std::string stderr_tail() const;

 private:
  class Impl;
  explicit Process(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// terminate() of many at once: they share one grace period.
void terminate_all(const std::vector<Process*>& processes, Duration grace);

// As PID 1, as in a container, a process gets the children of children that have ended, and nobody else takes those
// away when they end. Takes away what has ended of them and returns how many; children started by Process stay. Any
// thread.
int reap_orphans();

// Call first thing in main(). Where this process was started by Process, a thread waits for the parent's end (the end
// of an inherited pipe, so kill -9 counts too) and then ends this process's group. PR_SET_PDEATHSIG is not used: it
// fires when the launching thread ends, not the process.
void end_with_parent();

// Path of the running executable, to start it again with other arguments: this very program, also when another one has
// been installed in its place.
std::string own_executable();
// The place itself, to start what is installed there now.
std::string installed_executable();

// The descriptor that the parent passed under that name (ProcessOptions::descriptors), now close-on-exec. Clears the
// variable, so that grandchildren do not see it.
std::optional<int> inherited_descriptor(const std::string& name);

// As many descriptors at once as the system lets this process have: raises the soft limit to the hard one. Where that
// is refused everything stays as it was.
void raise_descriptor_limit();

// When to start a child again: at once is never right, for ever is too late. Doubles from `first` to `max`; a run of at
// least `stable` starts over.
class RestartBackoff {
 public:
  struct Options {
    Duration first = std::chrono::seconds(1);
    Duration max = std::chrono::seconds(60);
    Duration stable = std::chrono::seconds(60);
  };
  RestartBackoff(Options options, const Clock& clock) : options_(options), clock_(clock) {}

  void started() { started_ = clock_.now(); }
  // The child has ended: how long to wait before the next start.
  Duration ended();

 private:
  Options options_;
  const Clock& clock_;
  TimePoint started_{};
  Duration next_{0};
};

}  // namespace sluice
