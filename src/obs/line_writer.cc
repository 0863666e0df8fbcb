#include "obs/line_writer.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "base/log.h"

namespace sluice::obs {
namespace {

constexpr auto kGathering = std::chrono::milliseconds(20);
constexpr int kPollMillis = 100;
constexpr int64_t kSecond = 1'000'000'000;

int open_for_append(const std::string& path) {
  return ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0644);
}

bool is_regular(int fd) {
  struct stat status {};
  return fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

}  // namespace

Result<std::unique_ptr<LineWriter>> LineWriter::open(std::string path) {
  const int fd = path.empty() ? fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3) : open_for_append(path);
  if (fd < 0) {
    return Error{ErrorCode::kBadOption,
                 fmt::format("cannot write to {}: {}", path.empty() ? "stdout" : path, std::strerror(errno))};
  }
  return std::unique_ptr<LineWriter>(new LineWriter(std::move(path), fd));
}

LineWriter::LineWriter(std::string path, int fd)
    : path_(std::move(path)), fd_(fd), is_file_(is_regular(fd)), thread_([this] { run(); }) {}

LineWriter::~LineWriter() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
  ::close(fd_);
}

void LineWriter::add(std::string_view line) {
  bool is_due = false;
  {
    std::lock_guard lock(mutex_);
    if (waiting_.size() + line.size() + 1 > kMostBytes) {
      dropped_.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    const size_t before = waiting_.size();
    waiting_ += line;
    waiting_ += '\n';
    is_due = before == 0 || (before <= kMostBytes / 2 && waiting_.size() > kMostBytes / 2);
  }
  if (is_due) wake_.notify_one();
}

void LineWriter::run() {
  std::string lines;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || !waiting_.empty(); });
      if (!stop_) wake_.wait_for(lock, kGathering, [&] { return stop_ || waiting_.size() > kMostBytes / 2; });
      if (stop_ && give_up_at_ == 0) give_up_at_ = log::monotonic_nanos() + kSecond;
      if (stop_ && waiting_.empty()) return;
      lines.clear();
      std::swap(lines, waiting_);
    }
    if (!path_.empty()) follow_path();
    write(lines);
  }
}

// A pipe or a terminal takes whole lines, and no more at a time than it is sure to take without waiting: somebody else
// may hold its other end, so it cannot be told not to block.
void LineWriter::write(std::string_view lines) {
  while (!lines.empty()) {
    size_t size = lines.size();
    if (!is_file_ && size > PIPE_BUF) {
      const size_t end = lines.rfind('\n', PIPE_BUF - 1);
      size = end == std::string_view::npos ? PIPE_BUF : end + 1;
    }
    const ssize_t written = is_file_ || wait_writable() ? ::write(fd_, lines.data(), size) : -1;
    if (written < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (written <= 0) {
      const auto lost = std::ranges::count(lines, '\n');
      dropped_.fetch_add(static_cast<uint64_t>(lost), std::memory_order_relaxed);
      SLUICE_LOG_EVERY(60, warn, "obs/line_writer", "lines dropped for {}: {} ({})", path_.empty() ? "stdout" : path_,
                       lost, std::strerror(errno));
      return;
    }
    lines.remove_prefix(static_cast<size_t>(written));
  }
}

// False, with errno, when it is no use waiting any longer.
bool LineWriter::wait_writable() {
  for (;;) {
    pollfd wanted{.fd = fd_, .events = POLLOUT, .revents = 0};
    const int ready = poll(&wanted, 1, kPollMillis);
    if (ready > 0) return true;  // an error shows when it is written
    if (ready < 0 && errno != EINTR) return false;
    if (stop_) {
      std::lock_guard lock(mutex_);
      if (give_up_at_ == 0) give_up_at_ = log::monotonic_nanos() + kSecond;
      if (log::monotonic_nanos() >= give_up_at_) {
        errno = ETIMEDOUT;
        return false;
      }
    }
  }
}

// The name may stand for another file by now, or for none.
void LineWriter::follow_path() {
  struct stat named {
  }, opened{};
  const bool same = stat(path_.c_str(), &named) == 0 && fstat(fd_, &opened) == 0 && named.st_dev == opened.st_dev &&
                    named.st_ino == opened.st_ino;
  if (same) return;
  const int fd = open_for_append(path_);
  if (fd < 0) return;  // the one that is open will do
  ::close(std::exchange(fd_, fd));
  is_file_ = is_regular(fd_);
}

}  // namespace sluice::obs
