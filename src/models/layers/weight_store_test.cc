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
#include <mutex>
#include <set>
#include <thread>
#include <tuple>

#include "base/rng.h"
#include "parallel/inproc.h"

namespace sluice::models {
namespace {

// Tensors in memory; `before_find` sees every look-up.
class MemorySource final : public tensor::TensorSource {
 public:
  void add(const std::string& name, std::vector<int64_t> shape, uint64_t seed) {
    tensor::StoredTensor& tensor = tensors_[name];
    tensor = {.name = name, .shape = std::move(shape)};
    Rng rng(seed);
    auto& values = values_[name];
    values.clear();
    for (int64_t i = 0; i < tensor.elements(); ++i) values.push_back(static_cast<float>(rng.uniform()));
    tensor.data = std::as_bytes(std::span<const float>(values));
  }
  // What is there already, rounded.
  void store_in_bf16(const std::string& name) {
    auto& halves = halves_[name];
    for (const float value : values_[name]) halves.push_back(tensor::float_to_bf16(value));
    tensors_[name].dtype = tensor::DType::kBf16;
    tensors_[name].data = std::as_bytes(std::span<const uint16_t>(halves));
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
  std::map<std::string, std::vector<uint16_t>> halves_;
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

  Result<void> materialise(Model& model, WeightStore::Loading loading = {}) {
    return model.store.materialise(source_, {backend_.get(), nullptr}, loading, {});
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

TEST_F(WeightStoreTest, WhatIsDeclaredTwiceIsThereOnce) {
  WeightStore store(*backend_, kernels::DType::kF32);
  const LinearWeight first = store.linear({{"q", 6}}, 8), other = store.linear({{"q", 3, 0, 6}}, 8);
  const size_t bytes = store.bytes();
  const LinearWeight again = store.linear({{"q", 6}}, 8);
  EXPECT_EQ(store.bytes(), bytes);
  EXPECT_EQ(store.declared().size(), 2u);
  ASSERT_TRUE(store.materialise(source_, {backend_.get(), nullptr}, {}, {}).ok());
  EXPECT_EQ(store.address(again), store.address(first));
  EXPECT_NE(store.address(other), store.address(first));
}

// A model of several matrices, of which one part of the stacked ones lies otherwise than the other.
std::string packed_in_bf16(const MemorySource& source, const kernels::Backend& backend, int threads) {
  WeightStore store(backend, kernels::DType::kBf16);
  const TableWeight table = store.table({"table", 5}, 8);
  store.linear({{"q", 6}, {"k", 4}}, 8);
  for (int64_t rows = 1; rows <= 6; ++rows) store.linear({{"q", rows, 0, 6}}, 8);
  EXPECT_TRUE(store.materialise(source, {&backend, nullptr}, {.threads = threads}, {}).ok());
  return {static_cast<const char*>(store.address(table)), store.bytes()};
}

TEST_F(WeightStoreTest, ManyThreadsPackTheSame) {
  if (!backend_->multiplies(kernels::DType::kBf16)) GTEST_SKIP() << "no products of bf16 here";
  EXPECT_EQ(packed_in_bf16(source_, *backend_, 4), packed_in_bf16(source_, *backend_, 1));
}

TEST_F(WeightStoreTest, WhatIsStoredInBf16IsPackedAsItIs) {
  if (!backend_->multiplies(kernels::DType::kBf16)) GTEST_SKIP() << "no products of bf16 here";
  const std::string rounded = packed_in_bf16(source_, *backend_, 1);
  source_.store_in_bf16("q");
  EXPECT_EQ(packed_in_bf16(source_, *backend_, 1), rounded) << "one part of two";
  source_.store_in_bf16("k");
  EXPECT_EQ(packed_in_bf16(source_, *backend_, 1), rounded) << "both";
}

TEST_F(WeightStoreTest, OfManyFailuresTheFirstDeclaredIsTold) {
  for (int round = 0; round < 20; ++round) {
    WeightStore store(*backend_, kernels::DType::kF32);
    store.linear({{"q", 6}}, 8);
    for (int i = 0; i < 8; ++i) store.linear({{fmt::format("missing {}", i), 6}}, 8);
    const auto filled = store.materialise(source_, {backend_.get(), nullptr}, {.threads = 4}, {});
    ASSERT_FALSE(filled.ok());
    EXPECT_NE(filled.error().message.find("missing 0"), std::string::npos) << filled.error().message;
  }
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

// Two ranks of an instance, of which each has half of `q` and both have the rest: what both have lies in one place, and
// is read by one of them.
class CommonTest : public WeightStoreTest {
 protected:
  struct Rank {
    Rank(const kernels::Backend& backend, parallel::Communicator& world)
        : groups{.layout = {.tp_rank = world.rank(), .tp_size = 2}, .all = &world},
          store(backend, kernels::DType::kF32, nullptr, &groups) {
      table = store.table({"table", 5}, 8);
      own = store.linear({{"q", 3, 3 * world.rank(), 6}}, 8);
      k = store.linear({{"k", 4}}, 8);
      norm = store.vector({{"norm", 8}});
      room = store.reserve("room", 100);
    }
    parallel::Groups groups;
    WeightStore store;
    TableWeight table;
    LinearWeight own, k;
    VectorWeight norm;
    size_t room = 0;
  };

  CommonTest() {
    for (auto& comm : world_) ranks_.push_back(std::make_unique<Rank>(*backend_, *comm));
  }
  void on_each(const std::function<void(Rank&)>& body) {
    std::vector<std::thread> threads;
    for (auto& rank : ranks_) threads.emplace_back([&] { body(*rank); });
    for (auto& thread : threads) thread.join();
  }
  Result<void> load(Rank& rank) {
    SLUICE_TRY_VOID(rank.store.find_common());
    return rank.store.materialise(source_, {backend_.get(), nullptr}, {}, {});
  }
  // [8, rows] as a product gives them: a column for each unit vector.
  std::vector<float> values(const Rank& rank, const LinearWeight& weight) {
    std::vector<float> out;
    for (size_t i = 0; i < 8; ++i) {
      std::vector<float> x(8), y(static_cast<size_t>(weight.shape.out));
      x[i] = 1;
      backend_->linear(
          {}, {.shape = &weight.shape, .weight = rank.store.address(weight), .in = x.data(), .out = y.data(), .n = 1});
      out.insert(out.end(), y.begin(), y.end());
    }
    return out;
  }
  std::vector<float> stored(const std::string& name, int64_t first, int64_t rows) {
    std::vector<float> read(static_cast<size_t>(rows * 8)), out;
    source_.find(name)->read_rows(first, rows, read.data());
    for (size_t i = 0; i < 8; ++i) {
      for (size_t row = 0; row < static_cast<size_t>(rows); ++row) out.push_back(read[row * 8 + i]);
    }
    return out;
  }
  void expect_all() {
    for (const auto& rank : ranks_) {
      EXPECT_EQ(values(*rank, rank->own), stored("q", 3 * rank->groups.layout.tp_rank, 3));
      EXPECT_EQ(values(*rank, rank->k), stored("k", 0, 4));
      EXPECT_EQ(rank->store.address(rank->norm), ranks_[0]->store.address(ranks_[0]->norm));
      EXPECT_EQ(rank->store.address(rank->table), ranks_[0]->store.address(ranks_[0]->table));
      EXPECT_NE(rank->store.address(rank->own), ranks_[1 - rank->groups.layout.tp_rank]->store.address(rank->own));
    }
  }

  std::vector<std::unique_ptr<parallel::Communicator>> world_ = parallel::make_inproc_group(2);
  std::vector<std::unique_ptr<Rank>> ranks_;
};

TEST_F(CommonTest, WhatBothHaveIsReadOnceAndSeenByBoth) {
  std::mutex mutex;
  std::map<std::string, std::set<std::thread::id>> readers;
  source_.before_find = [&](std::string_view name) {
    const std::lock_guard lock(mutex);
    readers[std::string(name)].insert(std::this_thread::get_id());
  };
  on_each([&](Rank& rank) { ASSERT_TRUE(load(rank).ok()); });
  for (const auto& [name, threads] : readers) EXPECT_EQ(threads.size(), name == "q" ? 2u : 1u) << name;
  expect_all();
  for (const auto& rank : ranks_) {
    const auto bytes = [&](const LinearWeight& weight) { return backend_->packed_bytes(weight.shape); };
    EXPECT_EQ(rank->store.own_bytes(), bytes(rank->own) + 100 + (5 * 8 * 4 + bytes(rank->k) + 8 * 4) / 2);
    EXPECT_GT(rank->store.bytes(), rank->store.own_bytes());
    std::memset(rank->store.writable(rank->room), 7, 100);
  }
  expect_all();
  EXPECT_DEATH(ranks_[0]->store.writable(ranks_[0]->norm.offset), "are shared");
}

TEST_F(CommonTest, OtherValuesAreSeenByBothOnceBothHaveReadThem) {
  on_each([&](Rank& rank) { ASSERT_TRUE(load(rank).ok()); });
  const float* const before = ranks_[1]->store.address(ranks_[1]->norm);
  for (const auto& [name, shape, seed] : std::vector<std::tuple<std::string, std::vector<int64_t>, uint64_t>>{
           {"q", {6, 8}, 11}, {"k", {4, 8}, 12}, {"norm", {8}, 13}, {"table", {5, 8}, 14}}) {
    source_.add(name, shape, seed);
  }
  on_each([&](Rank& rank) { ASSERT_TRUE(rank.store.refill(source_, {backend_.get(), nullptr}, {}, {}).ok()); });
  expect_all();
  EXPECT_EQ(ranks_[1]->store.address(ranks_[1]->norm), before);
  float want[8];
  source_.find("norm")->read_rows(0, 8, want);
  EXPECT_EQ(std::memcmp(before, want, sizeof(want)), 0);
}

// Nobody waits for what another one could not pack.
TEST_F(CommonTest, WhatOneCannotPackFailsBothByName) {
  source_.add("k", {3, 8}, 2);
  on_each([&](Rank& rank) {
    const auto loaded = load(rank);
    ASSERT_FALSE(loaded.ok());
    EXPECT_NE(loaded.error().message.find("tensor k has the shape"), std::string::npos) << loaded.error().message;
  });
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
