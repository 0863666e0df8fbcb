#include "cli/supervisor.h"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "base/log.h"
#include "base/ready_pipe.h"
#include "cli/front_probe.h"

namespace sluice::cli {
namespace {

std::string last_line(const std::string& text) {
  const size_t end = text.find_last_not_of('\n');
  if (end == std::string::npos) return "";
  const size_t begin = text.rfind('\n', end);
  return text.substr(begin == std::string::npos ? 0 : begin + 1,
                     end - (begin == std::string::npos ? 0 : begin + 1) + 1);
}

}  // namespace

class Supervisor::Impl {
 public:
  struct Worker {
    ProcessOptions start_with;
    RestartBackoff backoff;
    std::optional<Process> process;
    int pipe = -1;
    ReadyParser parser;
    bool ready = false;
    std::string reported_failure;
    // While starting: when it must be ready. While down: when to start it.
    std::optional<TimePoint> due;
    std::optional<FrontProbe> probe;  // once it is ready
  };

  Impl(std::vector<ProcessOptions> workers, Options options, Listener& listener)
      : options_(options), listener_(listener) {
    for (auto& worker : workers) {
      worker.keep_stderr_tail = true;
      workers_.push_back({.start_with = std::move(worker), .backoff = {options.backoff, real_clock()}});
    }
  }

  ~Impl() {
    for (auto& worker : workers_) close_pipe(worker);
  }

  Result<void> run(int stop_descriptor) {
    for (size_t i = 0; i < workers_.size(); ++i) SLUICE_TRY_VOID(start(i));
    for (;;) {
      std::vector<pollfd> entries{{stop_descriptor, POLLIN, 0}};
      std::vector<size_t> owners{0};
      for (size_t i = 0; i < workers_.size(); ++i) {
        const auto& worker = workers_[i];
        const auto add = [&](int fd, short events) {
          if (fd < 0) return;
          entries.push_back({fd, events, 0});
          owners.push_back(i);
        };
        add(worker.process ? worker.process->pidfd() : -1, POLLIN);
        add(worker.pipe, POLLIN);
        if (worker.probe) add(worker.probe->descriptor(), worker.probe->events());
      }
      if (::poll(entries.data(), entries.size(), poll_timeout()) < 0 && errno != EINTR) {
        return Error{ErrorCode::kInternal, fmt::format("poll: {}", std::strerror(errno))};
      }
      if (entries[0].revents != 0) return {};
      reap_orphans();  // ranks of a front that was killed
      std::vector<bool> touched(workers_.size());
      for (size_t e = 1; e < entries.size(); ++e) {
        if (entries[e].revents != 0) touched[owners[e]] = true;
      }
      for (size_t i = 0; i < workers_.size(); ++i) {
        if (touched[i]) SLUICE_TRY_VOID(look_at(i));
        SLUICE_TRY_VOID(check_time(i));
        SLUICE_TRY_VOID(check_answers(i));
      }
    }
  }

  void stop(Duration grace) {
    std::vector<Process*> running;
    for (auto& worker : workers_) {
      if (worker.process) running.push_back(&*worker.process);
    }
    terminate_all(running, grace);
    for (auto& worker : workers_) worker.process.reset();
  }

 private:
  int poll_timeout() const {
    std::optional<TimePoint> first;
    for (const auto& worker : workers_) {
      if (worker.due && (!first || *worker.due < *first)) first = worker.due;
      if (worker.probe && (!first || worker.probe->due() < *first)) first = worker.probe->due();
    }
    if (!first) return -1;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(*first - real_clock().now()).count();
    return static_cast<int>(std::clamp<int64_t>(left, 0, 60'000));
  }

  Result<void> start(size_t i) {
    Worker& worker = workers_[i];
    int ends[2];
    worker.backoff.started();
    if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
      return down(i, fmt::format("cannot make a pipe: {}", std::strerror(errno)), /*by_itself=*/true);
    }
    ProcessOptions start_with = worker.start_with;
    start_with.descriptors[kReadyVariable] = ends[1];
    auto process = Process::start(start_with);
    ::close(ends[1]);
    worker.ready = false;
    worker.reported_failure.clear();
    worker.parser = {};
    worker.pipe = ends[0];
    if (!process.ok()) return down(i, process.error().message, /*by_itself=*/true);
    worker.process.emplace(std::move(process).value());
    worker.due = real_clock().now() + options_.startup_timeout;
    return {};
  }

  // Something of the worker is readable: its pipe, its end, or both.
  Result<void> look_at(size_t i) {
    Worker& worker = workers_[i];
    const auto status = worker.process ? worker.process->poll() : std::nullopt;
    read_pipe(i);  // after the poll, so that a last report is not missed
    if (!status) return {};
    std::string cause = status->to_string();
    std::string detail = worker.reported_failure;
    // Whoever is killed from outside has written nothing about it.
    const bool from_outside = status->signal == SIGKILL || status->signal == SIGTERM;
    if (detail.empty() && !from_outside) detail = last_line(worker.process->stderr_tail());
    if (!detail.empty()) cause += ": " + detail;
    return down(i, cause, !from_outside);
  }

  void read_pipe(size_t i) {
    Worker& worker = workers_[i];
    char buffer[4096];
    while (worker.pipe >= 0) {
      const ssize_t n = ::read(worker.pipe, buffer, sizeof buffer);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) return;
      if (n <= 0) return close_pipe(worker);
      for (const auto& report : worker.parser.feed({buffer, static_cast<size_t>(n)})) {
        switch (report.status) {
          case ReadyReport::Status::kProgress:
            listener_.on_progress(i, report.share, report.what);
            break;
          case ReadyReport::Status::kFailed:
            worker.reported_failure = report.what;
            break;
          case ReadyReport::Status::kReady:
            worker.ready = true;
            any_was_ready_ = true;
            worker.due.reset();
            listener_.on_ready(i, report.url);
            ask_now_and_then(i, report.url);
            break;
        }
      }
    }
  }

  Result<void> check_time(size_t i) {
    Worker& worker = workers_[i];
    if (!worker.due || real_clock().now() < *worker.due) return {};
    worker.due.reset();
    if (!worker.process) return start(i);
    worker.process->terminate(Duration{0});
    return down(i, fmt::format("it was not ready within {:.0f} s", seconds(options_.startup_timeout)), true);
  }

  void ask_now_and_then(size_t i, const std::string& url) {
    Worker& worker = workers_[i];
    worker.probe.reset();
    if (options_.answer_timeout <= Duration{0}) return;
    auto probe = FrontProbe::open(url, options_.answer_timeout, real_clock());
    if (probe.ok()) {
      worker.probe.emplace(std::move(*probe));
    } else {
      SLUICE_LOG(warn, "cli/supervisor", "worker {}: nobody will see if it hangs: {}", i, probe.error().message);
    }
  }

  Result<void> check_answers(size_t i) {
    Worker& worker = workers_[i];
    if (!worker.probe) return {};
    worker.probe->look();
    if (!worker.probe->gave_up()) return {};
    if (listener_.heard_within(i, options_.answer_timeout)) {
      worker.probe->heard();
      return {};
    }
    worker.process->terminate(Duration{0});
    return down(i, fmt::format("it has answered nothing for {:g} s and was killed", seconds(options_.answer_timeout)),
                /*by_itself=*/false);
  }

  // Forgets the process and plans the next one. An end of the worker's own making before anything ever worked means
  // that the next one would end the same way; a signal came from outside.
  Result<void> down(size_t i, const std::string& cause, bool by_itself) {
    Worker& worker = workers_[i];
    worker.process.reset();
    worker.probe.reset();
    close_pipe(worker);
    worker.ready = false;
    worker.due.reset();
    if (by_itself && !any_was_ready_) {
      listener_.on_down(i, cause, std::nullopt);
      return Error{ErrorCode::kUnavailable, fmt::format("worker {} did not start: {}", i, cause)};
    }
    std::optional<Duration> restart_in;
    if (options_.restart) {
      restart_in = worker.backoff.ended();
      worker.due = real_clock().now() + *restart_in;
    }
    listener_.on_down(i, cause, restart_in);
    return {};
  }

  static void close_pipe(Worker& worker) {
    if (worker.pipe >= 0) ::close(std::exchange(worker.pipe, -1));
  }

  const Options options_;
  Listener& listener_;
  std::vector<Worker> workers_;
  bool any_was_ready_ = false;
};

Supervisor::Supervisor(std::vector<ProcessOptions> workers, Options options, Listener& listener)
    : impl_(std::make_unique<Impl>(std::move(workers), options, listener)) {}
Supervisor::~Supervisor() = default;
Result<void> Supervisor::run(int stop_descriptor) { return impl_->run(stop_descriptor); }
void Supervisor::stop(Duration grace) { impl_->stop(grace); }

PortClaim::~PortClaim() {
  if (lock_ >= 0) ::close(lock_);
}

// The lock is an abstract Unix address: it is gone when its last holder is, however it ends.
std::optional<PortClaim> PortClaim::take(uint16_t port) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return std::nullopt;
  PortClaim claim(port, fd);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = fmt::format("sluice-worker-port-{}", port);
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), size) != 0) return std::nullopt;
  return claim;
}

Result<std::vector<PortClaim>> free_ports(const std::string& host, uint16_t base, size_t count, uint16_t taken) {
  std::string name = host;
  if (name.starts_with('[') && name.ends_with(']')) name = name.substr(1, name.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (const int problem = ::getaddrinfo(name.c_str(), "0", &hints, &found); problem != 0) {
    return Error{ErrorCode::kNotFound, fmt::format("{}: {}", host, ::gai_strerror(problem))};
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> addresses(found, &::freeaddrinfo);
  const auto can_bind = [&](uint16_t port) {
    const int fd = ::socket(addresses->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return false;
    // As the server does, so that a connection in TIME_WAIT does not make a port look taken.
    const int on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_storage address{};
    std::memcpy(&address, addresses->ai_addr, addresses->ai_addrlen);
    if (address.ss_family == AF_INET6) {
      reinterpret_cast<sockaddr_in6&>(address).sin6_port = htons(port);
    } else {
      reinterpret_cast<sockaddr_in&>(address).sin_port = htons(port);
    }
    const bool bound = ::bind(fd, reinterpret_cast<const sockaddr*>(&address), addresses->ai_addrlen) == 0;
    ::close(fd);
    return bound;
  };
  std::vector<PortClaim> ports;
  for (uint32_t port = base; port <= 65535 && ports.size() < count; ++port) {
    if (port == taken) continue;
    auto claim = PortClaim::take(static_cast<uint16_t>(port));
    if (claim && can_bind(claim->port())) ports.push_back(std::move(*claim));
  }
  if (ports.size() < count) {
    return Error{ErrorCode::kExhausted,
                 fmt::format("only {} of {} worker ports from {} on are free on {}", ports.size(), count, base, host)};
  }
  return ports;
}

}  // namespace sluice::cli
