#include "tensor/gguf.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "base/rng.h"
#include "testing/seed.h"

namespace sluice::tensor {
namespace {

// Builds GGUF files, right and wrong ones.
class Writer {
 public:
  template <class T>
  Writer& number(T value) {
    const auto* bytes = reinterpret_cast<const char*>(&value);
    data_.append(bytes, sizeof(T));
    return *this;
  }
  Writer& text(std::string_view value) {
    number<uint64_t>(value.size());
    data_ += value;
    return *this;
  }
  Writer& header(uint64_t tensors, uint64_t values, uint32_t version = 3) {
    data_ += "GGUF";
    return number(version).number(tensors).number(values);
  }
  Writer& key(std::string_view name, uint32_t type) { return text(name).number(type); }
  Writer& tensor(std::string_view name, std::vector<uint64_t> innermost_first, uint32_t type, uint64_t offset) {
    text(name).number(static_cast<uint32_t>(innermost_first.size()));
    for (const uint64_t extent : innermost_first) number(extent);
    return number(type).number(offset);
  }
  Writer& pad(size_t alignment) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    return *this;
  }
  Writer& zeros(size_t count) {
    data_.append(count, '\0');
    return *this;
  }
  const std::string& data() const { return data_; }

 private:
  std::string data_;
};

class GgufTest : public ::testing::Test {
 protected:
  ~GgufTest() override { ::close(fd_); }

  Result<std::shared_ptr<const GgufFile>> open(const std::string& bytes) {
    EXPECT_EQ(::ftruncate(fd_, static_cast<off_t>(bytes.size())), 0);
    EXPECT_EQ(::pwrite(fd_, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    return GgufFile::open(path_);
  }
  // The message of the refusal, which names the file.
  std::string refusal(const std::string& bytes) {
    const auto file = open(bytes);
    if (file.ok()) return "(accepted)";
    EXPECT_EQ(file.error().code, ErrorCode::kProtocol);
    EXPECT_TRUE(file.error().message.starts_with(path_)) << file.error().message;
    return file.error().message;
  }

  const int fd_ = ::memfd_create("gguf_test", MFD_CLOEXEC);
  const std::string path_ = "/proc/self/fd/" + std::to_string(fd_);
};

// One of every kind of value, and three tensors.
std::string sample() {
  Writer w;
  w.header(3, 15);
  w.key("u8", 0).number<uint8_t>(200);
  w.key("i8", 1).number<int8_t>(-3);
  w.key("u16", 2).number<uint16_t>(60000);
  w.key("i16", 3).number<int16_t>(-300);
  w.key("u32", 4).number<uint32_t>(4'000'000'000);
  w.key("i32", 5).number<int32_t>(-70000);
  w.key("f32", 6).number<float>(0.5f);
  w.key("bool", 7).number<uint8_t>(1);
  w.key("string", 8).text("twice \xc3\xa9");
  w.key("u64", 10).number<uint64_t>(uint64_t{1} << 40);
  w.key("i64", 11).number<int64_t>(-(int64_t{1} << 40));
  w.key("f64", 12).number<double>(0.1);
  w.key("strings", 9).number<uint32_t>(8).number<uint64_t>(2).text("a").text("");
  w.key("floats", 9).number<uint32_t>(6).number<uint64_t>(2).number<float>(1).number<float>(2);
  w.key("integers", 9)
      .number<uint32_t>(5)
      .number<uint64_t>(3)
      .number<int32_t>(1)
      .number<int32_t>(-2)
      .number<int32_t>(3);
  w.tensor("matrix", {3, 2}, 0, 0).tensor("halves", {2}, 1, 32).tensor("blocks", {32, 2}, 8, 64);
  w.pad(32);
  for (int i = 0; i < 6; ++i) w.number(static_cast<float>(i));
  w.pad(32).number<uint16_t>(0x3c00).number<uint16_t>(0xc000).pad(32).zeros(68);
  return w.data();
}

TEST_F(GgufTest, ReadsEveryKindOfValueAndTensor) {
  const auto file = open(sample());
  ASSERT_TRUE(file.ok()) << file.error().message;
  const GgufFile& gguf = **file;
  EXPECT_EQ(*gguf.get<int64_t>("u8"), 200);
  EXPECT_EQ(*gguf.get<int64_t>("i8"), -3);
  EXPECT_EQ(*gguf.get<int64_t>("u16"), 60000);
  EXPECT_EQ(*gguf.get<int64_t>("i16"), -300);
  EXPECT_EQ(*gguf.get<int64_t>("u32"), 4'000'000'000);
  EXPECT_EQ(*gguf.get<int64_t>("i32"), -70000);
  EXPECT_EQ(*gguf.get<double>("f32"), 0.5);
  EXPECT_EQ(*gguf.get<bool>("bool"), true);
  EXPECT_EQ(*gguf.get<std::string>("string"), "twice \xc3\xa9");
  EXPECT_EQ(*gguf.get<int64_t>("u64"), int64_t{1} << 40);
  EXPECT_EQ(*gguf.get<int64_t>("i64"), -(int64_t{1} << 40));
  EXPECT_EQ(*gguf.get<double>("f64"), 0.1);
  EXPECT_EQ(*gguf.get<std::vector<std::string>>("strings"), (std::vector<std::string>{"a", ""}));
  EXPECT_EQ(*gguf.get<std::vector<double>>("floats"), (std::vector<double>{1, 2}));
  EXPECT_EQ(*gguf.get<std::vector<int64_t>>("integers"), (std::vector<int64_t>{1, -2, 3}));
  EXPECT_EQ(gguf.get<bool>("u8"), nullptr) << "another kind";
  EXPECT_EQ(gguf.get<int64_t>("nothing"), nullptr);

  const StoredTensor& matrix = gguf.tensors().at("matrix");
  EXPECT_EQ(matrix.shape, (std::vector<int64_t>{2, 3}));
  float row[3];
  matrix.read_rows(1, 1, row);
  EXPECT_EQ(row[0], 3);
  EXPECT_EQ(row[2], 5);
  float halves[2];
  gguf.tensors().at("halves").read_rows(0, 2, halves);
  EXPECT_EQ(halves[0], 1);
  EXPECT_EQ(halves[1], -2);
  EXPECT_EQ(gguf.tensors().at("blocks").dtype, DType::kQ8_0);
}

TEST_F(GgufTest, SaysWhatIsWrong) {
  const auto has = [](const std::string& text, std::string_view part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  has(refusal("GG"), "the file ends");
  has(refusal(std::string(64, 'x')), "not a GGUF file");
  has(refusal(Writer().header(0, 0, 1).data()), "GGUF version 1");
  has(refusal(Writer().header(0, 1).text("key").number<uint32_t>(77).data()), "unknown value type 77");
  has(refusal(Writer().header(0, 1).key("k", 9).number<uint32_t>(9).number<uint64_t>(0).data()), "arrays of arrays");
  has(refusal(Writer().header(1, 0).tensor("t", {}, 0, 0).data()), "0 dimensions");
  has(refusal(Writer().header(1, 0).tensor("t", {1, 1, 1, 1, 1}, 0, 0).data()), "5 dimensions");
  has(refusal(Writer().header(1, 0).tensor("t", {32}, 99, 0).data()), "element type 99");
  has(refusal(Writer().header(1, 0).tensor("t", {33}, 3, 0).pad(32).zeros(400).data()), "whole blocks");
  has(refusal(Writer().header(1, 0).tensor("t", {8}, 0, 0).pad(32).zeros(31).data()), "lies outside");
  has(refusal(Writer().header(1, 0).tensor("t", {8}, 0, ~uint64_t{0} - 3).pad(32).zeros(64).data()), "lies outside");
  has(refusal(Writer().header(1, 0).tensor("t", {uint64_t{1} << 33, uint64_t{1} << 33}, 0, 0).data()), "larger than");
  has(refusal(Writer().header(1, 0).tensor("t", {uint64_t{1} << 40, uint64_t{1} << 40, 0}, 0, 0).data()),
      "larger than");
  has(refusal(Writer().header(0, 1).key("k", 9).number<uint32_t>(77).number<uint64_t>(0).data()), "value type 77");
  has(refusal(Writer().header(0, 1).key("general.alignment", 4).number<uint32_t>(0).data()), "no alignment");
}

TEST_F(GgufTest, CountsBeyondTheFileTakeNoMemory) {
  constexpr uint64_t kMany = uint64_t{1} << 60;
  EXPECT_NE(refusal(Writer().header(kMany, 0).data()).find("the file ends"), std::string::npos);
  EXPECT_NE(refusal(Writer().header(0, kMany).data()).find("the file ends"), std::string::npos);
  for (const uint32_t type : {0u, 6u, 7u, 8u, 12u}) {
    Writer w;
    w.header(0, 1).key("k", 9).number(type).number(kMany);
    EXPECT_NE(refusal(w.data()).find("the file ends"), std::string::npos);
  }
  EXPECT_NE(refusal(Writer().header(0, 1).number(kMany).data()).find("the file ends"), std::string::npos);
}

TEST_F(GgufTest, ATruncatedFileIsAnError) {
  const std::string whole = sample();
  for (size_t size = 1; size < whole.size(); ++size) EXPECT_NE(refusal(whole.substr(0, size)), "(accepted)") << size;
}

TEST_F(GgufTest, RandomDamageIsAnErrorOrAFileThatCanBeRead) {
  const uint64_t seed = testing::test_seed();
  SCOPED_TRACE(seed);
  Rng rng(seed);
  const std::string whole = sample();
  int accepted = 0;
  for (int round = 0; round < 5'000; ++round) {
    std::string damaged = whole;
    for (uint64_t i = rng.below(4) + 1; i > 0; --i) {
      // Small values and all ones are what breaks length checks.
      const uint64_t kind = rng.below(3);
      damaged[rng.below(damaged.size())] = static_cast<char>(kind == 0   ? rng.below(256)
                                                             : kind == 1 ? rng.below(16)
                                                                         : 255);
    }
    if (rng.below(8) == 0) damaged.resize(rng.below(damaged.size()) + 1);
    const auto file = open(damaged);
    if (!file.ok()) continue;
    ++accepted;
    for (const auto& [name, tensor] : (*file)->tensors()) {
      if (tensor.elements() > 1'000'000) continue;
      std::vector<float> values(static_cast<size_t>(tensor.elements()));
      if (!tensor.shape.empty()) tensor.read_rows(0, tensor.shape[0], values.data());
    }
  }
  EXPECT_GT(accepted, 100) << "damage that stays unnoticed is part of the test";
}

}  // namespace
}  // namespace sluice::tensor
