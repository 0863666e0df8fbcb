#include "base/process.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <deque>
#include <mutex>
#include <set>
#include <thread>

#include "base/stderr_writer.h"

extern char** environ;

namespace sluice {
namespace {

constexpr const char* kLifelineVariable = "SLUICE_LIFELINE_FD";
constexpr size_t kTailLines = 20;
constexpr size_t kTailLineBytes = 2000;

// Owns a descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  void reset() { Descriptor(std::exchange(fd_, -1)); }

 private:
  int fd_ = -1;
};

Error system_error(std::string what, int number) {
  ErrorCode code = ErrorCode::kInternal;
  if (number == ENOENT) code = ErrorCode::kNotFound;
  if (number == EACCES || number == EPERM) code = ErrorCode::kPermissionDenied;
  if (number == EAGAIN || number == ENOMEM || number == EMFILE || number == ENFILE) code = ErrorCode::kExhausted;
  return Error{code, fmt::format("{}: {}", what, std::strerror(number))};
}

Result<std::pair<Descriptor, Descriptor>> make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return system_error("cannot make a pipe", errno);
  return std::pair(Descriptor(ends[0]), Descriptor(ends[1]));
}

// Milliseconds for poll(2), rounded up, so that a wait never ends before its bound.
int poll_milliseconds(Duration bound) {
  const auto millis = std::chrono::ceil<std::chrono::milliseconds>(bound).count();
  return static_cast<int>(std::clamp<int64_t>(millis, 0, INT_MAX));
}

bool wait_readable(int fd, Duration bound) {
  const TimePoint end = real_clock().now() + bound;
  for (;;) {
    pollfd entry{fd, POLLIN, 0};
    const int n = ::poll(&entry, 1, poll_milliseconds(end - real_clock().now()));
    if (n > 0) return true;
    if (n == 0 && real_clock().now() >= end) return false;
    if (n < 0 && errno != EINTR) return false;
  }
}

// Copies a child's stderr to ours and keeps the last lines. One thread per child; it sleeps in poll.
class StderrTail {
 public:
  // `stop`: an eventfd.
  StderrTail(Descriptor from, Descriptor stop, std::function<void(std::string_view)> on_line)
      : from_(std::move(from)), on_line_(std::move(on_line)), stop_(std::move(stop)) {
    ::fcntl(from_.get(), F_SETFL, O_NONBLOCK);
    thread_ = std::thread([this] { run(); });
  }
  ~StderrTail() { finish(); }

  // Reads what is in the pipe now and ends the thread. Grandchildren may still hold the other end: no waiting for EOF.
  void finish() {
    if (!thread_.joinable()) return;
    const uint64_t one = 1;
    SLUICE_CHECK(::write(stop_.get(), &one, sizeof one) == sizeof one, "eventfd: {}", std::strerror(errno));
    thread_.join();
  }

  std::string text() const {
    std::lock_guard lock(mutex_);
    std::string out = fmt::format("{}", fmt::join(lines_, "\n"));
    if (!partial_.empty()) out += (out.empty() ? "" : "\n") + partial_;
    return out;
  }

 private:
  void run() {
    for (bool stopping = false; !stopping;) {
      pollfd entries[2] = {{from_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
      if (::poll(entries, 2, -1) < 0 && errno != EINTR) return;
      stopping = entries[1].revents != 0;
      if (!read_all()) return;
    }
  }

  // False at the end of the pipe.
  bool read_all() {
    char buffer[4096];
    for (;;) {
      const ssize_t n = ::read(from_.get(), buffer, sizeof buffer);
      if (n == 0) return false;
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return errno == EAGAIN;
      if (!on_line_) write_stderr({buffer, static_cast<size_t>(n)});
      keep(std::string_view(buffer, static_cast<size_t>(n)));
    }
  }

  void keep(std::string_view bytes) {
    for (const char c : bytes) {
      std::string line;
      {
        std::lock_guard lock(mutex_);
        if (c != '\n') {
          if (partial_.size() < kTailLineBytes) partial_ += c;
          continue;
        }
        line = std::exchange(partial_, {});
        lines_.push_back(line);
        if (lines_.size() > kTailLines) lines_.pop_front();
      }
      if (on_line_) on_line_(line);
    }
  }

  Descriptor from_;
  const std::function<void(std::string_view)> on_line_;
  Descriptor stop_;
  std::thread thread_;
  mutable std::mutex mutex_;  // guards what follows; no other lock is taken under it
  std::deque<std::string> lines_;
  std::string partial_;
};

// posix_spawn's two attribute objects, released together.
struct SpawnSetup {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;

  SpawnSetup() {
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
  }
  ~SpawnSetup() {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }
  SpawnSetup(const SpawnSetup&) = delete;
  SpawnSetup& operator=(const SpawnSetup&) = delete;
};

// Pointers for exec; valid while `words` lives.
std::vector<char*> c_words(std::vector<std::string>& words) {
  std::vector<char*> out;
  for (auto& word : words) out.push_back(word.data());
  out.push_back(nullptr);
  return out;
}

// The children that a Process will reap.
struct Children {
  std::mutex mutex;  // no other lock is taken under it
  std::set<pid_t> pids;
};
Children& children() {
  static Children& all = *new Children;  // outlives every Process
  return all;
}

std::vector<std::string> merged_environment(const std::map<std::string, std::string>& changes) {
  std::vector<std::string> merged;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    if (!changes.contains(std::string(text.substr(0, text.find('='))))) merged.emplace_back(text);
  }
  for (const auto& [name, value] : changes) merged.push_back(fmt::format("{}={}", name, value));
  return merged;
}

}  // namespace

std::string ExitStatus::to_string() const {
  if (signal == 0) return fmt::format("exit {}", code);
  const char* name = ::sigabbrev_np(signal);
  return name ? fmt::format("killed by SIG{}", name) : fmt::format("killed by signal {}", signal);
}

class Process::Impl {
 public:
  pid_t pid = -1;
  bool own_group = false;
  Descriptor pidfd;
  Descriptor lifeline;  // its closing tells the child that we are gone
  std::unique_ptr<StderrTail> tail;
  std::optional<ExitStatus> status;

  ~Impl() {
    if (pid < 0) return;  // it was never started
    if (!status) {
      signal(SIGKILL);
      wait(std::chrono::seconds(10));
    }
    forget();
  }

  void forget() const {
    const std::lock_guard lock(children().mutex);
    children().pids.erase(pid);
  }

  void signal(int number) const {
    if (status) return;
    SLUICE_CHECK(pid > 0, "signal {} is for no process", number);  // kill() would take -1 for everybody
    ::kill(own_group ? -pid : pid, number);
  }

  std::optional<ExitStatus> wait(Duration bound) {
    if (status || !wait_readable(pidfd.get(), bound)) return status;
    siginfo_t info{};
    int n;
    do {
      n = ::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG);
    } while (n != 0 && errno == EINTR);
    if (n != 0 || info.si_pid == 0) return std::nullopt;
    status = info.si_code == CLD_EXITED ? ExitStatus{.code = info.si_status} : ExitStatus{.signal = info.si_status};
    forget();
    if (tail) tail->finish();
    return status;
  }

  ExitStatus finish(Duration grace) {
    if (!status) {
      wait_readable(pidfd.get(), grace);
      // Before the leader is reaped, so that the group's number cannot belong to somebody else yet.
      signal(SIGKILL);
      wait(std::chrono::seconds(10));
    }
    // Ten seconds after SIGKILL means stuck in the kernel; the caller must get on.
    return status.value_or(ExitStatus{.signal = SIGKILL});
  }
};

Result<Process> Process::start(const ProcessOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->own_group = options.own_group;

  SLUICE_TRY(auto lifeline, make_pipe());
  std::map<std::string, int> passed = options.descriptors;
  if (!options.outlives_parent) {
    impl->lifeline = std::move(lifeline.second);
    passed[kLifelineVariable] = lifeline.first.get();
  }

  SpawnSetup setup;
  std::map<std::string, std::string> environment = options.environment;
  // The child's numbers are 3, 4, ...; copies out of that range first, so that no dup2 hits a source still to come.
  std::vector<Descriptor> copies;
  const int first_free = 3 + static_cast<int>(passed.size());
  int number = 3;
  for (const auto& [name, fd] : passed) {
    copies.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, first_free));
    if (copies.back().get() < 0) return system_error(fmt::format("cannot pass descriptor {}", name), errno);
    posix_spawn_file_actions_adddup2(&setup.actions, copies.back().get(), number);
    environment[name] = std::to_string(number++);
  }
  Descriptor stderr_end;
  if (options.keep_stderr_tail) {
    SLUICE_TRY(auto ends, make_pipe());
    Descriptor stop(::eventfd(0, EFD_CLOEXEC));
    if (stop.get() < 0) return system_error("cannot make an eventfd", errno);
    impl->tail = std::make_unique<StderrTail>(std::move(ends.first), std::move(stop), options.on_stderr_line);
    stderr_end = std::move(ends.second);
    posix_spawn_file_actions_adddup2(&setup.actions, stderr_end.get(), STDERR_FILENO);
  }
  if (options.stdout_to_stderr) posix_spawn_file_actions_adddup2(&setup.actions, STDERR_FILENO, STDOUT_FILENO);
  posix_spawn_file_actions_addclosefrom_np(&setup.actions, number);

  // Signals as in a fresh process: an ignored SIGPIPE or a blocked SIGTERM of ours is not the child's business.
  sigset_t none;
  sigset_t all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&setup.attributes, &none);
  posix_spawnattr_setsigdefault(&setup.attributes, &all);
  posix_spawnattr_setpgroup(&setup.attributes, 0);
  short flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
  if (options.own_group) flags |= POSIX_SPAWN_SETPGROUP;
  posix_spawnattr_setflags(&setup.attributes, flags);

  std::vector<std::string> argv{options.program};
  argv.insert(argv.end(), options.arguments.begin(), options.arguments.end());
  std::vector<std::string> envp = merged_environment(environment);
  const std::vector<char*> words = c_words(argv);
  const std::vector<char*> variables = c_words(envp);
  int problem = 0;
  {
    const std::lock_guard lock(children().mutex);  // until it is known for ours
    problem = ::posix_spawn(&impl->pid, options.program.c_str(), &setup.actions, &setup.attributes, words.data(),
                            variables.data());
    if (problem == 0) children().pids.insert(impl->pid);
  }
  if (problem != 0) {
    impl->status = ExitStatus{};  // there is nothing to reap
    return system_error(fmt::format("cannot start {}", options.program), problem);
  }
  impl->pidfd = Descriptor(static_cast<int>(::syscall(SYS_pidfd_open, impl->pid, 0)));
  if (impl->pidfd.get() < 0) {
    const int number_of_error = errno;
    impl->signal(SIGKILL);
    ::waitpid(impl->pid, nullptr, 0);
    impl->status = ExitStatus{.signal = SIGKILL};
    return system_error("pidfd_open", number_of_error);
  }
  return Process(std::move(impl));
}

Process::Process(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Process::Process(Process&&) noexcept = default;
Process& Process::operator=(Process&&) noexcept = default;
Process::~Process() = default;

pid_t Process::pid() const { return impl_->pid; }
int Process::pidfd() const { return impl_->pidfd.get(); }
std::optional<ExitStatus> Process::poll() { return impl_->wait(Duration{0}); }
std::optional<ExitStatus> Process::wait(Duration bound) { return impl_->wait(bound); }
void Process::signal(int number) { impl_->signal(number); }

ExitStatus Process::terminate(Duration grace) {
  impl_->signal(SIGTERM);
  return impl_->finish(grace);
}

void Process::let_go() { impl_->status = ExitStatus{}; }

std::string Process::stderr_tail() const { return impl_->tail ? impl_->tail->text() : std::string(); }

void terminate_all(const std::vector<Process*>& processes, Duration grace) {
  const TimePoint end = real_clock().now() + grace;
  for (auto* process : processes) process->signal(SIGTERM);
  for (auto* process : processes) {
    const Duration left = std::max(Duration{0}, end - real_clock().now());
    if (!process->wait(left)) process->terminate(Duration{0});
  }
}

int reap_orphans() {
  const std::lock_guard lock(children().mutex);
  for (int reaped = 0;; ++reaped) {
    siginfo_t info{};
    // One of ours that stands in front of others is about to be reaped: the others are the next call's.
    if (::waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0) return reaped;
    if (children().pids.contains(info.si_pid) || ::waitpid(info.si_pid, nullptr, WNOHANG) <= 0) return reaped;
  }
}

void end_with_parent() {
  const auto lifeline = inherited_descriptor(kLifelineVariable);
  if (!lifeline) return;
  // No signal is handled on this thread.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread([fd = *lifeline] {
    char byte;
    ssize_t n;
    do {
      n = ::read(fd, &byte, 1);
    } while (n > 0 || (n < 0 && errno == EINTR));
    // The parent cannot be told any more, and nobody waits for a drain: end at once, with what was started since.
    if (::getpgrp() == ::getpid()) ::kill(0, SIGKILL);
    ::_exit(1);
  }).detach();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

namespace {

constexpr const char* kSelf = "/proc/self/exe";

bool is_this_program(const std::string& path) {
  struct stat there {
  }, own{};
  return ::stat(path.c_str(), &there) == 0 && ::stat(kSelf, &own) == 0 && there.st_dev == own.st_dev &&
         there.st_ino == own.st_ino;
}

}  // namespace

std::string installed_executable() {
  char path[PATH_MAX];
  const ssize_t n = ::readlink(kSelf, path, sizeof path);
  SLUICE_CHECK(n > 0, "{}: {}", kSelf, std::strerror(errno));
  std::string out(path, static_cast<size_t>(n));
  constexpr std::string_view kDeleted = " (deleted)";  // of a file that another one has replaced
  if (out.ends_with(kDeleted) && !is_this_program(out)) out.resize(out.size() - kDeleted.size());
  return out;
}

std::string own_executable() {
  std::string path = installed_executable();
  return is_this_program(path) ? path : kSelf;
}

std::optional<int> inherited_descriptor(const std::string& name) {
  const char* text = ::getenv(name.c_str());
  if (text == nullptr) return std::nullopt;
  const int fd = std::atoi(text);
  ::unsetenv(name.c_str());
  if (fd < 3 || ::fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) return std::nullopt;
  return fd;
}

void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

Duration RestartBackoff::ended() {
  if (next_ == Duration{0} || clock_.now() - started_ >= options_.stable) next_ = options_.first;
  const Duration delay = next_;
  next_ = std::min(next_ * 2, options_.max);
  return delay;
}

}  // namespace sluice
