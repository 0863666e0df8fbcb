#include "tensor/safetensors.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/rng.h"
#include "testing/seed.h"

namespace sluice::tensor {
namespace {

namespace fs = std::filesystem;

std::string file_of(const std::string& header, const std::string& data) {
  std::string bytes(8, '\0');
  const uint64_t size = header.size();
  std::copy_n(reinterpret_cast<const char*>(&size), 8, bytes.begin());
  return bytes + header + data;
}

std::string floats(std::initializer_list<float> values) {
  std::string bytes;
  for (const float value : values) bytes.append(reinterpret_cast<const char*>(&value), 4);
  return bytes;
}

class SafetensorsTest : public ::testing::Test {
 protected:
  SafetensorsTest() { fs::create_directories(folder_); }
  ~SafetensorsTest() override { fs::remove_all(folder_); }

  void write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ / name, std::ios::binary | std::ios::trunc) << bytes;
  }
  Result<std::unique_ptr<TensorSource>> open(const std::string& bytes) {
    write("model.safetensors", bytes);
    return open_safetensors(folder_);
  }
  std::string refusal(const std::string& header, const std::string& data = std::string(64, '\0')) {
    const auto source = open(file_of(header, data));
    return source.ok() ? "(accepted)" : source.error().message;
  }

  const fs::path folder_ = fs::path(::testing::TempDir()) / ("sluice_safetensors_test_" + std::to_string(::getpid()));
};

const std::string kSample =
    file_of(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
            R"("b":{"dtype":"BF16","shape":[2],"data_offsets":[16,20]},)"
            R"("n":{"dtype":"I32","shape":[1],"data_offsets":[20,24]},)"
            R"("none":{"dtype":"F16","shape":[0,7],"data_offsets":[24,24]}})",
            floats({1, 2, 3, 4}) + std::string("\x80\x3f\x00\xc0", 4) + std::string(4, '\1'));

TEST_F(SafetensorsTest, ReadsTensors) {
  const auto source = open(kSample);
  ASSERT_TRUE(source.ok()) << source.error().message;
  float values[4];
  (*source)->find("a").value().read_rows(0, 2, values);
  EXPECT_EQ(values[3], 4);
  (*source)->find("b").value().read_rows(0, 2, values);
  EXPECT_EQ(values[0], 1);
  EXPECT_EQ(values[1], -2);
  EXPECT_TRUE((*source)->has("none"));
  EXPECT_FALSE((*source)->has("__metadata__"));
  const auto missing = (*source)->find("c");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
}

TEST_F(SafetensorsTest, ADecoderByItselfIsFoundUnderTheNamesOfAWholeModel) {
  const std::string norm = R"("norm.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  const std::string table = R"(embed_tokens.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]})";
  const auto bare = open(file_of("{" + norm + ",\"" + table + "}", floats({7, 8})));
  ASSERT_TRUE(bare.ok()) << bare.error().message;
  for (const char* name : {"norm.weight", "model.norm.weight"}) {
    ASSERT_TRUE((*bare)->has(name)) << name;
    float value = 0;
    (*bare)->find(name).value().read_rows(0, 1, &value);
    EXPECT_EQ(value, 7) << name;
  }
  EXPECT_FALSE((*bare)->has("lm_head.weight"));
  const auto whole = open(file_of("{" + norm + ",\"model." + table + "}", floats({7, 8})));
  ASSERT_TRUE(whole.ok()) << whole.error().message;
  EXPECT_FALSE((*whole)->has("model.norm.weight") || (*whole)->has("embed_tokens.weight"));
}

TEST_F(SafetensorsTest, RefusesAShapeOrATypeThatTheModelCannotUse) {
  const auto source = open(kSample);
  ASSERT_TRUE(source.ok());
  EXPECT_TRUE((*source)->find_shaped("a", {2, 2}).ok());
  const auto shape = (*source)->find_shaped("a", {4});
  ASSERT_FALSE(shape.ok());
  EXPECT_NE(shape.error().message.find("[2, 2]"), std::string::npos) << shape.error().message;
  const auto type = (*source)->find_shaped("n", {1});
  ASSERT_FALSE(type.ok()) << "whole numbers are no weights";
  EXPECT_NE(type.error().message.find("I32"), std::string::npos) << type.error().message;
}

TEST_F(SafetensorsTest, ATypeThatIsNotSupportedIsAnErrorOnceSomebodyWantsTheTensor) {
  const auto source = open(file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                   R"("seen":{"dtype":"U64","shape":[1],"data_offsets":[4,12]}})",
                                   floats({1, 0, 0})));
  ASSERT_TRUE(source.ok()) << source.error().message;
  EXPECT_TRUE((*source)->find("a").ok());
  EXPECT_TRUE((*source)->has("seen"));
  const auto wanted = (*source)->find("seen");
  ASSERT_FALSE(wanted.ok());
  EXPECT_EQ(wanted.error().code, ErrorCode::kUnimplemented);
  EXPECT_NE(wanted.error().message.find("tensor seen: the element type U64 is not supported"), std::string::npos);
}

TEST_F(SafetensorsTest, SaysWhatIsWrong) {
  const auto has = [](const std::string& text, std::string_view part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  has(refusal("[]"), "not a JSON object");
  has(refusal(R"({"a":)"), "not a JSON object");
  has(refusal(R"({"a":{"dtype":"F32","shape":[1]}})"), "lacks");
  has(refusal(R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,4]}})"), "wrong type");
  has(refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,-4]}})"), "wrong type");
  has(refusal(R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})"), "not a whole number");
  has(refusal(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})"), "needs 8 bytes and it has 4");
  has(refusal(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}})"), "lies outside");
  has(refusal(R"({"a":{"dtype":"F32","shape":[17],"data_offsets":[0,68]}})"), "lies outside");
  has(refusal(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})"), "larger than any file");
  has(refusal(R"({"a":{"dtype":"F32","shape":[0,1099511627776,1099511627776],"data_offsets":[0,0]}})"), "larger than");
  has(open("short").error().message, "too short");
  has(open(std::string(8, '\xff') + "{}").error().message, "claims 18446744073709551615 bytes");
}

TEST_F(SafetensorsTest, ReadsShardsOfTheFolderOnly) {
  write("one.safetensors", kSample);
  const auto index = [&](const std::string& shard, const std::string& name) {
    write("model.safetensors.index.json", R"({"weight_map":{")" + name + R"(":")" + shard + R"("}})");
    return open_safetensors(folder_);
  };
  EXPECT_TRUE(index("one.safetensors", "a").ok());
  EXPECT_FALSE(index("one.safetensors", "elsewhere").ok());
  EXPECT_FALSE(index("../one.safetensors", "a").ok());
  EXPECT_FALSE(index("two.safetensors", "a").ok());
  EXPECT_FALSE(index("one.safetensors\\u0000", "a").ok()) << "not cut off where C ends a string";
  write("model.safetensors.index.json", R"({"weight_map":[]})");
  EXPECT_FALSE(open_safetensors(folder_).ok());
}

TEST_F(SafetensorsTest, AnEmptyFolderIsAnErrorThatNamesTheFiles) {
  const auto source = open_safetensors(folder_);
  ASSERT_FALSE(source.ok());
  EXPECT_NE(source.error().message.find("model.safetensors.index.json"), std::string::npos);
}

TEST_F(SafetensorsTest, RandomDamageIsAnErrorOrAFileThatCanBeRead) {
  const uint64_t seed = testing::test_seed();
  SCOPED_TRACE(seed);
  Rng rng(seed);
  const std::string_view digits = "0123456789,[]{}\":-.eE";
  const int fd = ::memfd_create("safetensors_test", MFD_CLOEXEC);
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  int accepted = 0;
  for (int round = 0; round < 5'000; ++round) {
    std::string damaged = kSample;
    for (uint64_t i = rng.below(3) + 1; i > 0; --i) {
      damaged[rng.below(damaged.size())] =
          rng.below(2) == 0 ? digits[rng.below(digits.size())] : static_cast<char>(rng.below(256));
    }
    if (rng.below(8) == 0) damaged.resize(rng.below(damaged.size()) + 1);
    ASSERT_EQ(::ftruncate(fd, static_cast<off_t>(damaged.size())), 0);
    ASSERT_EQ(::pwrite(fd, damaged.data(), damaged.size(), 0), static_cast<ssize_t>(damaged.size()));
    const auto source = open_safetensors_file(path);
    if (!source.ok()) continue;
    ++accepted;
    for (const char* name : {"a", "b", "none"}) {
      const auto tensor = (*source)->find(name);
      if (!tensor.ok() || tensor->dtype == DType::kI32 || tensor->shape.empty()) continue;
      std::vector<float> values(static_cast<size_t>(tensor->elements()));
      tensor->read_rows(0, tensor->shape[0], values.data());
    }
  }
  ::close(fd);
  EXPECT_GT(accepted, 100) << "damage that stays unnoticed is part of the test";
}

}  // namespace
}  // namespace sluice::tensor
