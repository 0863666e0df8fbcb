// A rank of several reads its part of a checkpoint and nothing else: the rest is memory that nobody may touch.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>

#include "models/layers/weights.h"

namespace sluice::models {
namespace {

// Tensors [rows, 4096] of float32: a row is four pages, so that a quarter of the columns is one.
class ProtectedSource final : public tensor::TensorSource {
 public:
  static constexpr int64_t kColumns = 4096;
  static constexpr int64_t kPageValues = 1024;

  ~ProtectedSource() override {
    for (auto& [name, tensor] : tensors_) munmap(const_cast<std::byte*>(tensor.data.data()), tensor.data.size());
  }
  void add(const std::string& name, std::vector<int64_t> shape) {
    tensor::StoredTensor& tensor = tensors_[name];
    tensor.name = name;
    tensor.shape = std::move(shape);
    const auto bytes = static_cast<size_t>(tensor.elements()) * sizeof(float);
    void* const at = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(at, MAP_FAILED);
    tensor.data = {static_cast<const std::byte*>(at), bytes};
  }
  // Values [first, first + count) may be read.
  void open(const std::string& name, int64_t first, int64_t count) {
    auto* const at = const_cast<std::byte*>(tensors_.at(name).data.data()) + first * 4;
    ASSERT_EQ(mprotect(at, static_cast<size_t>(count) * 4, PROT_READ), 0) << strerror(errno);
    opened += count;
  }
  void open_rows(const std::string& name, int64_t first, int64_t count) {
    open(name, first * kColumns, count * kColumns);
  }

  Result<tensor::StoredTensor> find(std::string_view name) const override {
    const auto at = tensors_.find(name);
    if (at == tensors_.end()) return Error{ErrorCode::kNotFound, fmt::format("no tensor {}", name)};
    return at->second;
  }
  bool has(std::string_view name) const override { return tensors_.contains(name); }

  int64_t opened = 0;

 private:
  std::map<std::string, tensor::StoredTensor, std::less<>> tensors_;
};

class PartsOfWeightsTest : public ::testing::Test {
 protected:
  static constexpr int64_t kWidth = ProtectedSource::kColumns;

  // The kinds of parts that a model divided among four ranks declares; this is rank 1.
  void declare(WeightStore& store) {
    store.linear({part("q", 16, {4, 4}), part("k", 8, {2, 2})}, kWidth);
    store.linear({{"o", 8}}, kWidth / 4, {.first = kWidth / 4, .of = kWidth});
    store.heads({.name = "kv", .of_heads = 4, .first_head = 1, .heads = 1, .head_rows = 4, .first = 0, .rows = 4},
                kWidth);
    store.experts(
        {2, 2},
        [](int64_t expert) {
          return std::vector<Part>{{fmt::format("expert{}", expert), 4}};
        },
        kWidth);
    store.table(part("embedding", 16, {4, 4}), kWidth);
    store.vector(
        {part("bias", 4 * ProtectedSource::kPageValues, {ProtectedSource::kPageValues, ProtectedSource::kPageValues})});
  }
  void add_all() {
    source_.add("q", {16, kWidth});
    source_.add("k", {8, kWidth});
    source_.add("o", {8, kWidth});
    source_.add("kv", {16, kWidth});
    for (int64_t expert = 0; expert < 8; ++expert) source_.add(fmt::format("expert{}", expert), {4, kWidth});
    source_.add("embedding", {16, kWidth});
    source_.add("bias", {4 * ProtectedSource::kPageValues});
  }
  void open_own_parts() {
    source_.open_rows("q", 4, 4);
    source_.open_rows("k", 2, 2);
    for (int64_t row = 0; row < 8; ++row) source_.open("o", row * kWidth + kWidth / 4, kWidth / 4);
    source_.open_rows("kv", 4, 4);
    for (const char* expert : {"expert2", "expert3"}) source_.open_rows(expert, 0, 4);
    source_.open_rows("embedding", 4, 4);
    source_.open("bias", ProtectedSource::kPageValues, ProtectedSource::kPageValues);
  }
  Result<void> materialise() {
    WeightStore store(*backend_, kernels::DType::kF32);
    declare(store);
    return store.materialise(source_, {backend_.get(), nullptr}, {}, {});
  }

  ProtectedSource source_;
  std::unique_ptr<kernels::Backend> backend_ = kernels::make_backend("cpu", 1).value();
};

TEST_F(PartsOfWeightsTest, NothingButTheRanksPartIsRead) {
  if (sysconf(_SC_PAGESIZE) != 4096) GTEST_SKIP() << "pages are not of 4 KiB";
  add_all();
  open_own_parts();
  // A quarter of everything.
  EXPECT_EQ(source_.opened, (16 + 8 + 8 + 16 + 8 * 4 + 16) * kWidth / 4 + ProtectedSource::kPageValues);
  const auto done = materialise();
  ASSERT_TRUE(done.ok()) << done.error().message;
}

TEST_F(PartsOfWeightsTest, OtherwiseTheProcessWouldHaveEnded) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  add_all();
  EXPECT_DEATH((void)materialise(), "");
}

}  // namespace
}  // namespace sluice::models
