#include "engine/load_board.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>
#include <type_traits>

namespace sluice::engine {
namespace {

constexpr uint64_t kMagic = 0x31616f6c75696c73;  // with the size of a row, so that two builds never mix
static_assert(std::is_trivially_copyable_v<LoadSnapshot> && sizeof(LoadSnapshot) % sizeof(uint64_t) == 0);
constexpr size_t kWords = sizeof(LoadSnapshot) / sizeof(uint64_t);
constexpr int kReadAttempts = 64;

Error system_error(std::string_view what) {
  return {ErrorCode::kInternal, fmt::format("{}: {}", what, std::strerror(errno))};
}

}  // namespace

// A sequence lock whose data are atomic words, so that a torn read is harmless and seen (Boehm, "Can seqlocks get along
// with programming language memory models?", 2012). `sequence` is odd while a write is under way.
struct alignas(64) LoadBoard::Row {
  std::atomic<uint64_t> sequence;
  std::array<std::atomic<uint64_t>, kWords> words;
  Pulse pulse;
  StackBoard stacks;
};
struct alignas(64) LoadBoard::Head {
  uint64_t magic;
  uint64_t row_bytes;
  int64_t ranks;
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

Result<LoadBoard> LoadBoard::create(int64_t ranks) {
  const int fd = memfd_create("sluice-load-board", MFD_CLOEXEC);
  if (fd < 0) return system_error("memfd_create of the load board");
  const Head head{.magic = kMagic, .row_bytes = sizeof(Row), .ranks = ranks};
  const auto bytes = static_cast<off_t>(sizeof(Head) + static_cast<size_t>(ranks) * sizeof(Row));
  if (ftruncate(fd, bytes) != 0 || pwrite(fd, &head, sizeof(head), 0) != static_cast<ssize_t>(sizeof(head))) {
    auto error = system_error("sizing the load board");
    close(fd);
    return error;
  }
  return map(fd);
}

Result<LoadBoard> LoadBoard::open(int fd) { return map(fd); }

Result<LoadBoard> LoadBoard::map(int fd) {
  LoadBoard board;
  board.fd_ = fd;
  struct stat status;
  Head head;
  if (fstat(fd, &status) != 0) return system_error("load board");
  const auto bytes = static_cast<size_t>(status.st_size);
  if (pread(fd, &head, sizeof(head), 0) != static_cast<ssize_t>(sizeof(head)) || head.magic != kMagic ||
      head.row_bytes != sizeof(Row) || head.ranks < 0 ||
      bytes != sizeof(Head) + static_cast<size_t>(head.ranks) * sizeof(Row)) {
    return Error{ErrorCode::kProtocol, fmt::format("descriptor {} is not a load board of this program", fd)};
  }
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) return system_error("mapping the load board");
  board.base_ = base;
  board.bytes_ = bytes;
  board.ranks_ = head.ranks;
  return board;
}

LoadBoard::~LoadBoard() {
  if (base_) munmap(base_, bytes_);
  if (fd_ >= 0) close(fd_);
}

LoadBoard::Row& LoadBoard::row(int64_t rank) const {
  SLUICE_CHECK(rank >= 0 && rank < ranks_, "row {} of a load board of {}", rank, ranks_);
  return reinterpret_cast<Row*>(static_cast<char*>(base_) + sizeof(Head))[rank];
}

Pulse& LoadBoard::pulse(int64_t rank) const { return row(rank).pulse; }
StackBoard& LoadBoard::stacks(int64_t rank) const { return row(rank).stacks; }

void LoadBoard::publish(int64_t rank, const LoadSnapshot& snapshot) {
  Row& to = row(rank);
  std::array<uint64_t, kWords> words;
  std::memcpy(words.data(), &snapshot, sizeof(snapshot));
  // A predecessor killed in the middle of a write leaves an odd number; going on from there heals the row.
  const uint64_t writing = to.sequence.load(std::memory_order_relaxed) | 1;
  to.sequence.store(writing, std::memory_order_relaxed);
  // Release stores instead of a fence, which ThreadSanitizer does not see: a reader that finds one of these words finds
  // the odd number, too.
  for (size_t i = 0; i < kWords; ++i) to.words[i].store(words[i], std::memory_order_release);
  to.sequence.store(writing + 1, std::memory_order_release);
}

std::optional<LoadSnapshot> LoadBoard::read(int64_t rank) const {
  const Row& from = row(rank);
  for (int attempt = 0; attempt < kReadAttempts; ++attempt) {
    const uint64_t before = from.sequence.load(std::memory_order_acquire);
    if (before == 0) return std::nullopt;
    if (before % 2 == 0) {
      std::array<uint64_t, kWords> words;
      for (size_t i = 0; i < kWords; ++i) words[i] = from.words[i].load(std::memory_order_acquire);
      if (from.sequence.load(std::memory_order_relaxed) == before) {
        LoadSnapshot snapshot;
        std::memcpy(static_cast<void*>(&snapshot), words.data(), sizeof(snapshot));
        return snapshot;
      }
    }
    if (attempt % 8 == 7) std::this_thread::yield();
  }
  return std::nullopt;
}

}  // namespace sluice::engine
