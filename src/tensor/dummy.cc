#include "tensor/dummy.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <mutex>

#include "base/rng.h"

namespace sluice::tensor {
namespace {

constexpr size_t kPatternBytes = 1 << 20;
constexpr int64_t kBlock = 128;
// Of a matrix: a product of thousands of values keeps their size with 1 / 64.
constexpr double kSpread = 1.0 / 64;

// One megabyte of values, mapped again and again, as far as was ever asked for.
class Pattern {
 public:
  explicit Pattern(const std::vector<char>& values) : fd_(::memfd_create("sluice-dummy", MFD_CLOEXEC)) {
    if (fd_ >= 0 && ::write(fd_, values.data(), values.size()) != static_cast<ssize_t>(values.size())) {
      ::close(fd_);
      fd_ = -1;
    }
  }
  ~Pattern() {
    for (const auto& [memory, bytes] : mapped_) ::munmap(memory, bytes);
    if (fd_ >= 0) ::close(fd_);
  }

  // What was given before stays where it is.
  Result<std::span<const std::byte>> of(size_t bytes) {
    const std::lock_guard lock(mu_);
    if (mapped_.empty() || mapped_.back().second < bytes) {
      const size_t size = (bytes + kPatternBytes - 1) / kPatternBytes * kPatternBytes;
      void* memory = ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      for (size_t at = 0; memory != MAP_FAILED && at < size; at += kPatternBytes) {
        void* part = static_cast<char*>(memory) + at;
        if (::mmap(part, kPatternBytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd_, 0) != MAP_FAILED) continue;
        ::munmap(memory, size);
        memory = MAP_FAILED;
      }
      if (memory == MAP_FAILED) {
        return Error{ErrorCode::kExhausted,
                     fmt::format("no room for dummy weights of {} bytes: {}", bytes, std::strerror(errno))};
      }
      mapped_.emplace_back(memory, size);
    }
    return std::span(static_cast<const std::byte*>(mapped_.back().first), bytes);
  }

 private:
  int fd_;
  std::mutex mu_;
  std::vector<std::pair<void*, size_t>> mapped_;
};

std::vector<char> bf16_values() {
  Rng rng(20231);
  std::vector<char> bytes(kPatternBytes);
  for (size_t i = 0; i + 2 <= bytes.size(); i += 2) {
    // Twelve uniform values, as many as make a bell.
    double sum = -6;
    for (int k = 0; k < 12; ++k) sum += rng.uniform();
    const uint16_t bits = float_to_bf16(static_cast<float>(sum * kSpread));
    std::memcpy(bytes.data() + i, &bits, 2);
  }
  return bytes;
}

// Any sign and mantissa, exponents from 1/16 to 2: no NaN.
std::vector<char> e4m3_values() {
  Rng rng(20232);
  std::vector<char> bytes(kPatternBytes);
  for (char& value : bytes) {
    const uint64_t bits = rng.next();
    value = static_cast<char>((bits & 0x87) | ((3 + (bits >> 8) % 5) << 3));
  }
  return bytes;
}

template <class T>
std::vector<char> repeated(T value) {
  std::vector<char> bytes(kPatternBytes);
  for (size_t i = 0; i + sizeof(T) <= bytes.size(); i += sizeof(T)) std::memcpy(bytes.data() + i, &value, sizeof(T));
  return bytes;
}

class DummySource final : public TensorSource {
 public:
  explicit DummySource(std::function<bool(std::string_view)> is_fp8) : is_fp8_(std::move(is_fp8)) {}

  Result<StoredTensor> find(std::string_view name) const override {
    return Error{ErrorCode::kInternal, fmt::format("dummy tensor {} has no shape of its own", name)};
  }
  bool has(std::string_view) const override { return true; }
  Result<StoredTensor> find_shaped(std::string_view name, std::vector<int64_t> shape) const override {
    StoredTensor tensor{.name = std::string(name), .dtype = DType::kF32, .shape = std::move(shape)};
    const auto elements = static_cast<size_t>(tensor.elements());
    if (tensor.shape.size() < 2) {
      SLUICE_TRY(tensor.data, (name.ends_with("bias") ? zeros_ : ones_).of(elements * 4));
      return tensor;
    }
    if (!is_fp8_(name)) {
      tensor.dtype = DType::kBf16;
      SLUICE_TRY(tensor.data, bf16_.of(elements * 2));
      return tensor;
    }
    tensor.dtype = DType::kF8E4M3;
    SLUICE_TRY(tensor.data, e4m3_.of(elements));
    const int64_t per_row = (tensor.shape[1] + kBlock - 1) / kBlock, rows = (tensor.shape[0] + kBlock - 1) / kBlock;
    tensor.scales = BlockScales{.rows = kBlock, .columns = kBlock, .per_row = per_row};
    SLUICE_TRY(tensor.scales->values, scales_.of(static_cast<size_t>(per_row * rows) * 4));
    return tensor;
  }

 private:
  const std::function<bool(std::string_view)> is_fp8_;
  mutable Pattern ones_{repeated(1.0f)};
  mutable Pattern zeros_{repeated(0.0f)};
  mutable Pattern scales_{repeated(static_cast<float>(kSpread))};
  mutable Pattern bf16_{bf16_values()};
  mutable Pattern e4m3_{e4m3_values()};
};

}  // namespace

std::unique_ptr<TensorSource> dummy_source(std::function<bool(std::string_view name)> is_fp8) {
  return std::make_unique<DummySource>(std::move(is_fp8));
}

}  // namespace sluice::tensor
