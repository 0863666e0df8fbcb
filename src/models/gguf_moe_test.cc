// A mixture of experts from a GGUF file: the tiny checkpoint of safetensors, written anew in that format.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "models/gguf_names.h"
#include "models/runner.h"
#include "tensor/gguf.h"
#include "tensor/safetensors.h"

namespace sluice::models {
namespace {

const std::string kFolder = std::string(SLUICE_FIXTURES_DIR) + "/tiny-qwen3-moe";
constexpr int64_t kHidden = 64, kLayers = 3, kExperts = 8, kExpertWidth = 32, kVocab = 512, kHeadDim = 32;

// Written into memory; read by path.
class GgufWriter {
 public:
  ~GgufWriter() {
    if (fd_ >= 0) ::close(fd_);
  }

  void whole(const std::string& key, uint32_t value) { put_key(key, 4, value); }
  void real(const std::string& key, float value) { put_key(key, 6, value); }
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
    fd_ = ::memfd_create("gguf_moe_test.gguf", MFD_CLOEXEC);
    EXPECT_EQ(::write(fd_, file.data(), file.size()), static_cast<ssize_t>(file.size()));
    const std::string link = testing::TempDir() + "sluice_gguf_moe_test_" + std::to_string(::getpid()) + ".gguf";
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

class GgufMoeTest : public testing::Test {
 protected:
  std::vector<float> read(const std::string& name) {
    const auto stored = source_->find(name).value();
    std::vector<float> values(static_cast<size_t>(stored.elements()));
    stored.read_rows(0, stored.shape[0], values.data());
    return values;
  }
  std::vector<float> read_experts(int64_t layer, const std::string& matrix) {
    std::vector<float> all;
    for (int64_t e = 0; e < kExperts; ++e) {
      const auto one = read(fmt::format("model.layers.{}.mlp.experts.{}.{}.weight", layer, e, matrix));
      all.insert(all.end(), one.begin(), one.end());
    }
    return all;
  }

  // `change` sees the values of each stack of experts before they are written.
  std::string write(GgufWriter& file, bool q8, const std::function<void(std::vector<float>&)>& change = {}) {
    file.text("general.architecture", "qwen3moe");
    const std::pair<const char*, uint32_t> keys[] = {
        {"embedding_length", kHidden},      {"block_count", kLayers},
        {"attention.head_count", 4},        {"attention.head_count_kv", 2},
        {"attention.key_length", kHeadDim}, {"feed_forward_length", 192},
        {"context_length", 2048},           {"expert_count", kExperts},
        {"expert_used_count", 2},           {"expert_feed_forward_length", kExpertWidth}};
    for (const auto& [key, value] : keys) file.whole(fmt::format("qwen3moe.{}", key), value);
    file.real("qwen3moe.attention.layer_norm_rms_epsilon", 1e-6f);
    file.real("qwen3moe.rope.freq_base", 1e6f);
    file.tensor("token_embd.weight", {kVocab, kHidden}, read("model.embed_tokens.weight"), false);
    file.tensor("output.weight", {kVocab, kHidden}, read("lm_head.weight"), false);
    file.tensor("output_norm.weight", {kHidden}, read("model.norm.weight"), false);
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      const std::string from = fmt::format("model.layers.{}.", layer), to = fmt::format("blk.{}.", layer);
      const struct {
        const char *from, *to;
        std::vector<int64_t> shape;
      } plain[] = {{"input_layernorm", "attn_norm", {kHidden}},
                   {"post_attention_layernorm", "ffn_norm", {kHidden}},
                   {"self_attn.q_proj", "attn_q", {4 * kHeadDim, kHidden}},
                   {"self_attn.k_proj", "attn_k", {2 * kHeadDim, kHidden}},
                   {"self_attn.v_proj", "attn_v", {2 * kHeadDim, kHidden}},
                   {"self_attn.o_proj", "attn_output", {kHidden, 4 * kHeadDim}},
                   {"self_attn.q_norm", "attn_q_norm", {kHeadDim}},
                   {"self_attn.k_norm", "attn_k_norm", {kHeadDim}},
                   {"mlp.gate", "ffn_gate_inp", {kExperts, kHidden}}};
      for (const auto& t : plain) {
        file.tensor(to + t.to + ".weight", t.shape, read(from + t.from + ".weight"), false);
      }
      const struct {
        const char *from, *to;
        std::vector<int64_t> shape;
      } stacks[] = {{"gate_proj", "ffn_gate_exps", {kExperts, kExpertWidth, kHidden}},
                    {"up_proj", "ffn_up_exps", {kExperts, kExpertWidth, kHidden}},
                    {"down_proj", "ffn_down_exps", {kExperts, kHidden, kExpertWidth}}};
      for (const auto& t : stacks) {
        auto values = read_experts(layer, t.from);
        if (change) change(values);
        file.tensor(to + t.to + ".weight", t.shape, values, q8);
      }
    }
    path_ = file.finish();
    return path_;
  }
  ~GgufMoeTest() override { ::unlink(path_.c_str()); }

  static std::vector<float> logits(const std::string& path) {
    auto loaded = load_runner({.model_path = path, .dtype = "float32", .max_step_tokens = 64, .max_step_seqs = 2});
    EXPECT_TRUE(loaded.ok()) << loaded.error().message;
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

  const std::unique_ptr<tensor::TensorSource> source_ = std::move(tensor::open_safetensors(kFolder)).value();
  std::string path_;
};

TEST_F(GgufMoeTest, ThePlainValuesGiveTheLogitsOfTheSafetensors) {
  GgufWriter file;
  EXPECT_EQ(logits(write(file, /*q8=*/false)), logits(kFolder));
}

TEST_F(GgufMoeTest, ExpertsInBlocksGiveTheLogitsOfTheirValues) {
  GgufWriter blocks, values;
  const auto kept = logits(write(blocks, /*q8=*/true));
  ::unlink(path_.c_str());
  const auto widened = logits(write(values, /*q8=*/false, [](std::vector<float>& all) {
    for (size_t at = 0; at < all.size(); at += 32) {
      const float scale = GgufWriter::q8_scale(all.data() + at);
      for (size_t i = at; i < at + 32; ++i) all[i] = static_cast<float>(std::lround(all[i] / scale)) * scale;
    }
  }));
  ASSERT_EQ(kept.size(), widened.size());
  // The weights are the same to the bit; the sums of the products are in another order, as in the conformance suite.
  double squares = 0;
  for (const float value : widened) squares += static_cast<double>(value) * value;
  const double spread = std::sqrt(squares / static_cast<double>(widened.size()));
  for (size_t i = 0; i < kept.size(); ++i) {
    ASSERT_NEAR(kept[i], widened[i], 8 * spread * std::sqrt(30.0) * 16 * 0x1p-24) << i;
  }
}

TEST_F(GgufMoeTest, AMissingExpertIsNamed) {
  GgufWriter file;
  const auto source = gguf_source(tensor::GgufFile::open(write(file, false)).value());
  EXPECT_TRUE(source->has("model.layers.2.mlp.experts.7.up_proj.weight"));
  EXPECT_FALSE(source->has("model.layers.2.mlp.experts.8.up_proj.weight"));
  EXPECT_FALSE(source->has("model.layers.2.mlp.experts.x.up_proj.weight"));
  EXPECT_FALSE(source->has("model.layers.3.mlp.experts.0.up_proj.weight"));
  const auto beyond = source->find("model.layers.0.mlp.experts.8.down_proj.weight");
  ASSERT_FALSE(beyond.ok());
  EXPECT_NE(beyond.error().message.find("blk.0.ffn_down_exps.weight has no expert 8"), std::string::npos)
      << beyond.error().message;
}

}  // namespace
}  // namespace sluice::models
