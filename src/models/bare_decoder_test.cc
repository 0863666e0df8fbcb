// A decoder that is published by itself, to embed texts: the tiny checkpoint without "model." before its tensors' names
// and without lm_head.weight, though config.json does not tie it to the embedding.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "models/runner.h"

namespace sluice::models {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

const std::string kWhole = std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama";

class BareDecoder {
 public:
  BareDecoder() {
    fs::remove_all(folder_);
    fs::copy(kWhole, folder_);
    std::ifstream in(kWhole + "/model.safetensors", std::ios::binary);
    uint64_t size = 0;
    in.read(reinterpret_cast<char*>(&size), 8);
    std::string header(size, '\0');
    in.read(header.data(), static_cast<std::streamsize>(size));
    const std::string data{std::istreambuf_iterator<char>(in), {}};
    Json tensors;
    const Json whole = Json::parse(header);
    for (const auto& [name, entry] : whole.items()) {
      const std::string prefix = "model.";
      if (name != "lm_head.weight") tensors[name.starts_with(prefix) ? name.substr(prefix.size()) : name] = entry;
    }
    const std::string text = tensors.dump();
    size = text.size();
    std::ofstream out(folder_ / "model.safetensors", std::ios::binary);
    out.write(reinterpret_cast<const char*>(&size), 8);
    out << text << data;
  }
  ~BareDecoder() { fs::remove_all(folder_); }
  std::string path() const { return folder_.string(); }

 private:
  const fs::path folder_ = fs::temp_directory_path() / ("sluice-bare-" + std::to_string(getpid()));
};

std::unique_ptr<Runner> load(const std::string& path) {
  auto runner = load_runner(
      {.model_path = path, .dtype = "float32", .max_step_tokens = 16, .max_step_seqs = 2, .embeds_only = true});
  EXPECT_TRUE(runner.ok()) << runner.error().message;
  return runner.ok() ? std::move(*runner) : nullptr;
}

std::vector<float> hidden_of_last_token(Runner& runner) {
  EXPECT_TRUE(runner.allocate_kv({.slots = 32, .table_rows = 1, .table_width = 16}).ok());
  for (int32_t p = 0; p < 16; ++p) runner.slot_table()[static_cast<size_t>(p)] = p + 1;
  const std::vector<int32_t> tokens{3, 14, 15}, positions{0, 1, 2}, slots{1, 2, 3}, starts{0, 3}, lengths{3}, rows{0},
      wanted{2};
  EXPECT_TRUE(runner
                  .forward({.token_ids = tokens,
                            .positions = positions,
                            .kv_slots = slots,
                            .query_start = starts,
                            .seq_lens = lengths,
                            .table_rows = rows,
                            .logit_rows = wanted})
                  .ok());
  return runner.hidden(0);
}

TEST(BareDecoderTest, HasTheHiddenStatesOfTheWholeModel) {
  const BareDecoder checkpoint;
  const auto bare = load(checkpoint.path()), whole = load(kWhole);
  ASSERT_TRUE(bare && whole);
  EXPECT_EQ(hidden_of_last_token(*bare), hidden_of_last_token(*whole));
}

TEST(BareDecoderTest, GeneratesNothing) {
  const BareDecoder checkpoint;
  const auto refused = load_runner({.model_path = checkpoint.path()});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().message,
            checkpoint.path() + ": without lm_head.weight it generates nothing; with --is-embedding it embeds texts");
}

TEST(BareDecoderTest, WeightsAreReadAndReplacedAsOfAnyModel) {
  const BareDecoder checkpoint;
  const auto bare = load(checkpoint.path());
  ASSERT_TRUE(bare);
  for (const char* name : {"norm.weight", "model.norm.weight"}) {
    const auto norm = bare->read_weight(name, 64);
    ASSERT_TRUE(norm.ok()) << norm.error().message;
    EXPECT_EQ(norm->shape, std::vector<int64_t>{64});
  }
  const auto reloaded = bare->reload(checkpoint.path(), {});
  EXPECT_TRUE(reloaded.ok()) << reloaded.error().message;
}

}  // namespace
}  // namespace sluice::models
