// A checkpoint with a head for labels: the tiny one with score.weight in place of lm_head.weight.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "models/runner.h"

namespace sluice::models {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

const std::string kDecoder = std::string(SLUICE_FIXTURES_DIR) + "/tiny-qwen2";
constexpr int64_t kLabels = 3, kHidden = 64;

class Classifier {
 public:
  explicit Classifier(int64_t labels) : folder_(fs::temp_directory_path() / fmt::format("sluice-labels-{}", getpid())) {
    fs::remove_all(folder_);
    fs::copy(kDecoder, folder_);
    Json config = Json::parse(std::ifstream(folder_ / "config.json"));
    config["architectures"] = {"Qwen2ForSequenceClassification"};
    config["id2label"] = {{"0", "good"}, {"1", "bad"}, {"2", "neither"}};
    std::ofstream(folder_ / "config.json") << config;
    for (int64_t i = 0; i < labels * kHidden; ++i) head_.push_back(std::sin(static_cast<float>(i)));
    write(labels);
  }
  ~Classifier() { fs::remove_all(folder_); }
  std::string path() const { return folder_.string(); }
  double score(size_t label, const std::vector<float>& hidden) const {
    double sum = 0;
    for (size_t i = 0; i < hidden.size(); ++i) {
      sum += static_cast<double>(head_[label * hidden.size() + i]) * static_cast<double>(hidden[i]);
    }
    return sum;
  }

 private:
  void write(int64_t labels) {
    std::ifstream in(kDecoder + "/model.safetensors", std::ios::binary);
    uint64_t size = 0;
    in.read(reinterpret_cast<char*>(&size), 8);
    std::string header(size, '\0');
    in.read(header.data(), static_cast<std::streamsize>(size));
    const std::string data{std::istreambuf_iterator<char>(in), {}};
    Json tensors = Json::parse(header);
    tensors.erase("lm_head.weight");
    const auto bytes = head_.size() * sizeof(float);
    tensors["score.weight"] = {
        {"dtype", "F32"}, {"shape", {labels, kHidden}}, {"data_offsets", {data.size(), data.size() + bytes}}};
    std::string text = tensors.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    std::ofstream out(folder_ / "model.safetensors", std::ios::binary);
    size = text.size();
    out.write(reinterpret_cast<const char*>(&size), 8);
    out << text << data;
    out.write(reinterpret_cast<const char*>(head_.data()), static_cast<std::streamsize>(bytes));
  }

  const fs::path folder_;
  std::vector<float> head_;
};

Result<std::unique_ptr<Runner>> load(const std::string& path, const std::string& device) {
  return load_runner(
      {.model_path = path, .device = device, .dtype = "float32", .max_step_tokens = 16, .max_step_seqs = 2});
}

std::vector<float> hidden_of_last_token(Runner& runner) {
  if (runner.slot_table().empty()) {
    EXPECT_TRUE(runner.allocate_kv({.slots = 32, .table_rows = 1, .table_width = 16}).ok());
    for (int32_t p = 0; p < 16; ++p) runner.slot_table()[static_cast<size_t>(p)] = p + 1;
  }
  const std::vector<int32_t> tokens{3, 14, 15, 9}, positions{0, 1, 2, 3}, slots{1, 2, 3, 4}, starts{0, 4}, lengths{4},
      rows{0}, wanted{3};
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

TEST(ClassifierTest, ScoresAreTheHeadTimesTheHiddenState) {
  const Classifier checkpoint(kLabels);
  for (const char* device : {"cpu", "sim"}) {
    auto classifier = load(checkpoint.path(), device), decoder = load(kDecoder, device);
    ASSERT_TRUE(classifier.ok()) << classifier.error().message;
    EXPECT_EQ((*classifier)->info().num_labels, kLabels);
    EXPECT_EQ((*decoder)->info().num_labels, 0);
    const auto scores = hidden_of_last_token(**classifier), hidden = hidden_of_last_token(**decoder);
    ASSERT_EQ(scores.size(), static_cast<size_t>(kLabels));
    ASSERT_EQ(hidden.size(), static_cast<size_t>(kHidden));
    for (size_t label = 0; label < scores.size(); ++label) {
      EXPECT_NEAR(scores[label], checkpoint.score(label, hidden), 1e-4) << device;
    }
  }
}

TEST(ClassifierTest, AHeadOfOtherLabelsIsRefusedByName) {
  const Classifier checkpoint(kLabels + 1);
  const auto refused = load(checkpoint.path(), "cpu");
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("score.weight"), std::string::npos) << refused.error().message;
}

TEST(ClassifierTest, OtherWeightsBringTheirOwnHead) {
  const Classifier checkpoint(kLabels);
  auto runner = load(checkpoint.path(), "cpu").value();
  const auto before = hidden_of_last_token(*runner);
  EXPECT_TRUE(runner->reload(checkpoint.path(), {}).ok());
  EXPECT_EQ(hidden_of_last_token(*runner), before);
  const auto refused = runner->reload(kDecoder, {});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(hidden_of_last_token(*runner), before);
}

}  // namespace
}  // namespace sluice::models
