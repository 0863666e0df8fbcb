#include "models/config.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numbers>

#include "base/rng.h"
#include "models/runner.h"
#include "testing/seed.h"

namespace sluice::models {
namespace {

using Json = nlohmann::json;

std::string folder_of(const std::string& fixture) { return std::string(SLUICE_FIXTURES_DIR) + "/" + fixture; }

Json config_of(const std::string& fixture) {
  std::ifstream file(folder_of(fixture) + "/config.json");
  return Json::parse(file);
}

// tiny-llama's config.json with some fields replaced; null takes a field away.
Result<ModelConfig> with(const Json& changes, const Json& generation = nullptr) {
  Json config = config_of("tiny-llama");
  config.merge_patch(changes);
  return config_from_json(config, generation);
}
std::string refusal(const Json& changes) {
  const auto config = with(changes);
  return config.ok() ? "(accepted)" : config.error().message;
}
void expect_has(const std::string& text, std::string_view part) {
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST(ModelConfigTest, ReadsAFolderOfEachFamily) {
  const auto llama = with(Json::object());
  ASSERT_TRUE(llama.ok()) << llama.error().message;
  EXPECT_EQ(llama->hidden_size, 64);
  EXPECT_EQ(llama->num_heads, 4);
  EXPECT_EQ(llama->num_kv_heads, 2);
  EXPECT_EQ(llama->rope.scaling, RopeScaling::kLlama3);
  EXPECT_EQ(llama->eos_token_ids, std::vector<int32_t>{2});
  EXPECT_EQ(llama->qk_norm, QkNorm::kNone);
  EXPECT_FALSE(llama->qkv_bias || llama->rope.interleaved);
  EXPECT_TRUE(config_from_json(config_of("tiny-qwen2"), nullptr)->qkv_bias);
  EXPECT_EQ(config_from_json(config_of("tiny-qwen3"), nullptr)->qk_norm, QkNorm::kEachHead);
}

TEST(ModelConfigTest, ReadsTheExpertsOfQwen3Moe) {
  const Json tiny = config_of("tiny-qwen3-moe");
  const auto config = config_from_json(tiny, nullptr);
  ASSERT_TRUE(config.ok() && config->moe) << config.error().message;
  EXPECT_EQ(config->qk_norm, QkNorm::kEachHead);
  EXPECT_EQ(config->moe->experts, 8);
  EXPECT_EQ(config->moe->top_k, 2);
  EXPECT_EQ(config->moe->expert_width, 32);
  EXPECT_EQ(config->moe->score, kernels::RouterScore::kSoftmax);
  EXPECT_TRUE(config->moe->renormalise);
  EXPECT_FALSE(config->moe->correction_bias);
  EXPECT_EQ(config->moe->sparse, (std::vector<bool>{true, true, true}));
  const auto mixed = [&](const Json& changes) {
    Json json = tiny;
    json.merge_patch(changes);
    return config_from_json(json, nullptr)->moe->sparse;
  };
  EXPECT_EQ(mixed({{"decoder_sparse_step", 2}}), (std::vector<bool>{false, true, false}));
  EXPECT_EQ(mixed({{"mlp_only_layers", {0, 2}}}), (std::vector<bool>{false, true, false}));
}

TEST(ModelConfigTest, ReadsThePartialRotationAndTheRouterOfMiniMaxM2) {
  const auto config = config_from_json(config_of("tiny-minimax-m2"), nullptr);
  ASSERT_TRUE(config.ok() && config->moe) << config.error().message;
  EXPECT_EQ(config->qk_norm, QkNorm::kAllHeads);
  EXPECT_EQ(config->head_dim, 32);
  EXPECT_EQ(config->rotary_dim, 16);
  EXPECT_EQ(config->moe->expert_width, 32);
  EXPECT_EQ(config->moe->score, kernels::RouterScore::kSigmoid);
  EXPECT_TRUE(config->moe->correction_bias && config->moe->renormalise);
}

TEST(ModelConfigTest, APartOfEachHeadIsRotatedWhateverItIsCalled) {
  const auto rotary = [](const Json& changes) {
    Json json = config_of("tiny-minimax-m2");
    json.erase("rotary_dim");
    json.merge_patch(changes);
    const auto config = config_from_json(json, nullptr);
    return config.ok() ? config->rotary_dim : -1;
  };
  EXPECT_EQ(rotary(Json::object()), 32);
  EXPECT_EQ(rotary({{"rotary_dim", 8}}), 8);
  EXPECT_EQ(rotary({{"partial_rotary_factor", 0.5}}), 16);
  EXPECT_EQ(rotary({{"rope_parameters", {{"rope_type", "default"}, {"partial_rotary_factor", 0.25}}}}), 8);
  EXPECT_EQ(rotary({{"partial_rotary_factor", 2}}), -1);
  EXPECT_EQ(with({{"partial_rotary_factor", 0.5}})->rotary_dim, 8);
}

TEST(ModelConfigTest, ReadsBothSpellingsOfMiniMaxText01) {
  const auto port = config_from_json(config_of("tiny-minimax-text-01"), nullptr);
  const auto published = config_from_json(config_of("tiny-minimax-text-01-published"), nullptr);
  ASSERT_TRUE(port.ok() && port->lightning) << port.error().message;
  ASSERT_TRUE(published.ok() && published->lightning) << published.error().message;
  EXPECT_EQ(port->rotary_dim, 32);
  EXPECT_EQ(published->rotary_dim, 16);
  for (const ModelConfig& config : {*port, *published}) {
    EXPECT_EQ(config.lightning->layers, (std::vector<bool>{true, false, true}));
    EXPECT_EQ(config.lightning->lightning.alpha, 1.2);
    EXPECT_EQ(config.lightning->lightning.beta, 0.8);
    EXPECT_EQ(config.lightning->softmax.alpha, 1.3);
    EXPECT_EQ(config.lightning->ffn.beta, 0.95);
    EXPECT_EQ(config.moe->experts, 4);
    EXPECT_TRUE(config.moe->renormalise);
  }
}

TEST(ModelConfigTest, RefusesExpertsThatCannotBe) {
  const auto refused = [](const std::string& fixture, const Json& changes) {
    Json json = config_of(fixture);
    json.merge_patch(changes);
    const auto config = config_from_json(json, nullptr);
    return config.ok() ? "(accepted)" : config.error().message;
  };
  expect_has(refused("tiny-qwen3-moe", {{"num_experts", nullptr}}), "num_experts is missing");
  expect_has(refused("tiny-qwen3-moe", {{"num_experts_per_tok", 9}}), "experts per token: 9 is not within 1 and 8");
  expect_has(refused("tiny-qwen3-moe", {{"mlp_only_layers", {0.5}}}), "mlp_only_layers [0.5] is not a list");
  expect_has(refused("tiny-minimax-m2", {{"scoring_func", "softmax"}}), "scoring_func");
  expect_has(refused("tiny-minimax-m2", {{"qk_norm_type", "per_head"}}), "qk_norm_type");
  expect_has(refused("tiny-minimax-m2", {{"shared_intermediate_size", 64}}), "shared_intermediate_size");
  expect_has(refused("tiny-minimax-m2", {{"attn_type_list", {1, 0, 1}}}), "attn_type_list");
  expect_has(refused("tiny-minimax-m2", {{"rotary_dim", 34}}), "34 of the 32 values");
  expect_has(refused("tiny-minimax-text-01", {{"layer_types", {"full_attention"}}}), "1 entries for 3 layers");
  expect_has(refused("tiny-minimax-text-01", {{"layer_types", {"full_attention", "mamba", "mamba"}}}), "\"mamba\"");
  expect_has(refused("tiny-minimax-text-01", {{"mlp_beta_factor", 0}}), "residual factors 1.1 and 0");
  expect_has(refused("tiny-minimax-text-01-published", {{"postnorm", false}}), "postnorm");
  expect_has(refused("tiny-minimax-text-01-published", {{"attn_type_list", nullptr}}), "attn_type_list");
}

TEST(ModelConfigTest, WhatIsNotGivenIsWorkedOut) {
  const auto config = with({{"head_dim", nullptr}, {"num_key_value_heads", nullptr}, {"rope_scaling", nullptr}});
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->num_kv_heads, 4);
  EXPECT_EQ(config->rope.scaling, RopeScaling::kNone);
}

TEST(ModelConfigTest, AClassifierHasTheLabelsThatItNames) {
  const auto labels = [](Json changes) {
    changes["architectures"] = {"LlamaForSequenceClassification"};
    return with(changes)->labels;
  };
  EXPECT_TRUE(with(Json::object())->labels.empty());
  EXPECT_EQ(labels({{"id2label", {{"1", "no"}, {"0", "yes"}}}}), (std::vector<std::string>{"yes", "no"}));
  EXPECT_EQ(labels({{"num_labels", 1}}), (std::vector<std::string>{"LABEL_0"}));
  EXPECT_EQ(labels(Json::object()).size(), 2u);
  expect_has(refusal({{"architectures", {"LlamaForSequenceClassification"}}, {"id2label", {{"1", "no"}}}}),
             "id2label has no text for label 0 of 1");
  expect_has(refusal({{"architectures", {"LlamaForSequenceClassification"}}, {"num_labels", 0}}), "num_labels");
  expect_has(refusal({{"architectures", {"BertForSequenceClassification"}}}), "BertForCausalLM");
}

TEST(ModelConfigTest, GenerationConfigGivesSamplingAndEndTokens) {
  const auto config =
      with(Json::object(), {{"eos_token_id", {5, 6}}, {"temperature", 0.7}, {"top_k", 20}, {"top_p", 0.8}});
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->eos_token_ids, (std::vector<int32_t>{5, 6}));
  EXPECT_EQ(config->temperature, 0.7);
  EXPECT_EQ(config->top_k, 20);
  EXPECT_EQ(with(Json::object(), {{"do_sample", false}, {"temperature", 0.7}})->temperature, 0.0);
}

TEST(ModelConfigTest, SaysWhatIsWrong) {
  expect_has(config_from_json(Json::array(), nullptr).error().message, "not an object");
  expect_has(refusal({{"architectures", nullptr}}), "architectures is missing");
  expect_has(refusal({{"architectures", {"MambaForCausalLM"}}}), "LlamaForCausalLM");
  expect_has(refusal({{"hidden_size", nullptr}}), "hidden_size is missing");
  expect_has(refusal({{"hidden_size", "64"}}), "hidden_size");
  expect_has(refusal({{"num_hidden_layers", 0}}), "num_hidden_layers");
  expect_has(refusal({{"vocab_size", 1.5}}), "vocab_size");
  expect_has(refusal({{"model_type", 7}}), "model_type 7 is not a string");
  expect_has(refusal({{"hidden_act", {1}}}), "hidden_act [1] is not a string");
  expect_has(refusal({{"num_key_value_heads", 3}}), "cannot share 3 key heads");
  expect_has(refusal({{"head_dim", 15}}), "15 of the 15 values");
  expect_has(refusal({{"num_hidden_layers", 1 << 20}}), "layers: 1048576");
  expect_has(refusal({{"rms_norm_eps", -1}}), "epsilon");
  expect_has(refusal({{"rope_theta", 0}}), "theta");
  expect_has(refusal({{"rope_scaling", {{"factor", 0}}}}), "factor");
}

TEST(ModelConfigTest, NamesWhatIsNotBuilt) {
  expect_has(refusal({{"mlp_bias", true}}), "mlp_bias");
  expect_has(refusal({{"attention_bias", true}}), "attention_bias");
  expect_has(refusal({{"use_sliding_window", true}}), "use_sliding_window");
  expect_has(refusal({{"hidden_act", "gelu"}}), "gelu");
  expect_has(refusal({{"quantization_config", {{"quant_method", "awq"}}}}), "quant_method: 'awq'");
  expect_has(refusal({{"quantization_config", {{"quant_method", "fp8"}}}}), "weight_block_size");
  expect_has(refusal({{"quantization_config", {{"quant_method", "fp8"}, {"fmt", "e5m2"}}}}), "e5m2");
  expect_has(refusal({{"quantization_config", {1}}}), "quantization_config");
  expect_has(refusal({{"rope_scaling", {{"rope_type", "dynamic"}}}}), "dynamic");
  expect_has(refusal({{"dual_chunk_attention_config", {{"chunk_size", 262144}}}}),
             "--json-model-override-args '{\"dual_chunk_attention_config\": null}'");
  EXPECT_TRUE(with({{"sliding_window", 4096}}).ok()) << "not used without use_sliding_window";
  for (const char* fixture : {"tiny-minimax-m2", "tiny-minimax-text-01"}) {
    for (const char* field : {"sliding_window", "attn_window_size"}) {
      Json json = config_of(fixture);
      json[field] = nullptr;
      EXPECT_TRUE(config_from_json(json, nullptr).ok());
      json[field] = 4096;
      expect_has(config_from_json(json, nullptr).error().message, field);
    }
  }
}

TEST(ModelConfigTest, Qwen2WithoutItsBiasesIsRefused) {
  Json json = config_of("tiny-qwen2");
  json["attention_bias"] = true;
  EXPECT_TRUE(config_from_json(json, nullptr).ok());
  json["attention_bias"] = false;
  expect_has(config_from_json(json, nullptr).error().message, "attention_bias: false is not supported");
}

TEST(ModelConfigTest, NoConfigFileEndsTheProcess) {
  const uint64_t seed = testing::test_seed();
  SCOPED_TRACE(seed);
  Rng rng(seed);
  const std::vector<Json> values = {nullptr,
                                    true,
                                    0,
                                    -1,
                                    3,
                                    0.5,
                                    1e300,
                                    int64_t{1} << 62,
                                    ~uint64_t{0},
                                    "",
                                    "llama",
                                    Json::array(),
                                    {1, 2},
                                    Json::object(),
                                    {{"factor", "x"}}};
  for (const char* fixture :
       {"tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-qwen3-moe", "tiny-minimax-m2", "tiny-deepseek-v2",
        "tiny-deepseek-v3-fp8", "tiny-minimax-text-01", "tiny-minimax-text-01-published"}) {
    const Json whole = config_of(fixture);
    for (int round = 0; round < 3'000; ++round) {
      Json config = whole, generation = {{"eos_token_id", 2}, {"top_k", 5}, {"temperature", 1}, {"do_sample", true}};
      for (uint64_t i = rng.below(3) + 1; i > 0; --i) {
        Json& target = rng.below(4) == 0 ? generation : config;
        auto at = target.begin();
        std::advance(at, static_cast<std::ptrdiff_t>(rng.below(target.size())));
        at.value() = values[rng.below(values.size())];
      }
      const auto read = config_from_json(config, generation);
      if (read.ok()) {
        EXPECT_EQ(inverse_frequencies(*read).size(), static_cast<size_t>(read->rotary_dim / 2));
      }
    }
  }
}

TEST(InverseFrequenciesTest, ArePowersOfTheta) {
  ModelConfig config{.rotary_dim = 8, .rope = {.theta = 10000}};
  const auto plain = inverse_frequencies(config);
  ASSERT_EQ(plain.size(), 4u);
  EXPECT_FLOAT_EQ(plain[0], 1);
  EXPECT_FLOAT_EQ(plain[1], 0.1f);
  EXPECT_FLOAT_EQ(plain[3], 0.001f);
  config.rope.scaling = RopeScaling::kLinear;
  config.rope.factor = 4;
  EXPECT_FLOAT_EQ(inverse_frequencies(config)[1], 0.025f);
}

TEST(InverseFrequenciesTest, Llama3KeepsShortWavesAndStretchesLongOnes) {
  const ModelConfig plain{.rotary_dim = 128, .rope = {.theta = 500000}};
  ModelConfig scaled = plain;
  scaled.rope.scaling = RopeScaling::kLlama3;
  scaled.rope.factor = 8;
  const auto before = inverse_frequencies(plain), after = inverse_frequencies(scaled);
  int between = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    const double wavelength = 2 * std::numbers::pi / before[i];
    const double ratio = after[i] / before[i];
    if (wavelength < 8192 / 4.0 - 1) {
      EXPECT_NEAR(ratio, 1, 1e-6);
    } else if (wavelength > 8192 + 1) {
      EXPECT_NEAR(ratio, 1 / 8.0, 1e-6);
    } else {
      EXPECT_TRUE(ratio > 1 / 8.0 && ratio < 1) << ratio;
      ++between;
    }
  }
  EXPECT_GT(between, 0);
}

// Frequencies of DeepSeek's published code (yarn_find_correction_range and yarn_linear_ramp_mask), theta 10000, rotary
// 64, factor 40 over 4096 positions, betas 32 and 1.
TEST(InverseFrequenciesTest, YarnKeepsFastTurnsStretchesSlowOnesAndBlendsBetween) {
  const ModelConfig plain{.rotary_dim = 64, .rope = {.theta = 10000}};
  ModelConfig scaled = plain;
  scaled.rope.scaling = RopeScaling::kYarn;
  scaled.rope.factor = 40;
  scaled.rope.original_max_position = 4096;
  const auto before = inverse_frequencies(plain), after = inverse_frequencies(scaled);
  for (size_t i = 0; i < 32; ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - 10) / (23 - 10), 0.0, 1.0);
    EXPECT_NEAR(after[i] / before[i], ramp / 40 + 1 - ramp, 1e-6) << i;
  }
}

TEST(ModelConfigTest, YarnScalesAnglesAndScores) {
  const auto rope = [](Json fields) {
    fields.merge_patch({{"rope_type", "yarn"}, {"factor", 40}, {"original_max_position_embeddings", 4096}});
    return with({{"rope_scaling", nullptr}, {"rope_parameters", fields}});
  };
  const double by = 0.1 * std::log(40.0);
  const auto qwen = rope({{"rope_theta", 5000}});
  ASSERT_TRUE(qwen.ok()) << qwen.error().message;
  EXPECT_EQ(qwen->rope.theta, 5000);
  EXPECT_NEAR(qwen->rope.angle_scale, by + 1, 1e-12);
  EXPECT_EQ(qwen->rope.score_scale, 1);
  const auto deepseek = rope({{"mscale", 0.707}, {"mscale_all_dim", 0.707}});
  EXPECT_EQ(deepseek->rope.angle_scale, 1);
  EXPECT_NEAR(deepseek->rope.score_scale, std::pow(by * 0.707 + 1, 2), 1e-12);
  EXPECT_EQ(rope({{"attention_factor", 1.5}})->rope.angle_scale, 1.5);
  expect_has(rope({{"truncate", false}}).error().message, "truncate");
  EXPECT_TRUE(rope({{"attn_factor", 1}, {"extrapolation_factor", 1.0}}).ok());
  expect_has(rope({{"attn_factor", 1.2}}).error().message, "rope_scaling.attn_factor");
  expect_has(rope({{"extrapolation_factor", 0}}).error().message, "rope_scaling.extrapolation_factor");
  expect_has(rope({{"beta_fast", 0.5}}).error().message, "beta_fast");
  expect_has(rope({{"rope_theta", 1}}).error().message, "rope_theta");
  expect_has(rope({{"mscale", "x"}}).error().message, "mscale");
}

TEST(ModelConfigTest, RefusesAFrequencyThatIsNoNumber) {
  expect_has(refusal({{"rope_theta", 1e-300}, {"rope_scaling", nullptr}}), "rotary frequency");
  expect_has(refusal({{"rope_scaling", {{"rope_type", "linear"}, {"factor", 1e-30}}}}), "rotary frequency");
  expect_has(refusal({{"rope_scaling",
                       {{"rope_type", "llama3"},
                        {"factor", 8},
                        {"low_freq_factor", -1},
                        {"original_max_position_embeddings", -1e9}}}}),
             "rotary frequency");
}

// A value of the tree, anywhere in it.
Json& value_within(Json& tree, Rng& rng) {
  Json* at = &tree;
  while (at->is_structured() && !at->empty() && (at == &tree || rng.below(3) != 0)) {
    at = &*std::next(at->begin(), static_cast<ptrdiff_t>(rng.below(at->size())));
  }
  return *at;
}

TEST(ModelConfigTest, ADamagedFileIsAnErrorOrAConfigurationWithinItsBounds) {
  const uint64_t seed = testing::test_seed();
  SCOPED_TRACE(seed);
  Rng rng(seed);
  const Json values =
      Json::parse(R"([null, true, "x", "", [], {}, [0], -1, 0, 1, 2, 3, 7, 0.5, 1e-300, 1e300, 65537, 2147483648,
    4294967296, 4294967297, 9223372036854775807, 18446744073709551615, -9223372036854775808])");
  std::vector<Json> configs;
  for (const char* fixture :
       {"tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-qwen3-moe", "tiny-minimax-m2", "tiny-kimi-k2",
        "tiny-deepseek-v2", "tiny-deepseek-v3", "tiny-deepseek-v3-fp8", "tiny-minimax-text-01"}) {
    configs.push_back(config_of(fixture));
  }
  int accepted = 0;
  for (int round = 0; round < 10'000; ++round) {
    Json damaged = configs[rng.below(configs.size())];
    for (uint64_t left = 1 + rng.below(3); left > 0; --left) {
      Json& value = value_within(damaged, rng);
      if (&value != &damaged) value = values[rng.below(values.size())];
    }
    const auto config = config_from_json(damaged, damaged);
    if (!config.ok()) {
      ASSERT_FALSE(config.error().message.empty()) << damaged;
      continue;
    }
    ++accepted;
    for (const float frequency : inverse_frequencies(*config)) ASSERT_TRUE(std::isfinite(frequency)) << damaged;
    ASSERT_TRUE(config->num_layers >= 1 && config->num_layers <= 1 << 12) << damaged;
    if (config->moe) {
      ASSERT_EQ(config->moe->sparse.size(), static_cast<size_t>(config->num_layers)) << damaged;
    }
    if (config->lightning) {
      ASSERT_EQ(config->lightning->layers.size(), static_cast<size_t>(config->num_layers)) << damaged;
    }
  }
  EXPECT_GT(accepted, 1000) << "damage that does not matter is part of the test";
}

TEST(ModelFilesTest, AMissingOrDamagedCheckpointIsAnError) {
  expect_has(load_runner({.model_path = "/nowhere"}).error().message, "/nowhere/config.json");
  expect_has(load_runner({.model_path = "/nowhere.gguf"}).error().message, "/nowhere.gguf");
  expect_has(load_runner({.model_path = folder_of("tiny-llama"), .dtype = "int3"}).error().message, "int3");
  expect_has(load_runner({.model_path = folder_of("tiny-llama"), .device = "abacus"}).error().message, "abacus");
}

// Enough of a GGUF file for its configuration.
class GgufConfigTest : public ::testing::Test {
 protected:
  ~GgufConfigTest() override { ::close(fd_); }

  void key(const std::string& name, uint32_t type) {
    text(name);
    number(type);
    ++values_;
  }
  void whole(const std::string& name, uint32_t value) {
    key(name, 4);
    number(value);
  }
  void real(const std::string& name, float value) {
    key(name, 6);
    number(value);
  }
  void string(const std::string& name, const std::string& value) {
    key(name, 8);
    text(value);
  }
  void strings(const std::string& name, const std::vector<std::string>& values) {
    array(name, 8, values.size());
    for (const std::string& value : values) text(value);
  }
  void wholes(const std::string& name, const std::vector<int32_t>& values) {
    array(name, 5, values.size());
    for (const int32_t value : values) number(value);
  }
  void sizes(const std::string& architecture = "llama") {
    string("general.architecture", architecture);
    whole(architecture + ".embedding_length", 64);
    whole(architecture + ".block_count", 3);
    whole(architecture + ".attention.head_count", 4);
    whole(architecture + ".feed_forward_length", 192);
    whole(architecture + ".context_length", 2048);
  }
  Result<ModelConfig> read(uint64_t vocabulary = 512) {
    std::string file = "GGUF";
    std::swap(file, data_);
    number<uint32_t>(3);
    number<uint64_t>(1);
    number<uint64_t>(values_);
    data_ += file;
    text("token_embd.weight");
    number<uint32_t>(2);
    number<uint64_t>(0);  // no data is needed
    number<uint64_t>(vocabulary);
    number<uint32_t>(0);
    number<uint64_t>(0);
    EXPECT_EQ(::write(fd_, data_.data(), data_.size()), static_cast<ssize_t>(data_.size()));
    SLUICE_TRY(const auto gguf, tensor::GgufFile::open("/proc/self/fd/" + std::to_string(fd_)));
    return config_from_gguf(*gguf);
  }

 private:
  void array(const std::string& name, uint32_t type, size_t size) {
    key(name, 9);
    number(type);
    number<uint64_t>(size);
  }
  template <class T>
  void number(T value) {
    data_.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  void text(const std::string& value) {
    number<uint64_t>(value.size());
    data_ += value;
  }

  const int fd_ = ::memfd_create("config_test", MFD_CLOEXEC);
  uint64_t values_ = 0;
  std::string data_;
};

TEST_F(GgufConfigTest, ReadsMetadata) {
  sizes();
  whole("llama.attention.head_count_kv", 2);
  real("llama.rope.freq_base", 100000);
  whole("tokenizer.ggml.eos_token_id", 2);
  const auto config = read();
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->vocab_size, 512);
  EXPECT_EQ(config->num_kv_heads, 2);
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->rope.theta, 100000);
  EXPECT_TRUE(config->rope.interleaved) << "Llama files store pairs side by side";
  EXPECT_TRUE(config->tie_embeddings) << "there is no output.weight";
  EXPECT_EQ(config->eos_token_ids, std::vector<int32_t>{2});
}

TEST_F(GgufConfigTest, NamesTheKeyThatIsMissing) {
  string("general.architecture", "llama");
  whole("llama.embedding_length", 64);
  expect_has(read().error().message, "llama.block_count is missing");
}

TEST_F(GgufConfigTest, RefusesAnArchitectureThatItDoesNotKnow) {
  string("general.architecture", "mamba");
  expect_has(read().error().message, "qwen3");
}

TEST_F(GgufConfigTest, RefusesAnEpsilonThatIsNoNumber) {
  sizes();
  real("llama.attention.layer_norm_rms_epsilon", std::nanf(""));
  expect_has(read().error().message, "epsilon");
}

TEST_F(GgufConfigTest, RefusesAnEmptyVocabulary) {
  sizes();
  expect_has(read(/*vocabulary=*/0).error().message, "vocabulary");
}

TEST_F(GgufConfigTest, RefusesScalingThatIsNotBuilt) {
  sizes();
  string("llama.rope.scaling.type", "longrope");
  expect_has(read().error().message, "longrope");
}

TEST_F(GgufConfigTest, RefusesQwen2WithoutItsBiases) {
  sizes("qwen2");
  expect_has(read().error().message, "blk.0.attn_q.bias is missing");
}

TEST_F(GgufConfigTest, EndsWithEveryTokenThatEndsATextATurnOrAMessage) {
  sizes();
  whole("tokenizer.ggml.eos_token_id", 5);
  whole("tokenizer.ggml.eot_token_id", 2);
  whole("tokenizer.ggml.eom_token_id", 5);
  strings("tokenizer.ggml.tokens", {"<|endoftext|>", "a", "<turn>", "<|im_end|>", "<EOT>", "</s>", "<|eom_id|>"});
  wholes("tokenizer.ggml.token_type", {3, 1, 3, 4, 1, 3, 3});
  EXPECT_EQ(read()->eos_token_ids, (std::vector<int32_t>{5, 2, 0, 3, 6})) << "<EOT> is a word like any other here";
}

TEST_F(GgufConfigTest, AnEndTokenNeedsNoTypeWhereNoneAreGiven) {
  sizes();
  whole("tokenizer.ggml.eos_token_id", 4000);  // beyond the vocabulary
  strings("tokenizer.ggml.tokens", {"a", "<|eot_id|>"});
  EXPECT_EQ(read()->eos_token_ids, std::vector<int32_t>{1});
}

TEST_F(GgufConfigTest, AFactorWithoutATypeScalesLinearly) {
  sizes();
  real("llama.rope.scale_linear", 2);
  real("llama.rope.scaling.factor", 4);
  const auto config = read();
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->rope.scaling, RopeScaling::kLinear);
  EXPECT_EQ(config->rope.factor, 4) << "the newer key";
}

TEST_F(GgufConfigTest, TheOlderFactorCountsWhereThereIsNoOther) {
  sizes();
  real("llama.rope.scale_linear", 2);
  string("llama.rope.scaling.type", "linear");
  const auto config = read();
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->rope.scaling, RopeScaling::kLinear);
  EXPECT_EQ(config->rope.factor, 2);
}

TEST_F(GgufConfigTest, AFactorOfNothingDoesNotScale) {
  sizes();
  real("llama.rope.scale_linear", 0);
  const auto config = read();
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->rope.scaling, RopeScaling::kNone);
  EXPECT_EQ(config->rope.factor, 1);
}

TEST_F(GgufConfigTest, NoneScalesNothingWhateverTheFactor) {
  sizes();
  string("llama.rope.scaling.type", "none");
  real("llama.rope.scaling.factor", 4);
  EXPECT_EQ(read()->rope, (RopeConfig{.interleaved = true}));
}

}  // namespace
}  // namespace sluice::models
