#include "parallel/shm_segment.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <thread>

#include "base/check.h"
#include "parallel/shm_head.h"

namespace sluice::parallel {
namespace {

constexpr uint64_t kMagic = 0x316d68735f637573;
constexpr size_t kPage = 4096;
// More than the group of all ranks needs, whose place is known to everybody.
constexpr size_t kFirstGroupBytes = size_t{1} << 32;
constexpr int kMaxRanks = 1024;
constexpr uint64_t kFileBytes = uint64_t{1} << 40;

size_t to_pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

Error system_error(std::string_view what) {
  const auto code =
      errno == ENOMEM || errno == EMFILE || errno == ENFILE ? ErrorCode::kExhausted : ErrorCode::kInternal;
  return {code, fmt::format("{}: {}", what, std::strerror(errno))};
}

}  // namespace

void futex_wait(std::atomic<uint32_t>& word, uint32_t value, Duration bound) {
  const auto nanos = std::max<int64_t>(bound.count(), 0);
  const timespec timeout{.tv_sec = nanos / 1'000'000'000, .tv_nsec = nanos % 1'000'000'000};
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, value, &timeout, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>& word) {
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

ShmRegion::~ShmRegion() {
  if (at_) ::munmap(at_, bytes_);
}

Result<std::shared_ptr<ShmSegment>> ShmSegment::create(int ranks) {
  SLUICE_CHECK(ranks > 0 && ranks <= kMaxRanks, "a world of {} ranks", ranks);
  const int fd = ::memfd_create("sluice-ranks", MFD_CLOEXEC);
  if (fd < 0) return system_error("memfd_create of the memory that ranks share");
  // Through write(), so that what maps the file finds a whole head or none.
  const std::unique_ptr<Head> head(new Head{});
  head->magic = kMagic;
  head->layout = sizeof(Head) + sizeof(SignOfLife) + sizeof(Pulse);
  head->ranks = ranks;
  head->next_free = to_pages(Head::bytes(ranks)) + kFirstGroupBytes;
  if (::ftruncate(fd, kFileBytes) != 0 || ::pwrite(fd, head.get(), sizeof(Head), 0) != sizeof(Head)) {
    auto error = system_error("sizing the memory that ranks share");
    ::close(fd);
    return error;
  }
  return map_head(fd);
}

Result<std::shared_ptr<ShmSegment>> ShmSegment::open(int fd) {
  struct {
    uint64_t magic;
    uint64_t layout;
  } found{};
  if (::pread(fd, &found, sizeof(found), 0) != sizeof(found) || found.magic != kMagic ||
      found.layout != sizeof(Head) + sizeof(SignOfLife) + sizeof(Pulse)) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("descriptor {} is not the shared memory of ranks of this program", fd)};
  }
  return map_head(fd);
}

Result<std::shared_ptr<ShmSegment>> ShmSegment::map_head(int fd) {
  int32_t ranks = 0;
  if (::pread(fd, &ranks, sizeof(ranks), offsetof(Head, ranks)) != sizeof(ranks)) return system_error("shared memory");
  const size_t bytes = to_pages(Head::bytes(ranks));
  void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) return system_error("mapping the memory that ranks share");
  return std::shared_ptr<ShmSegment>(new ShmSegment(fd, static_cast<Head*>(at), bytes));
}

ShmSegment::~ShmSegment() {
  ::munmap(head_, bytes_);
  ::close(fd_);
}

int ShmSegment::ranks() const { return head_->ranks; }

void ShmSegment::fail(ErrorCode code, std::string_view reason) {
  uint32_t none = 0;
  if (head_->failed.compare_exchange_strong(none, Head::kWriting)) {
    head_->code = static_cast<uint32_t>(code);
    head_->reason_bytes = static_cast<uint32_t>(std::min(reason.size(), Head::kReasonBytes));
    std::memcpy(head_->reason.data(), reason.data(), head_->reason_bytes);
    head_->failed.store(Head::kFailed);
  }
  // All of them: a group may be in the making.
  for (ShmMeeting& meeting : head_->meetings) {
    meeting.round.fetch_or(1);
    if (meeting.sleepers.load() > 0) futex_wake(meeting.round);
  }
}

std::optional<Error> ShmSegment::failure() const {
  uint32_t state = head_->failed.load();
  if (state == 0) return std::nullopt;
  // Whoever writes the reason may have died over it.
  for (int i = 0; i < 1000 && state == Head::kWriting; ++i) {
    std::this_thread::yield();
    state = head_->failed.load();
  }
  if (state == Head::kWriting) return Error{ErrorCode::kInternal, "the ranks' world failed; who did it died"};
  return Error{static_cast<ErrorCode>(head_->code), std::string(head_->reason.data(), head_->reason_bytes)};
}

std::span<const SignOfLife> ShmSegment::signs() const { return {head_->signs(), static_cast<size_t>(head_->ranks)}; }

SignOfLife& ShmSegment::sign(int rank) const { return head_->signs()[rank]; }

Pulse& ShmSegment::pulse(int rank) const { return head_->pulses()[rank]; }

bool ShmSegment::join(int rank, TimePoint now) const {
  if (head_->joined()[rank].exchange(1) != 0) return false;
  sign(rank).seen(now);
  return true;
}

Result<ShmRegion> ShmSegment::allocate(size_t bytes) const {
  bytes = to_pages(std::max<size_t>(bytes, 1));
  if (bytes > kFileBytes / 2 || head_->next_free.load() > kFileBytes / 2) {
    return Error{ErrorCode::kExhausted, fmt::format("no {} bytes are left in the memory that ranks share", bytes)};
  }
  return map(head_->next_free.fetch_add(bytes), bytes);
}

Result<ShmRegion> ShmSegment::map(uint64_t offset, size_t bytes) const {
  if (offset % kPage != 0 || bytes > kFileBytes || offset > kFileBytes - bytes) {
    return Error{ErrorCode::kProtocol, fmt::format("{} bytes at {} of the memory that ranks share", bytes, offset)};
  }
  void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, static_cast<off_t>(offset));
  if (at == MAP_FAILED) return system_error("mapping memory that ranks share");
  return ShmRegion(at, offset, bytes);
}

void ShmSegment::discard(const ShmRegion& region) const {
  // Without success the pages stay until the segment ends, which is no failure.
  (void)::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(region.offset()),
                    static_cast<off_t>(region.bytes()));
}

}  // namespace sluice::parallel
