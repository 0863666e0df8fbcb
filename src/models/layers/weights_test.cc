// Packed weights in one memory file for all ranks of a host.
#include "models/layers/weights.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <mutex>
#include <numeric>

namespace sluice::models {
namespace {

constexpr int64_t kRows = 64;
constexpr int64_t kWidth = 32;

// Tensors "a" and "b" of [kRows, kWidth], filled with `first`, `first` + 1, ...
class Source final : public tensor::TensorSource {
 public:
  explicit Source(float first) : values_(kRows * kWidth) { std::iota(values_.begin(), values_.end(), first); }
  Result<tensor::StoredTensor> find(std::string_view name) const override {
    ++reads;
    return tensor::StoredTensor{
        std::string(name), tensor::DType::kF32, {kRows, kWidth}, std::as_bytes(std::span(values_))};
  }
  bool has(std::string_view) const override { return true; }

  mutable std::atomic<int> reads{0};

 private:
  std::vector<float> values_;
};

class SharedWeightsTest : public ::testing::Test {
 protected:
  SharedWeightsTest() : fd_(::memfd_create("weights", MFD_CLOEXEC)) {}
  ~SharedWeightsTest() override { ::close(fd_); }

  struct Rank {
    explicit Rank(const kernels::Backend& backend) : store(backend, kernels::DType::kF32) {
      a = store.table({"a", kRows}, kWidth);
      b = store.table({"b", kRows}, kWidth);
    }
    WeightStore store;
    TableWeight a, b;
    float value(const TableWeight& weight, size_t i) const {
      return static_cast<const float*>(store.address(weight))[i];
    }
  };
  using Progress = std::function<void(double, std::string_view)>;
  Result<void> materialise(Rank& rank, const Source& source, const Progress& progress = {}, uint64_t key = 7) {
    return rank.store.materialise(source, {}, {.fd = fd_, .key = key}, progress);
  }

  const int fd_;
  const std::unique_ptr<kernels::Backend> backend_ = kernels::make_backend("cpu", 1).value();
};

TEST_F(SharedWeightsTest, ASecondRankMapsWhatTheFirstPackedWhileTheFirstLives) {
  const Source source(1);
  Rank first(*backend_), second(*backend_);
  ASSERT_TRUE(materialise(first, source).ok());
  const int reads = source.reads;
  ASSERT_TRUE(materialise(second, source).ok());
  EXPECT_EQ(source.reads, reads) << "packed again";
  EXPECT_EQ(second.value(second.b, 5), 6);
  EXPECT_EQ(first.value(first.b, 5), 6);
}

TEST_F(SharedWeightsTest, ARankThatComesWhileAnotherPacksWaitsForIt) {
  const Source source(1);
  Rank first(*backend_), second(*backend_);
  std::promise<void> packing, waited;
  std::once_flag once, waited_once;
  auto packer = std::async(std::launch::async, [&] {
    return materialise(first, source, [&](double, std::string_view) {
      std::call_once(once, [&] {
        packing.set_value();
        waited.get_future().wait();
      });
    });
  });
  packing.get_future().wait();
  std::string said;
  const auto done = materialise(second, source, [&](double, std::string_view what) {
    std::call_once(waited_once, [&] {
      said = what;
      waited.set_value();
    });
  });
  ASSERT_TRUE(packer.get().ok());
  ASSERT_TRUE(done.ok());
  EXPECT_EQ(said, "waiting for another rank to pack the weights");
  EXPECT_EQ(source.reads, 2) << "one of them packed";
  EXPECT_EQ(second.value(second.a, 0), 1);
}

TEST_F(SharedWeightsTest, WhatARankLeftThatWasKilledWhilePackingIsPackedAnew) {
  const Source source(1);
  const Source other(1000);  // so that what was left half-way can be told from what is right
  EXPECT_EXIT(
      {
        Rank doomed(*backend_);
        (void)materialise(doomed, other, [](double, std::string_view) { ::raise(SIGKILL); });
      },
      ::testing::KilledBySignal(SIGKILL), "");
  Rank next(*backend_);
  ASSERT_TRUE(materialise(next, source).ok());
  EXPECT_EQ(source.reads, 2);
  EXPECT_EQ(next.value(next.a, 0), 1);
  EXPECT_EQ(next.value(next.b, 5), 6);
}

TEST_F(SharedWeightsTest, TheWeightsOfAnotherModelAreRefused) {
  const Source source(1);
  Rank first(*backend_), second(*backend_);
  ASSERT_TRUE(materialise(first, source).ok());
  EXPECT_EQ(materialise(second, source, {}, /*key=*/8).error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace sluice::models
