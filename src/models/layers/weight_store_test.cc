// What ranks do with a memory file that they share is in weights_test.cc; here, mostly, the weights of one.
#include "models/layers/weights.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <map>

#include "base/rng.h"

namespace sluice::models {
namespace {

// Tensors in memory; `before_find` sees every look-up.
class MemorySource final : public tensor::TensorSource {
 public:
  void add(const std::string& name, std::vector<int64_t> shape, uint64_t seed) {
    tensor::StoredTensor& tensor = tensors_[name];
    tensor.name = name;
    tensor.shape = std::move(shape);
    Rng rng(seed);
    auto& values = values_[name];
    for (int64_t i = 0; i < tensor.elements(); ++i) values.push_back(static_cast<float>(rng.uniform()));
    tensor.data = std::as_bytes(std::span<const float>(values));
  }
  Result<tensor::StoredTensor> find(std::string_view name) const override {
    if (before_find) before_find(name);
    const auto at = tensors_.find(name);
    if (at == tensors_.end()) return Error{ErrorCode::kNotFound, fmt::format("no tensor {}", name)};
    return at->second;
  }
  bool has(std::string_view name) const override { return tensors_.contains(name); }

  std::function<void(std::string_view)> before_find;

 private:
  std::map<std::string, tensor::StoredTensor, std::less<>> tensors_;
  std::map<std::string, std::vector<float>> values_;
};

class WeightStoreTest : public ::testing::Test {
 protected:
  WeightStoreTest() {
    source_.add("q", {6, 8}, 1);
    source_.add("k", {4, 8}, 2);
    source_.add("norm", {8}, 3);
    source_.add("table", {5, 8}, 4);
  }

  // A small model, declared as every rank declares it.
  struct Model {
    explicit Model(const kernels::Backend& backend) : store(backend, kernels::DType::kF32) {
      table = store.table({"table", 5}, 8);
      qk = store.linear({{"q", 6}, {"k", 4}}, 8);
      norm = store.vector({{"norm", 8}});
      angles = store.constant("angles", {1, 2, 3});
    }
    WeightStore store;
    TableWeight table;
    LinearWeight qk;
    VectorWeight norm, angles;
  };

  Result<void> materialise(Model& model, WeightStore::Shared shared = {}) {
    return model.store.materialise(source_, {backend_.get(), nullptr}, shared, {});
  }
  static std::string bytes_of(const Model& model) {
    return {static_cast<const char*>(model.store.address(model.table)), model.store.bytes()};
  }

  MemorySource source_;
  std::unique_ptr<kernels::Backend> backend_ = kernels::make_backend("cpu", 1).value();
};

class PackingTest : public WeightStoreTest {
 protected:
  ~PackingTest() override { ::close(fd_); }
  const int fd_ = ::memfd_create("weights_test", MFD_CLOEXEC);
};

TEST_F(WeightStoreTest, PutsEverythingWhereItWasDeclared) {
  Model model(*backend_);
  ASSERT_TRUE(materialise(model).ok());
  float want[8];
  source_.find("norm")->read_rows(0, 8, want);
  EXPECT_EQ(std::memcmp(model.store.address(model.norm), want, sizeof(want)), 0);
  EXPECT_EQ(model.store.address(model.angles)[2], 3);
  for (const size_t offset : {model.table.offset, model.qk.offset, model.norm.offset}) EXPECT_EQ(offset % 64, 0u);
}

TEST_F(WeightStoreTest, StackedPartsMultiplyAsOneMatrix) {
  Model model(*backend_);
  ASSERT_TRUE(materialise(model).ok());
  std::vector<float> x(8, 0.0f), y(10), row(8);
  x[3] = 1;  // picks column 3
  backend_->linear(
      {}, {.shape = &model.qk.shape, .weight = model.store.address(model.qk), .in = x.data(), .out = y.data(), .n = 1});
  source_.find("q")->read_rows(5, 1, row.data());
  EXPECT_EQ(y[5], row[3]);
  source_.find("k")->read_rows(0, 1, row.data());
  EXPECT_EQ(y[6], row[3]);
}

TEST_F(WeightStoreTest, AMissingOrMisshapenTensorIsNamed) {
  WeightStore missing(*backend_, kernels::DType::kF32);
  missing.linear({{"q", 6}, {"v", 4}}, 8);
  const auto not_there = missing.materialise(source_, {backend_.get(), nullptr}, {}, {});
  ASSERT_FALSE(not_there.ok());
  EXPECT_NE(not_there.error().message.find("no tensor v"), std::string::npos);

  WeightStore misshapen(*backend_, kernels::DType::kF32);
  misshapen.vector({{"norm", 9}});
  const auto wrong = misshapen.materialise(source_, {backend_.get(), nullptr}, {}, {});
  ASSERT_FALSE(wrong.ok());
  EXPECT_NE(wrong.error().message.find("norm"), std::string::npos);
}

TEST_F(PackingTest, AFailureToPackLeavesTheMemoryForTheNextRank) {
  Model right(*backend_);
  WeightStore wrong(*backend_, kernels::DType::kF32);
  wrong.linear({{"nothing", 6}}, 8);
  EXPECT_FALSE(wrong.materialise(source_, {backend_.get(), nullptr}, {.fd = fd_, .key = 9}, {}).ok());
  EXPECT_TRUE(materialise(right, {.fd = fd_, .key = 9}).ok());
}

TEST_F(PackingTest, ARankKilledInTheMiddleOfPackingIsReplaced) {
  Model alone(*backend_), next(*backend_);
  ASSERT_TRUE(materialise(alone).ok());
  int middle[2];
  ASSERT_EQ(::pipe(middle), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    // Tells that it is in the middle, with the lock held and the table written, and stays there.
    source_.before_find = [&](std::string_view name) {
      if (name != "k") return;
      if (::write(middle[1], "x", 1) != 1) ::_exit(2);
      for (;;) ::pause();
    };
    Model model(*backend_);
    (void)materialise(model, {.fd = fd_, .key = 9});
    ::_exit(1);
  }
  ::close(middle[1]);
  char byte = 0;
  ASSERT_EQ(::read(middle[0], &byte, 1), 1) << "the child ended before it was in the middle of packing";
  ::close(middle[0]);

  // The next rank waits while the first one lives, and packs once it is dead.
  bool waited = false;
  const auto kill_once = [&](double, std::string_view what) {
    if (what.find("waiting") == std::string_view::npos || waited) return;
    waited = true;
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
  };
  ASSERT_TRUE(next.store.materialise(source_, {backend_.get(), nullptr}, {.fd = fd_, .key = 9}, kill_once).ok());
  EXPECT_TRUE(waited);
  EXPECT_EQ(bytes_of(next), bytes_of(alone));
}

}  // namespace
}  // namespace sluice::models
