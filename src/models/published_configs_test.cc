// The config.json files of published models: read as they are, and what a model of each takes, without its weights.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/kernels.h"
#include "models/config.h"
#include "models/family.h"
#include "models/layers/decoder.h"

namespace sluice::models {
namespace {

struct Published {
  const char* name;
  double billions;       // of parameters that are used, without layers that predict further tokens
  int64_t kv_bytes;      // of a token, in bf16
  int64_t context;       // max_position_embeddings
  double state_mib = 0;  // of a sequence, float32
  bool tied = false;     // the embedding is kept a second time, as the head
};

// Parameters as their model cards have them; bytes are layers * 2 * heads * head_dim * 2, of latent attention
// layers * (kv_lora_rank + qk_rope_head_dim) * 2.
constexpr Published kPublished[] = {
    {"DeepSeek-R1", 671.03, 70'272, 163'840},
    {"DeepSeek-V2", 235.74, 69'120, 163'840},
    {"DeepSeek-V2-Lite", 15.71, 31'104, 163'840},
    {"DeepSeek-V3", 671.03, 70'272, 163'840},
    {"Kimi-K2-Instruct", 1026.4, 70'272, 131'072},
    {"Llama-2-7b-chat-hf", 6.738, 524'288, 4'096},
    {"Llama-3.1-70B-Instruct", 70.55, 327'680, 131'072},
    {"Llama-3.1-8B-Instruct", 8.030, 131'072, 131'072},
    {"Llama-3.2-1B-Instruct", 1.236, 32'768, 131'072, 0, /*tied=*/true},
    {"MiniMax-M2", 228.69, 253'952, 196'608},
    {"MiniMax-Text-01", 456.09, 40'960, 10'240'000, 280},
    {"MiniMax-Text-01-hf", 456.09, 40'960, 10'240'000, 280},
    {"Qwen2.5-7B-Instruct", 7.616, 57'344, 32'768},
    {"Qwen3-235B-A22B", 235.09, 192'512, 40'960},
    {"Qwen3-30B-A3B", 30.53, 98'304, 40'960},
    {"Qwen3-8B", 8.191, 147'456, 40'960},
};

std::filesystem::path folder() { return std::filesystem::path(SLUICE_FIXTURES_DIR) / "published-configs"; }

std::ostream& operator<<(std::ostream& out, const Published& published) { return out << published.name; }

class PublishedConfig : public testing::TestWithParam<Published> {};

TEST_P(PublishedConfig, GivesAModelOfItsSize) {
  std::ifstream file(folder() / fmt::format("{}.json", GetParam().name));
  const auto config = config_from_json(nlohmann::json::parse(file), nullptr);
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->max_position, GetParam().context);

  const auto backend = kernels::make_backend("cpu", 1).value();
  const kernels::DType dtype = kernels::best_dtype();
  const auto element = static_cast<int64_t>(tensor::block_bytes(dtype));
  WeightStore weights(*backend, dtype);
  const auto decoder = find_family(config->architectures[0]).value()->make(*config, weights);
  double want = GetParam().billions * 1e9;
  if (GetParam().tied) want += static_cast<double>(config->vocab_size * config->hidden_size);
  // Norms and biases are in float32, and packing pads a little.
  const double got = static_cast<double>(weights.bytes()) / static_cast<double>(element);
  EXPECT_NEAR(got / want, 1, 0.005);
  EXPECT_EQ(static_cast<int64_t>(decoder->kv().bytes_per_token()), GetParam().kv_bytes / 2 * element);
  EXPECT_EQ(static_cast<double>(decoder->states().bytes_per_sequence()) / (1 << 20), GetParam().state_mib);
}

INSTANTIATE_TEST_SUITE_P(Models, PublishedConfig, testing::ValuesIn(kPublished), [](const auto& info) {
  std::string name = info.param.name;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
  return name;
});

TEST(PublishedConfigs, EachIsTested) {
  std::set<std::string> files, tested;
  for (const auto& entry : std::filesystem::directory_iterator(folder())) files.insert(entry.path().stem());
  for (const Published& row : kPublished) tested.insert(row.name);
  EXPECT_EQ(files, tested);
}

}  // namespace
}  // namespace sluice::models
