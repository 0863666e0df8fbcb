// What reads and writes of connections share.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <span>

namespace sluice::net {

// How a wait or a transfer ended.
enum class Io { kOk, kWouldBlock, kEnd, kReset, kTimeout, kCancelled };

// Takes the first `n` bytes off. What is left does not begin with an empty part.
inline void skip(std::span<iovec>& parts, size_t n) {
  while (!parts.empty() && n >= parts.front().iov_len) {
    n -= parts.front().iov_len;
    parts = parts.subspan(1);
  }
  if (parts.empty()) return;
  auto& part = parts.front();
  part.iov_base = static_cast<char*>(part.iov_base) + n;
  part.iov_len -= n;
}

}  // namespace sluice::net
