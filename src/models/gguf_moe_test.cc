// A mixture of experts from a GGUF file: the tiny checkpoint of safetensors, written anew in that format.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "models/gguf_fixture.h"
#include "models/gguf_names.h"
#include "tensor/gguf.h"
#include "tensor/safetensors.h"

namespace sluice::models {
namespace {

const std::string kFolder = std::string(SLUICE_FIXTURES_DIR) + "/tiny-qwen3-moe";
constexpr int64_t kHidden = 64, kLayers = 3, kExperts = 8, kExpertWidth = 32, kVocab = 512, kHeadDim = 32;

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

  const std::unique_ptr<tensor::TensorSource> source_ = std::move(tensor::open_safetensors(kFolder)).value();
  std::string path_;
};

TEST_F(GgufMoeTest, ThePlainValuesGiveTheLogitsOfTheSafetensors) {
  GgufWriter file;
  EXPECT_EQ(logits_of(write(file, /*q8=*/false)), logits_of(kFolder));
}

TEST_F(GgufMoeTest, ExpertsInBlocksGiveTheLogitsOfTheirValues) {
  GgufWriter blocks, values;
  const auto kept = logits_of(write(blocks, /*q8=*/true));
  ::unlink(path_.c_str());
  const auto widened = logits_of(write(values, /*q8=*/false, [](std::vector<float>& all) {
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
