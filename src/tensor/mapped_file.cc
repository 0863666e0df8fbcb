#include "tensor/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace sluice::tensor {
namespace {

// What a mapping has beyond the file reads as zeros: with AddressSanitizer, and only then, a read of it is found out.
// The address may be used again, so that it is allowed once more before the mapping goes.
size_t beyond_the_end(size_t size) {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return (page - size % page) % page;
}

}  // namespace

Result<std::shared_ptr<const MappedFile>> MappedFile::open(const std::string& path) {
  const auto failed = [&](const char* what) {
    return Error{errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kInvalidArgument,
                 fmt::format("{}: cannot {}: {}", path, what, std::strerror(errno))};
  };
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return failed("open");
  struct stat status {};
  if (::fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(fd);
    return Error{ErrorCode::kInvalidArgument, fmt::format("{}: not a regular file", path)};
  }
  const auto size = static_cast<size_t>(status.st_size);
  if (size == 0) {
    ::close(fd);
    return Error{ErrorCode::kProtocol, fmt::format("{}: the file is empty", path)};
  }
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  ::close(fd);
  if (data == MAP_FAILED) return failed("map");
  ASAN_POISON_MEMORY_REGION(static_cast<const std::byte*>(data) + size, beyond_the_end(size));
  return std::shared_ptr<const MappedFile>(new MappedFile(path, static_cast<const std::byte*>(data), size));
}

MappedFile::~MappedFile() {
  ASAN_UNPOISON_MEMORY_REGION(data_ + size_, beyond_the_end(size_));
  ::munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace sluice::tensor
