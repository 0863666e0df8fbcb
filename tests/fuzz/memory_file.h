// A file in memory, for readers that take a path.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <string_view>

#include "fuzz.h"

namespace sluice::fuzz {

class MemoryFile {
 public:
  MemoryFile() { FUZZ_CHECK(fd_ >= 0, "there is memory for a file"); }
  ~MemoryFile() { ::close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  // Nobody reads what was in it before.
  void fill(std::string_view bytes) {
    const auto size = static_cast<off_t>(bytes.size());
    FUZZ_CHECK(::ftruncate(fd_, size) == 0, "the file is resized");
    FUZZ_CHECK(::pwrite(fd_, bytes.data(), bytes.size(), 0) == size, "the file is written");
  }
  const std::string& path() const { return path_; }

 private:
  const int fd_ = ::memfd_create("fuzz", MFD_CLOEXEC);
  const std::string path_ = "/proc/self/fd/" + std::to_string(fd_);
};

}  // namespace sluice::fuzz
