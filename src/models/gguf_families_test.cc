// Families from GGUF files as llama.cpp's converter names and arranges their tensors: the tiny checkpoints, written
// anew, say the same as in safetensors.
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "models/config.h"
#include "models/gguf_fixture.h"
#include "tensor/gguf.h"
#include "tensor/safetensors.h"

namespace sluice::models {
namespace {

using Json = nlohmann::json;

class Rewriter {
 public:
  Rewriter(const std::string& fixture, std::string architecture)
      : folder_(std::string(SLUICE_FIXTURES_DIR) + "/" + fixture),
        config_(Json::parse(std::ifstream(folder_ + "/config.json"))),
        architecture_(std::move(architecture)),
        source_(std::move(tensor::open_safetensors(folder_)).value()) {
    file.text("general.architecture", architecture_);
    const std::pair<const char*, const char*> keys[] = {{"embedding_length", "hidden_size"},
                                                        {"block_count", "num_hidden_layers"},
                                                        {"context_length", "max_position_embeddings"},
                                                        {"feed_forward_length", "intermediate_size"},
                                                        {"attention.head_count", "num_attention_heads"},
                                                        {"expert_used_count", "num_experts_per_tok"}};
    for (const auto& [key, field] : keys) {
      if (config_.contains(field)) whole(key, config_[field].get<uint32_t>());
    }
    real("attention.layer_norm_rms_epsilon", config_["rms_norm_eps"].get<float>());
    real("rope.freq_base", config_["rope_theta"].get<float>());
    tensor("model.embed_tokens.weight", "token_embd.weight");
    tensor("model.norm.weight", "output_norm.weight");
    tensor("lm_head.weight", "output.weight");
  }
  ~Rewriter() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }

  const std::string& folder() const { return folder_; }
  const Json& config() const { return config_; }
  int64_t number(const char* field) const { return config_[field].get<int64_t>(); }
  int64_t layers() const { return number("num_hidden_layers"); }
  void whole(const std::string& key, int64_t value) {
    file.whole(architecture_ + "." + key, static_cast<uint32_t>(value));
  }
  void real(const std::string& key, float value) { file.real(architecture_ + "." + key, value); }
  void flag(const std::string& key, bool value) { file.flag(architecture_ + "." + key, value); }

  bool has(const std::string& name) const { return source_->has(name); }
  std::vector<int64_t> shape(const std::string& name) const { return source_->find(name).value().shape; }
  std::vector<float> read(const std::string& name) const {
    const auto stored = source_->find(name).value();
    std::vector<float> values(static_cast<size_t>(stored.elements()));
    stored.read_rows(0, stored.shape[0], values.data());
    return values;
  }
  void tensor(const std::string& from, const std::string& to) { file.tensor(to, shape(from), read(from), false); }
  // Where it is there.
  void rename(const std::string& from, const std::string& to) {
    if (has(from)) tensor(from, to);
  }
  void in_layer(int64_t layer, std::initializer_list<std::pair<const char*, const char*>> names) {
    for (const auto& [from, to] : names) {
      rename(fmt::format("model.layers.{}.{}", layer, from), fmt::format("blk.{}.{}", layer, to));
    }
  }
  // One tensor of the matrices of all experts.
  void stack(int64_t layer, const std::string& experts, int64_t count, const std::string& matrix,
             const std::string& to) {
    const auto name = [&](int64_t e) {
      return fmt::format("model.layers.{}.{}.{}.{}.weight", layer, experts, e, matrix);
    };
    if (!has(name(0))) return;
    std::vector<float> all;
    for (int64_t e = 0; e < count; ++e) {
      const auto one = read(name(e));
      all.insert(all.end(), one.begin(), one.end());
    }
    auto extents = shape(name(0));
    extents.insert(extents.begin(), count);
    file.tensor(fmt::format("blk.{}.{}.weight", layer, to), extents, all, false);
  }
  const std::string& finish() { return path_ = file.finish(); }

  GgufWriter file;

 private:
  const std::string folder_;
  const Json config_;
  const std::string architecture_;
  const std::unique_ptr<tensor::TensorSource> source_;
  std::string path_;
};

// The same but for roundings, of scales that the file has in float32 and of sums in another order.
void expect_same(const std::string& file, const std::string& folder) {
  const auto got = logits_of(file), want = logits_of(folder);
  ASSERT_EQ(got.size(), want.size());
  double squares = 0;
  for (const float value : want) squares += static_cast<double>(value) * value;
  const double spread = std::sqrt(squares / static_cast<double>(want.size()));
  constexpr size_t kVocab = 512;
  for (size_t token = 0; token < got.size() / kVocab; ++token) {
    const auto row = [&](const std::vector<float>& all) { return all.begin() + static_cast<int64_t>(token * kVocab); };
    EXPECT_EQ(std::max_element(row(got), row(got) + kVocab) - row(got),
              std::max_element(row(want), row(want) + kVocab) - row(want))
        << "token " << token;
    for (size_t i = 0; i < kVocab; ++i) ASSERT_NEAR(row(got)[i], row(want)[i], 2e-4 * spread) << token << " " << i;
  }
}

void write_norms_and_ffn(Rewriter& to, int64_t layer) {
  to.in_layer(layer, {{"input_layernorm.weight", "attn_norm.weight"},
                      {"post_attention_layernorm.weight", "ffn_norm.weight"},
                      {"self_attn.o_proj.weight", "attn_output.weight"},
                      {"mlp.gate_proj.weight", "ffn_gate.weight"},
                      {"mlp.up_proj.weight", "ffn_up.weight"},
                      {"mlp.down_proj.weight", "ffn_down.weight"}});
}

// kv_b [heads * (nope + value), latent] as k_b [heads, latent, nope] and v_b [heads, value, latent].
void split_up_projection(Rewriter& to, int64_t layer) {
  const auto both = to.read(fmt::format("model.layers.{}.self_attn.kv_b_proj.weight", layer));
  const int64_t heads = to.number("num_attention_heads"), nope = to.number("qk_nope_head_dim"),
                value = to.number("v_head_dim"), latent = to.number("kv_lora_rank");
  const auto at = [&](int64_t head, int64_t row, int64_t column) {
    return both[static_cast<size_t>((head * (nope + value) + row) * latent + column)];
  };
  std::vector<float> keys, values;
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t column = 0; column < latent; ++column) {
      for (int64_t row = 0; row < nope; ++row) keys.push_back(at(head, row, column));
    }
    for (int64_t row = nope; row < nope + value; ++row) {
      for (int64_t column = 0; column < latent; ++column) values.push_back(at(head, row, column));
    }
  }
  to.file.tensor(fmt::format("blk.{}.attn_k_b.weight", layer), {heads, latent, nope}, keys, false);
  to.file.tensor(fmt::format("blk.{}.attn_v_b.weight", layer), {heads, value, latent}, values, false);
}

// As older files have latent attention, or newer ones.
void write_deepseek(Rewriter& to, bool newer) {
  const Json& config = to.config();
  const int64_t rotary = to.number("qk_rope_head_dim"), latent = to.number("kv_lora_rank"),
                key = to.number("qk_nope_head_dim") + rotary;
  const bool sigmoid = config["scoring_func"] == "sigmoid";
  to.whole("attention.head_count_kv", newer ? 1 : to.number("num_attention_heads"));
  to.whole("attention.key_length", newer ? latent + rotary : key);
  to.whole("attention.value_length", newer ? latent : to.number("v_head_dim"));
  if (newer) {
    to.whole("attention.key_length_mla", key);
    to.whole("attention.value_length_mla", to.number("v_head_dim"));
    to.whole("expert_group_count", to.number("n_group"));
    to.whole("expert_group_used_count", to.number("topk_group"));
  }
  if (config["q_lora_rank"].is_number()) to.whole("attention.q_lora_rank", to.number("q_lora_rank"));
  to.whole("attention.kv_lora_rank", latent);
  to.whole("rope.dimension_count", rotary);
  to.whole("leading_dense_block_count", to.number("first_k_dense_replace"));
  to.whole("expert_count", to.number("n_routed_experts"));
  to.whole("expert_shared_count", to.number("n_shared_experts"));
  to.whole("expert_feed_forward_length", to.number("moe_intermediate_size"));
  to.real("expert_weights_scale", config["routed_scaling_factor"].get<float>());
  if (config["norm_topk_prob"] == true) to.flag("expert_weights_norm", true);
  if (sigmoid) to.whole("expert_gating_func", 2);
  const Json& scaling = config["rope_scaling"];
  to.file.text("deepseek2.rope.scaling.type", "yarn");
  to.real("rope.scaling.factor", scaling["factor"].get<float>());
  to.whole("rope.scaling.original_context_length", scaling["original_max_position_embeddings"].get<int64_t>());
  to.real("rope.scaling.yarn_log_multiplier", 0.1f * scaling["mscale_all_dim"].get<float>());
  for (int64_t layer = 0; layer < to.layers(); ++layer) {
    write_norms_and_ffn(to, layer);
    to.in_layer(layer, {{"self_attn.q_proj.weight", "attn_q.weight"},
                        {"self_attn.q_a_proj.weight", "attn_q_a.weight"},
                        {"self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight"},
                        {"self_attn.q_b_proj.weight", "attn_q_b.weight"},
                        {"self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight"},
                        {"self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight"},
                        {"mlp.gate.weight", "ffn_gate_inp.weight"},
                        {"mlp.gate.e_score_correction_bias", "exp_probs_b.bias"},
                        {"mlp.shared_experts.gate_proj.weight", "ffn_gate_shexp.weight"},
                        {"mlp.shared_experts.up_proj.weight", "ffn_up_shexp.weight"},
                        {"mlp.shared_experts.down_proj.weight", "ffn_down_shexp.weight"}});
    if (newer) {
      split_up_projection(to, layer);
    } else {
      to.in_layer(layer, {{"self_attn.kv_b_proj.weight", "attn_kv_b.weight"}});
    }
    const int64_t experts = to.number("n_routed_experts");
    to.stack(layer, "mlp.experts", experts, "gate_proj", "ffn_gate_exps");
    to.stack(layer, "mlp.experts", experts, "up_proj", "ffn_up_exps");
    to.stack(layer, "mlp.experts", experts, "down_proj", "ffn_down_exps");
  }
}

TEST(GgufFamiliesTest, DeepSeekV2InTheOlderSpelling) {
  Rewriter to("tiny-deepseek-v2", "deepseek2");
  write_deepseek(to, /*newer=*/false);
  expect_same(to.finish(), to.folder());
}

TEST(GgufFamiliesTest, DeepSeekV2InTheNewerSpelling) {
  Rewriter to("tiny-deepseek-v2", "deepseek2");
  write_deepseek(to, /*newer=*/true);
  expect_same(to.finish(), to.folder());
}

TEST(GgufFamiliesTest, DeepSeekV3WithItsGroups) {
  Rewriter to("tiny-deepseek-v3", "deepseek2");
  write_deepseek(to, /*newer=*/true);
  const std::string path = to.finish();
  expect_same(path, to.folder());
  const auto config = load_config(path, "");
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->architectures[0], "DeepseekV3ForCausalLM");
  EXPECT_EQ(config->moe->groups, 4);
}

TEST(GgufFamiliesTest, KimiK2InBothSpellings) {
  for (const bool newer : {false, true}) {
    Rewriter to("tiny-kimi-k2", "deepseek2");
    write_deepseek(to, newer);
    expect_same(to.finish(), to.folder());
  }
}

TEST(GgufFamiliesTest, OlderFilesOfPublishedSizesHaveTheirGroups) {
  const struct { int64_t experts, groups, kept; } cases[] = {{64, 1, 1}, {160, 8, 3}, {256, 8, 4}, {384, 1, 1}};
  for (const auto& c : cases) {
    Rewriter to("tiny-deepseek-v2", "deepseek2");
    for (const char* key : {"attention.kv_lora_rank", "attention.value_length", "rope.dimension_count"})
      to.whole(key, 16);
    to.whole("attention.key_length", 32);
    to.whole("expert_count", c.experts);
    to.whole("expert_feed_forward_length", 32);
    const auto config = load_config(to.finish(), "");
    ASSERT_TRUE(config.ok()) << config.error().message;
    EXPECT_EQ(config->moe->groups, c.groups);
    EXPECT_EQ(config->moe->kept_groups, c.kept);
  }
}

TEST(GgufFamiliesTest, DeepSeekRefusesWhatIsNotBuilt) {
  Rewriter to("tiny-deepseek-v2", "deepseek2");
  write_deepseek(to, /*newer=*/false);
  to.whole("expert_gating_func", 3);
  const auto refused = load_config(to.finish(), "");
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("expert_gating_func 3"), std::string::npos) << refused.error().message;
}

TEST(GgufFamiliesTest, MiniMaxM2) {
  Rewriter to("tiny-minimax-m2", "minimax-m2");
  to.whole("attention.head_count_kv", to.number("num_key_value_heads"));
  to.whole("attention.key_length", to.number("head_dim"));
  to.whole("rope.dimension_count", to.number("rotary_dim"));
  to.whole("expert_count", to.number("num_local_experts"));
  to.whole("expert_feed_forward_length", to.number("intermediate_size"));
  to.whole("expert_gating_func", 2);
  for (int64_t layer = 0; layer < to.layers(); ++layer) {
    write_norms_and_ffn(to, layer);
    to.in_layer(layer, {{"self_attn.q_proj.weight", "attn_q.weight"},
                        {"self_attn.k_proj.weight", "attn_k.weight"},
                        {"self_attn.v_proj.weight", "attn_v.weight"},
                        {"self_attn.q_norm.weight", "attn_q_norm.weight"},
                        {"self_attn.k_norm.weight", "attn_k_norm.weight"},
                        {"block_sparse_moe.gate.weight", "ffn_gate_inp.weight"},
                        {"block_sparse_moe.e_score_correction_bias", "exp_probs_b.bias"}});
    const int64_t experts = to.number("num_local_experts");
    to.stack(layer, "block_sparse_moe.experts", experts, "w1", "ffn_gate_exps");
    to.stack(layer, "block_sparse_moe.experts", experts, "w3", "ffn_up_exps");
    to.stack(layer, "block_sparse_moe.experts", experts, "w2", "ffn_down_exps");
  }
  expect_same(to.finish(), to.folder());
}

// Rows of each head from halves, as published, to pairs: the file's rotation turns neighbours.
std::vector<float> paired(const std::vector<float>& rows, int64_t head, int64_t in) {
  std::vector<float> out(rows.size());
  const int64_t count = std::ssize(rows) / in;
  for (int64_t row = 0; row < count; ++row) {
    const int64_t within = row % head, from = row - within + within % 2 * (head / 2) + within / 2;
    std::copy_n(rows.begin() + from * in, in, out.begin() + row * in);
  }
  return out;
}

void write_llama(Rewriter& to) {
  to.whole("attention.head_count_kv", to.number("num_key_value_heads"));
  to.whole("rope.dimension_count", to.number("head_dim"));
  for (int64_t layer = 0; layer < to.layers(); ++layer) {
    write_norms_and_ffn(to, layer);
    to.in_layer(layer, {{"self_attn.v_proj.weight", "attn_v.weight"}});
    for (const char* kind : {"q", "k"}) {
      const auto from = fmt::format("model.layers.{}.self_attn.{}_proj.weight", layer, kind);
      to.file.tensor(fmt::format("blk.{}.attn_{}.weight", layer, kind), to.shape(from),
                     paired(to.read(from), to.number("head_dim"), to.number("hidden_size")), false);
    }
  }
}

TEST(GgufFamiliesTest, Llama3HasItsFrequenciesInATensor) {
  Rewriter to("tiny-llama", "llama");
  write_llama(to);
  ModelConfig config = load_config(to.folder(), "").value();
  const auto scaled = inverse_frequencies(config);
  config.rope.scaling = RopeScaling::kNone;
  auto divisors = inverse_frequencies(config);
  for (size_t i = 0; i < divisors.size(); ++i) divisors[i] /= scaled[i];
  ASSERT_NE(divisors.back(), 1.0f);
  to.file.tensor("rope_freqs.weight", {std::ssize(divisors)}, divisors, false);
  expect_same(to.finish(), to.folder());
}

// With --dtype auto the inputs of quantised matrices are in eight bits. An input of a block whose largest value is 2.5
// times their spread moves by some 2^-7.5 of that spread; as in Closeness, in about ten places of each layer, and 8 for
// the largest of all.
TEST(GgufFamiliesTest, QuantisedMatricesWithRoundedInputsStayNearTheirValues) {
  Rewriter to("tiny-llama", "llama");
  to.file.keep_in_blocks();
  write_llama(to);
  const std::string path = to.finish();
  const auto exact = logits_of(path, "float32"), rounded = logits_of(path, "auto");
  ASSERT_EQ(exact.size(), rounded.size());
  double squares = 0, worst = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    squares += static_cast<double>(exact[i]) * exact[i];
    worst = std::max(worst, std::abs(static_cast<double>(exact[i]) - static_cast<double>(rounded[i])));
  }
  const double spread = std::sqrt(squares / static_cast<double>(exact.size()));
  const double unit = std::exp2(-7.5), layers = static_cast<double>(to.layers());
  EXPECT_LT(worst, 8 * spread * std::sqrt(10.0 * layers) * unit);
  EXPECT_GT(worst, spread * unit / 8) << "nothing was rounded";
}

TEST(GgufFamiliesTest, FrequenciesThatCannotBeAreRefused) {
  for (const auto& divisors : {std::vector<float>{1, 2, 3}, std::vector<float>{1, 1, 1, 1, 1, 1, 1, 0}}) {
    Rewriter to("tiny-llama", "llama");
    write_llama(to);
    to.file.tensor("rope_freqs.weight", {std::ssize(divisors)}, divisors, false);
    const auto refused = load_config(to.finish(), "");
    ASSERT_FALSE(refused.ok());
    EXPECT_NE(refused.error().message.find("rope_freqs.weight"), std::string::npos) << refused.error().message;
  }
}

TEST(GgufFamiliesTest, YarnIsReadFromTheMetadata) {
  Rewriter to("tiny-llama", "llama");
  write_llama(to);
  to.file.text("llama.rope.scaling.type", "yarn");
  to.real("rope.scaling.factor", 4);
  to.whole("rope.scaling.original_context_length", 512);
  const auto config = load_config(to.finish(), "");
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->rope.scaling, RopeScaling::kYarn);
  EXPECT_EQ(config->rope.original_max_position, 512);
  EXPECT_NEAR(config->rope.angle_scale, 0.1 * std::log(4.0) + 1, 1e-6);
  EXPECT_EQ(config->rope.score_scale, 1.0);
}

TEST(GgufFamiliesTest, AVectorInBlocksIsRefusedByName) {
  Rewriter to("tiny-llama", "llama");
  write_llama(to);
  to.file.tensor("output_norm.weight", {64}, std::vector<float>(64, 1), /*q8=*/true);
  const std::string path = to.finish();
  const auto refused = load_runner({.model_path = path, .dtype = "float32", .max_step_tokens = 64, .max_step_seqs = 2});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().message, path + ": tensor output_norm.weight: a vector in Q8_0 is not supported");
}

TEST(GgufFamiliesTest, TensorsThatNoLayerAsksForAreNamed) {
  for (const char* name : {"attn_output.bias", "ffn_down.bias", "ffn_gate_inp.weight"}) {
    Rewriter to("tiny-llama", "llama");
    write_llama(to);
    to.file.tensor(fmt::format("blk.0.{}", name), {64}, std::vector<float>(64), false);
    const auto refused = load_config(to.finish(), "");
    ASSERT_FALSE(refused.ok());
    EXPECT_NE(refused.error().message.find(name), std::string::npos) << refused.error().message;
  }
}

}  // namespace
}  // namespace sluice::models
