#include "cli/upgrade.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "base/log.h"
#include "base/process.h"
#include "base/ready_pipe.h"

namespace sluice::cli {
namespace {

constexpr const char* kFleetVariable = "SLUICE_FLEET_FD";
constexpr Duration kPatience = std::chrono::seconds(60);

using Sockets = std::vector<net::Socket>;

struct Kind {
  const char* name;  // in LISTEN_FDNAMES
  const char* variable;
  Sockets gateway::Inheritance::*sockets;
};
constexpr std::array<Kind, 3> kKinds{{{"http", "SLUICE_LISTEN_HTTP", &gateway::Inheritance::http},
                                      {"health", "SLUICE_LISTEN_HEALTH", &gateway::Inheritance::health},
                                      {"metrics", "SLUICE_LISTEN_METRICS", &gateway::Inheritance::metrics}}};

std::string take_variable(const char* name) {
  const char* value = std::getenv(name);
  const std::string text = value == nullptr ? "" : value;
  ::unsetenv(name);
  return text;
}

// sd_listen_fds(3): descriptors from 3 on, if they are meant for this process.
void take_from_service_manager(gateway::Inheritance& inherited) {
  const std::string pid = take_variable("LISTEN_PID"), count = take_variable("LISTEN_FDS");
  std::string names = take_variable("LISTEN_FDNAMES");
  if (pid.empty() || std::atoi(pid.c_str()) != ::getpid()) return;
  for (int i = 0; i < std::atoi(count.c_str()); ++i) {
    const std::string name = names.substr(0, names.find(':'));
    names.erase(0, std::min(names.size(), name.size() + 1));
    const auto kind = std::ranges::find_if(kKinds, [&](const Kind& k) { return name == k.name; });
    const int fd = 3 + i;
    ::fcntl(fd, F_SETFD, FD_CLOEXEC);
    (inherited.*(kind == kKinds.end() ? kKinds.front() : *kind).sockets).emplace_back(fd);
  }
}

Result<std::string> read_whole(int fd) {
  std::string text;
  char buffer[4096];
  for (;;) {
    const ssize_t n = ::pread(fd, buffer, sizeof buffer, static_cast<off_t>(text.size()));
    if (n < 0) return Error{ErrorCode::kInternal, fmt::format("cannot read the fleet: {}", std::strerror(errno))};
    if (n == 0) return text;
    text.append(buffer, static_cast<size_t>(n));
  }
}

// In memory: it holds the keys of the workers.
Result<net::Socket> memory_file(const std::string& text) {
  net::Socket file(::memfd_create("fleet", MFD_CLOEXEC));
  if (file.get() < 0 || ::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return Error{ErrorCode::kExhausted, fmt::format("no memory file: {}", std::strerror(errno))};
  }
  return file;
}

// What the successor says within the time; kCancelled if a signal to stop comes first.
Result<void> wait_until_ready(int reports, Process& successor, StopSignals& signals) {
  ReadyParser parser;
  const TimePoint end = real_clock().now() + kPatience;
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - real_clock().now()).count();
    if (left <= 0) {
      return Error{ErrorCode::kTimeout, fmt::format("it was not ready within {:g} s", seconds(kPatience))};
    }
    pollfd waits[] = {{reports, POLLIN, 0}, {signals.descriptor(), POLLIN, 0}, {successor.pidfd(), POLLIN, 0}};
    if (::poll(waits, 3, static_cast<int>(left)) < 0 && errno != EINTR) {
      return Error{ErrorCode::kInternal, fmt::format("poll: {}", std::strerror(errno))};
    }
    if (waits[0].revents != 0) {
      char buffer[4096];
      const ssize_t n = ::read(reports, buffer, sizeof buffer);
      if (n <= 0) reports = -1;  // poll passes over it
      for (const auto& report : parser.feed(std::string_view(buffer, static_cast<size_t>(std::max<ssize_t>(n, 0))))) {
        if (report.status == ReadyReport::Status::kReady) return {};
        if (report.status == ReadyReport::Status::kFailed) return Error{ErrorCode::kInternal, report.what};
      }
    }
    if (waits[2].revents != 0) {
      if (const auto status = successor.poll()) {
        return Error{ErrorCode::kInternal, fmt::format("it ended: {}", status->to_string())};
      }
    }
    if (waits[1].revents != 0) {
      // One more SIGUSR2 means what is under way already.
      const auto number = signals.wait(Duration{0});
      if (number && *number != SIGUSR2) {
        ::kill(::getpid(), *number);  // for whoever waits for signals
        return Error{ErrorCode::kCancelled, "a signal to stop came first"};
      }
    }
  }
}

}  // namespace

Result<gateway::Inheritance> inheritance() {
  gateway::Inheritance inherited;
  take_from_service_manager(inherited);
  for (const Kind& kind : kKinds) {
    for (size_t i = 0;; ++i) {
      const auto fd = inherited_descriptor(fmt::format("{}_{}", kind.variable, i));
      if (!fd) break;
      (inherited.*kind.sockets).emplace_back(*fd);
    }
  }
  if (const auto fd = inherited_descriptor(kFleetVariable)) {
    const net::Socket file(*fd);
    SLUICE_TRY(inherited.fleet, read_whole(file.get()));
  }
  return inherited;
}

// The name that it was started by, not /proc/self/exe: a link may lead to a new version.
CommandLine CommandLine::own() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  CommandLine command;
  for (std::string word; std::getline(file, word, '\0');) command.arguments.push_back(word);
  if (!command.arguments.empty()) {
    command.program = command.arguments.front();
    command.arguments.erase(command.arguments.begin());
  }
  if (command.program.find('/') == std::string::npos) command.program = installed_executable();
  return command;
}

Result<void> start_successor(const CommandLine& command, gateway::Gateway& gateway, StopSignals& signals) {
  SLUICE_TRY(const gateway::Inheritance left, gateway.bequeath());
  SLUICE_TRY(const net::Socket fleet, memory_file(*left.fleet));
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return Error{ErrorCode::kExhausted, fmt::format("no pipe: {}", std::strerror(errno))};
  }
  const net::Socket reports(ends[0]);
  net::Socket theirs(ends[1]);
  ProcessOptions options{.program = command.program, .arguments = command.arguments};
  options.own_group = false;
  options.outlives_parent = true;
  options.descriptors[kFleetVariable] = fleet.get();
  options.descriptors[kReadyVariable] = theirs.get();
  for (const Kind& kind : kKinds) {
    const Sockets& sockets = left.*kind.sockets;
    for (size_t i = 0; i < sockets.size(); ++i) {
      options.descriptors[fmt::format("{}_{}", kind.variable, i)] = sockets[i].get();
    }
  }
  SLUICE_TRY(auto successor, Process::start(options));
  theirs = net::Socket();
  SLUICE_LOG(info, "cli/gateway", "process {} is to take over", successor.pid());
  auto ready = wait_until_ready(reports.get(), successor, signals);
  if (!ready.ok()) {
    successor.terminate(std::chrono::seconds(2));
    return ready;
  }
  successor.let_go();
  return {};
}

// sd_notify(3).
void announce_main_process() {
  const char* path = std::getenv("NOTIFY_SOCKET");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path == nullptr || std::strlen(path) >= sizeof address.sun_path) return;
  std::memcpy(address.sun_path, path, std::strlen(path));
  if (path[0] == '@') address.sun_path[0] = '\0';
  const net::Socket socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const std::string message = fmt::format("MAINPID={}\nREADY=1", ::getpid());
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + std::strlen(path));
  ::sendto(socket.get(), message.data(), message.size(), MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&address),
           size);
}

}  // namespace sluice::cli
