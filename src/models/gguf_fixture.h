// GGUF files for tests: the tensors of a checkpoint, written anew in that format.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "models/runner.h"

namespace sluice::models {

// Written into memory; read by path.
class GgufWriter {
 public:
  ~GgufWriter() {
    if (fd_ >= 0) ::close(fd_);
  }

  void whole(const std::string& key, uint32_t value) { put_key(key, 4, value); }
  void real(const std::string& key, float value) { put_key(key, 6, value); }
  void flag(const std::string& key, bool value) { put_key(key, 7, static_cast<uint8_t>(value)); }
  void text(const std::string& key, const std::string& value) {
    put_text(values_, key);
    put(values_, uint32_t{8});
    put_text(values_, value);
    ++value_count_;
  }
  // Shape outermost first; of float32, or of Q8_0 blocks that are exact for what they hold.
  void tensor(const std::string& name, const std::vector<int64_t>& shape, const std::vector<float>& values, bool q8) {
    put_text(tensors_, name);
    put(tensors_, static_cast<uint32_t>(shape.size()));
    for (size_t d = shape.size(); d > 0; --d) put(tensors_, static_cast<uint64_t>(shape[d - 1]));
    put(tensors_, uint32_t{q8 ? 8u : 0u});
    put(tensors_, static_cast<uint64_t>(data_.size()));
    ++tensor_count_;
    if (q8) {
      for (size_t at = 0; at < values.size(); at += 32) put_q8(values.data() + at);
    } else {
      data_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    }
    data_.resize((data_.size() + 31) / 32 * 32);
  }

  std::string finish() {
    std::string file = "GGUF";
    put(file, uint32_t{3});
    put(file, tensor_count_);
    put(file, value_count_);
    file += values_ + tensors_;
    file.resize((file.size() + 31) / 32 * 32);
    file += data_;
    fd_ = ::memfd_create("test.gguf", MFD_CLOEXEC);
    EXPECT_EQ(::write(fd_, file.data(), file.size()), static_cast<ssize_t>(file.size()));
    const std::string link =
        testing::TempDir() + "sluice_gguf_test_" + std::to_string(::getpid()) + "_" + std::to_string(fd_) + ".gguf";
    ::unlink(link.c_str());
    EXPECT_EQ(::symlink(("/proc/self/fd/" + std::to_string(fd_)).c_str(), link.c_str()), 0);
    return link;
  }

  // What Q8_0 makes of 32 values, with a scale that is a power of two.
  static float q8_scale(const float* values) {
    float top = 0;
    for (int i = 0; i < 32; ++i) top = std::max(top, std::abs(values[i]));
    return std::exp2(std::max(-14.0f, std::ceil(std::log2(std::max(top, 1e-9f) / 127))));
  }

 private:
  template <class T>
  static void put(std::string& to, T value) {
    to.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  static void put_text(std::string& to, const std::string& value) {
    put(to, static_cast<uint64_t>(value.size()));
    to += value;
  }
  template <class T>
  void put_key(const std::string& key, uint32_t type, T value) {
    put_text(values_, key);
    put(values_, type);
    put(values_, value);
    ++value_count_;
  }
  void put_q8(const float* values) {
    const float scale = q8_scale(values);
    put(data_, static_cast<uint16_t>((static_cast<int>(std::log2(scale)) + 15) << 10));  // in half precision
    for (int i = 0; i < 32; ++i) put(data_, static_cast<int8_t>(std::lround(values[i] / scale)));
  }

  int fd_ = -1;
  uint64_t value_count_ = 0, tensor_count_ = 0;
  std::string values_, tensors_, data_;
};

// Of every token of a prompt of 20, in float32.
inline std::vector<float> logits_of(const std::string& path) {
  auto loaded = load_runner({.model_path = path, .dtype = "float32", .max_step_tokens = 64, .max_step_seqs = 2});
  EXPECT_TRUE(loaded.ok()) << loaded.error().message;
  if (!loaded.ok()) return {};
  Runner& runner = **loaded;
  EXPECT_TRUE(runner.allocate_kv({.slots = 64, .table_rows = 1, .table_width = 32}).ok());
  std::vector<int32_t> ids(20);
  std::iota(ids.begin(), ids.end(), 7);
  std::vector<int32_t> positions(20), slots(20);
  std::iota(positions.begin(), positions.end(), 0);
  std::iota(slots.begin(), slots.end(), 1);
  std::copy(slots.begin(), slots.end(), runner.slot_table().begin());
  const int32_t starts[] = {0, 20}, lens[] = {20}, rows[] = {0};
  const auto result = runner.forward({.token_ids = ids,
                                      .positions = positions,
                                      .kv_slots = slots,
                                      .query_start = starts,
                                      .seq_lens = lens,
                                      .table_rows = rows,
                                      .logit_rows = positions});
  EXPECT_TRUE(result.ok());
  return {result->begin(), result->end()};
}

}  // namespace sluice::models
