// What the conformance suites of the kernels share: a device on one instruction set, stored values, bounds.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"
#include "kernels/ref/ref.h"
#include "testing/seed.h"

namespace sluice::kernels {

// What one rounding moves a value by at most, relative to it.
constexpr double kF32Unit = 0x1p-24;
constexpr double kBf16Unit = 0x1p-8;
inline double unit_of(DType dtype) { return dtype == DType::kBf16 ? kBf16Unit : kF32Unit; }

inline constexpr DType kDtypes[] = {DType::kF32, DType::kBf16};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Case {
  std::string device;
  std::string simd;
  friend std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.device << "_" << c.simd; }
};

// A backend on one instruction set, and memory on it.
class Device {
 public:
  Device(const Case& c, int threads) {
    ::setenv("SLUICE_SIMD", c.simd.c_str(), 1);
    backend_ = std::move(make_backend(c.device, threads)).value();
    ::unsetenv("SLUICE_SIMD");
    stream_ = backend_->make_stream();
  }
  ~Device() {
    for (const auto& [memory, bytes] : owned_) backend_->release(memory, bytes);
  }

  const Backend* operator->() const { return backend_.get(); }
  Context context() const { return {backend_.get(), stream_.get()}; }

  template <class T>
  T* put(const std::vector<T>& values) {
    const size_t bytes = values.size() * sizeof(T);
    void* memory = backend_->allocate(bytes).value();
    owned_.emplace_back(memory, bytes);
    backend_->copy_to_device(context(), memory, values.data(), bytes);
    return static_cast<T*>(memory);
  }
  template <class T>
  std::vector<T> get(const T* memory, size_t count) {
    std::vector<T> values(count);
    backend_->copy_to_host(context(), values.data(), memory, count * sizeof(T));
    backend_->synchronize(context());
    return values;
  }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
  std::vector<std::pair<void*, size_t>> owned_;
};

// Values of one of the types that kernels store, as raw bytes and as numbers.
struct Stored {
  DType dtype = DType::kF32;
  std::vector<char> bytes;

  Stored(DType type, const std::vector<float>& values) : dtype(type), bytes(values.size() * tensor::block_bytes(type)) {
    for (size_t i = 0; i < values.size(); ++i) {
      if (dtype == DType::kBf16) {
        reinterpret_cast<uint16_t*>(bytes.data())[i] = tensor::float_to_bf16(values[i]);
      } else {
        reinterpret_cast<float*>(bytes.data())[i] = values[i];
      }
    }
  }
  size_t size() const { return bytes.size() / tensor::block_bytes(dtype); }
  double operator[](int64_t i) const {
    if (dtype == DType::kBf16) return tensor::bf16_to_float(reinterpret_cast<const uint16_t*>(bytes.data())[i]);
    return reinterpret_cast<const float*>(bytes.data())[i];
  }
};

// Rows of a KV cache, and the values that can be read of them.
struct CachedRows {
  KvRow row;
  std::vector<char> bytes;
  std::vector<float> values;
};
inline CachedRows cache_of(const KvRow& row, const std::vector<float>& drawn) {
  CachedRows cache{.row = row, .values = std::vector<float>(drawn.size())};
  const auto slots = std::ssize(drawn) / row.width;
  cache.bytes.resize(static_cast<size_t>(slots * row.bytes()));
  std::vector<int32_t> all(static_cast<size_t>(slots));
  std::iota(all.begin(), all.end(), 0);
  ref::store_kv({.k = drawn.data(),
                 .slots = all.data(),
                 .k_cache = cache.bytes.data(),
                 .row = row,
                 .n = slots,
                 .stride = row.width});
  for (int64_t i = 0; i < std::ssize(drawn); ++i) {
    const char* const stored = cache.bytes.data() + i / row.width * row.bytes();
    const int64_t at = i % row.width;
    float& value = cache.values[static_cast<size_t>(i)];
    if (row.dtype == DType::kF8E4M3) {
      std::memcpy(&value, stored + row.width + at / row.group * 4, 4);
      value *= tensor::f8_e4m3_to_float(static_cast<uint8_t>(stored[at]));
    } else if (row.dtype == DType::kBf16) {
      value = tensor::bf16_to_float(reinterpret_cast<const uint16_t*>(stored)[at]);
    } else {
      value = reinterpret_cast<const float*>(stored)[at];
    }
  }
  return cache;
}
inline constexpr DType kCacheTypes[] = {DType::kF32, DType::kBf16, DType::kF8E4M3};

// Fails with the element that is furthest beyond its bound.
inline void expect_within(const std::function<double(int64_t)>& got, const std::function<double(int64_t)>& want,
                          int64_t count, const std::function<double(int64_t)>& bound) {
  int64_t worst = -1;
  double excess = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double off = std::abs(got(i) - want(i));
    if (const double by = off / std::max(bound(i), 1e-45); !(by <= 1) && !(by <= excess)) {
      worst = i;
      excess = by;
    }
  }
  EXPECT_EQ(worst, -1) << "element " << worst << " of " << count << ": got " << got(worst) << ", want " << want(worst)
                       << ", allowed difference " << bound(worst);
}

inline std::vector<float> draw(Rng& rng, int64_t count, double size = 1) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>((rng.uniform() + rng.uniform() + rng.uniform() - 1.5) * size);
  return values;
}

inline double norm(const Stored& values, int64_t first, int64_t count) {
  double squares = 0;
  for (int64_t i = first; i < first + count; ++i) squares += values[i] * values[i];
  return std::sqrt(squares);
}

class KernelConformance : public ::testing::TestWithParam<Case> {
 protected:
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(rng_.below(static_cast<uint64_t>(high - low + 1)));
  }

  const uint64_t seed_ = testing::test_seed();
  const ::testing::ScopedTrace trace_{__FILE__, __LINE__, "SLUICE_TEST_SEED=" + std::to_string(seed_)};
  Rng rng_{seed_};
  Device device_{GetParam(), /*threads=*/3};
};

// Every backend on every instruction set that this machine runs.
inline std::vector<Case> cases() {
  std::vector<Case> all;
  for (const BackendRow& row : backends()) {
    for (const cpu::Simd* simd : cpu::runnable_simds()) all.push_back({std::string(row.name), simd->name});
  }
  return all;
}

inline std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return info.param.device + "_" + info.param.simd;
}

// A weight of random blocks whose half-precision scales are small, as in a model.
inline std::vector<uint8_t> draw_blocks(Rng& rng, DType stored, size_t bytes) {
  std::vector<uint8_t> blocks(bytes);
  for (auto& byte : blocks) byte = static_cast<uint8_t>(rng.below(256));
  const size_t block = tensor::block_bytes(stored);
  std::vector<size_t> upper_bytes{1};  // of the half-precision numbers
  if (stored == DType::kQ4_1 || stored == DType::kQ4_K) upper_bytes = {1, 3};
  if (stored == DType::kQ6_K) upper_bytes = {209};
  for (size_t at = 0; at < bytes; at += block) {
    for (const size_t upper : upper_bytes) blocks[at + upper] = static_cast<uint8_t>(0x20 + rng.below(8));
  }
  return blocks;
}

}  // namespace sluice::kernels
