// The ranks of an instance read a checkpoint once, each its part, however it is stored: what is another's is memory
// that this rank may not touch.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <vector>

#include "models/layers/weights.h"
#include "tensor/dtype.h"

namespace sluice::models {
namespace {

using tensor::DType;

constexpr int64_t kRanks = 4, kRows = 16, kExperts = 2;  // of a rank
constexpr int64_t kScaleBlock = 128;

struct Stored {
  DType dtype;
  int64_t width;  // a row, and a quarter of one, are whole pages
};
void PrintTo(const Stored& stored, std::ostream* out) { *out << tensor::to_string(stored.dtype); }

// Zeros that cannot be read until they are opened.
class GuardedSource final : public tensor::TensorSource {
 public:
  explicit GuardedSource(const Stored& stored) : stored_(stored) {}
  ~GuardedSource() override {
    for (auto& [name, tensor] : tensors_) munmap(const_cast<std::byte*>(tensor.data.data()), tensor.data.size());
  }
  void add(const std::string& name, int64_t rows) {
    tensor::StoredTensor& tensor = tensors_[name];
    tensor.name = name;
    tensor.dtype = stored_.dtype;
    tensor.shape = {rows, stored_.width};
    const size_t bytes = tensor::bytes_of(stored_.dtype, static_cast<size_t>(rows * stored_.width));
    void* const at = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(at, MAP_FAILED);
    tensor.data = {static_cast<const std::byte*>(at), bytes};
    whole += bytes;
    if (stored_.dtype != DType::kF8E4M3) return;
    const int64_t per_row = stored_.width / kScaleBlock;
    scales_.resize(static_cast<size_t>(per_row * (kRanks * kRows)));  // more than there are
    tensor.scales = {
        .rows = kScaleBlock, .columns = kScaleBlock, .per_row = per_row, .values = std::as_bytes(std::span(scales_))};
  }
  // Of these rows, columns [first, first + count).
  void open(const std::string& name, int64_t first_row, int64_t rows, int64_t first, int64_t count) {
    const tensor::StoredTensor& tensor = tensors_.at(name);
    const auto bytes = [&](int64_t values) { return tensor::bytes_of(stored_.dtype, static_cast<size_t>(values)); };
    for (int64_t row = first_row; row < first_row + rows; ++row) {
      auto* const at = const_cast<std::byte*>(tensor.row(row)) + bytes(first);
      ASSERT_EQ(mprotect(at, bytes(count), PROT_READ), 0) << strerror(errno);
      opened += bytes(count);
    }
  }

  Result<tensor::StoredTensor> find(std::string_view name) const override {
    const auto at = tensors_.find(name);
    if (at == tensors_.end()) return Error{ErrorCode::kNotFound, fmt::format("no tensor {}", name)};
    return at->second;
  }
  bool has(std::string_view name) const override { return tensors_.contains(name); }

  size_t whole = 0, opened = 0;  // bytes

 private:
  const Stored stored_;
  std::vector<float> scales_;
  std::map<std::string, tensor::StoredTensor, std::less<>> tensors_;
};

class StoredPartsTest : public ::testing::TestWithParam<Stored> {
 protected:
  void SetUp() override {
    if (sysconf(_SC_PAGESIZE) != 4096) GTEST_SKIP() << "pages are not of 4 KiB";
  }
  int64_t width() const { return GetParam().width; }

  void add_all(GuardedSource& source) const {
    source.add("q", kRanks * kRows);
    source.add("o", kRows);
    for (int64_t expert = 0; expert < kRanks * kExperts; ++expert) source.add(fmt::format("expert{}", expert), kRows);
  }
  void open_part(GuardedSource& source, int64_t rank) const {
    source.open("q", rank * kRows, kRows, 0, width());
    source.open("o", 0, kRows, rank * width() / kRanks, width() / kRanks);
    for (int64_t expert = rank * kExperts; expert < (rank + 1) * kExperts; ++expert) {
      source.open(fmt::format("expert{}", expert), 0, kRows, 0, width());
    }
  }
  Result<void> read(const GuardedSource& source, int64_t rank) const {
    WeightStore store(*backend_, kernels::DType::kF32, &source);
    store.linear({part("q", kRanks * kRows, {rank * kRows, kRows})}, width());
    store.linear({{"o", kRows}}, width() / kRanks, {.first = rank * width() / kRanks, .of = width()});
    store.experts(
        {rank * kExperts, kExperts},
        [](int64_t expert) {
          return std::vector<Part>{{fmt::format("expert{}", expert), kRows}};
        },
        width());
    return store.materialise(source, {backend_.get(), nullptr}, {}, {});
  }

  std::unique_ptr<kernels::Backend> backend_ = kernels::make_backend("cpu", 1).value();
};

TEST_P(StoredPartsTest, AllRanksTogetherReadEachByteOnce) {
  size_t opened = 0, whole = 0;
  for (int64_t rank = 0; rank < kRanks; ++rank) {
    GuardedSource source(GetParam());
    add_all(source);
    open_part(source, rank);
    const auto done = read(source, rank);
    ASSERT_TRUE(done.ok()) << done.error().message;
    EXPECT_EQ(source.opened * kRanks, source.whole);
    opened += source.opened;
    whole = source.whole;
  }
  EXPECT_EQ(opened, whole);
}

TEST_P(StoredPartsTest, ARankThatReadAnothersPartWouldHaveEnded) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  GuardedSource source(GetParam());
  add_all(source);
  open_part(source, 1);
  EXPECT_DEATH((void)read(source, 2), "");
}

INSTANTIATE_TEST_SUITE_P(Formats, StoredPartsTest,
                         testing::Values(Stored{DType::kF32, 4096}, Stored{DType::kBf16, 8192},
                                         Stored{DType::kF8E4M3, 16384}, Stored{DType::kQ8_0, 1 << 18},
                                         Stored{DType::kQ4_1, 1 << 17}),
                         [](const auto& info) { return std::string(tensor::to_string(info.param.dtype)); });

}  // namespace
}  // namespace sluice::models
