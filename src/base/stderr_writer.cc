#include "base/stderr_writer.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <mutex>
#include <string>

namespace sluice {
namespace {

// So much fits into a pipe that poll calls writable, so that the write does not wait.
constexpr size_t kPiece = 4096;
// For a reader that is only slow. One that has stopped is waited for once.
constexpr int kPatienceMillis = 200;

uint64_t lost_bytes = 0;

bool has_room(int patience_millis) {
  pollfd entry{STDERR_FILENO, POLLOUT, 0};
  return ::poll(&entry, 1, patience_millis) > 0;
}

// False: an error, a full disk for one.
bool write_piece(std::string_view piece) {
  while (!piece.empty()) {
    const ssize_t n = ::write(STDERR_FILENO, piece.data(), piece.size());
    if (n < 0 && errno != EINTR) return false;
    piece.remove_prefix(static_cast<size_t>(std::max<ssize_t>(n, 0)));
  }
  return true;
}

}  // namespace

void write_stderr(std::string_view bytes) {
  // Between the look for room and the write nobody else may take it.
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  while (!bytes.empty()) {
    const uint64_t lost = lost_bytes;
    if (!has_room(lost > 0 ? 0 : kPatienceMillis)) break;
    if (lost > 0) {
      lost_bytes = 0;
      write_piece(fmt::format("({} bytes of the log were lost here: nobody read it)\n", lost));
      continue;
    }
    if (!write_piece(bytes.substr(0, kPiece))) return;
    bytes.remove_prefix(std::min(bytes.size(), kPiece));
  }
  lost_bytes += bytes.size();
}

}  // namespace sluice
