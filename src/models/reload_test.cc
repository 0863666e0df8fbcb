// Other weights in place of those that are there.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/clock.h"
#include "models/runner.h"
#include "parallel/shm.h"
#include "tensor/safetensors.h"

namespace sluice::models {
namespace {

namespace fs = std::filesystem;

const std::string kLlama = std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama";

// A copy of a fixture, with other weights after change(): a model of the same shape that says other things.
class OtherWeights {
 public:
  explicit OtherWeights(const std::string& name, const std::string& of = kLlama)
      : folder_(fs::temp_directory_path() / ("sluice-reload-" + name + "-" + std::to_string(getpid()))) {
    fs::remove_all(folder_);
    fs::copy(of, folder_);
  }
  ~OtherWeights() { fs::remove_all(folder_); }
  std::string path() const { return folder_.string(); }
  fs::path weights() const { return folder_ / "model.safetensors"; }

  // config.json with `members` in place of its own (RFC 7396).
  void configure(const nlohmann::json& members) {
    const fs::path file = folder_ / "config.json";
    auto config = nlohmann::json::parse(std::ifstream(file));
    config.merge_patch(members);
    std::ofstream(file) << config;
  }

  // One matrix is all zeros.
  void change() {
    std::fstream file(weights(), std::ios::in | std::ios::out | std::ios::binary);
    uint64_t header = 0;
    file.read(reinterpret_cast<char*>(&header), 8);
    std::string text(header, '\0');
    file.read(text.data(), static_cast<std::streamsize>(header));
    const auto tensor = nlohmann::json::parse(text)["model.layers.0.mlp.down_proj.weight"];
    const auto begin = tensor["data_offsets"][0].get<uint64_t>(), end = tensor["data_offsets"][1].get<uint64_t>();
    std::string zeros(end - begin, '\0');
    file.seekp(static_cast<std::streamoff>(8 + header + begin));
    file.write(zeros.data(), static_cast<std::streamsize>(zeros.size()));
  }

 private:
  const fs::path folder_;
};

std::unique_ptr<Runner> load(const std::string& path, int shared_fd = -1, const std::string& device = "cpu") {
  auto runner = load_runner({.model_path = path,
                             .device = device,
                             .dtype = "float32",
                             .max_step_tokens = 16,
                             .max_step_seqs = 2,
                             .shared_weights_fd = shared_fd});
  EXPECT_TRUE(runner.ok()) << runner.error().message;
  EXPECT_TRUE((*runner)->allocate_kv({.slots = 32, .table_rows = 1, .table_width = 16}).ok());
  for (int32_t p = 0; p < 16; ++p) (*runner)->slot_table()[static_cast<size_t>(p)] = p + 1;
  return std::move(*runner);
}

std::vector<float> logits(Runner& runner) {
  const std::vector<int32_t> tokens{3, 14, 15, 9}, positions{0, 1, 2, 3}, slots{1, 2, 3, 4}, starts{0, 4}, lengths{4},
      rows{0}, wanted{3};
  const auto out = runner.forward({.token_ids = tokens,
                                   .positions = positions,
                                   .kv_slots = slots,
                                   .query_start = starts,
                                   .seq_lens = lengths,
                                   .table_rows = rows,
                                   .logit_rows = wanted});
  EXPECT_TRUE(out.ok());
  return {out->begin(), out->end()};
}

TEST(ReloadTest, TheNewWeightsAreThoseOfTheirFilesAndTheOldOnesComeBack) {
  OtherWeights other("new");
  other.change();
  for (const char* device : {"cpu", "sim"}) {
    const auto runner = load(kLlama, -1, device);
    const auto before = logits(*runner);
    ASSERT_TRUE(runner->reload(other.path(), {}).ok());
    const auto changed = logits(*runner);
    EXPECT_EQ(changed, logits(*load(other.path(), -1, device))) << device;
    EXPECT_NE(changed, before) << device;
    ASSERT_TRUE(runner->reload(kLlama, {}).ok());
    EXPECT_EQ(logits(*runner), before) << device;
  }
}

// Two ranks of an instance, each loading on a thread of its own.
class TwoRanks {
 public:
  TwoRanks() : segment_(parallel::ShmSegment::create(2).value()) {
    for (int rank = 0; rank < 2; ++rank) {
      world_.push_back(parallel::join_shm(segment_, rank, 2).value());
      groups_.push_back(parallel::Groups{});
    }
    on_each([&](size_t rank) {
      auto made = parallel::make_groups(*world_[rank], {.tp_rank = static_cast<int64_t>(rank), .tp_size = 2});
      ASSERT_TRUE(made.ok()) << made.error().message;
      groups_[rank] = std::move(*made);
    });
  }
  static void on_each(const std::function<void(size_t)>& body) {
    std::jthread other([&] { body(1); });
    body(0);
  }
  Result<std::unique_ptr<Runner>> load(size_t rank, const std::string& path, size_t memory_bytes = 0) {
    return load_runner({.model_path = path,
                        .dtype = "float32",
                        .max_step_tokens = 16,
                        .max_step_seqs = 2,
                        .memory_bytes = memory_bytes,
                        .groups = &groups_[rank]});
  }
  // Whether rank 0 comes to wait for the other one.
  bool first_waits() const {
    const TimePoint until = real_clock().now() + std::chrono::seconds(30);
    while (segment_->signs()[0].waits_for()[0] != 1) {
      if (real_clock().now() > until) return false;
      std::this_thread::yield();
    }
    return true;
  }

 private:
  std::shared_ptr<parallel::ShmSegment> segment_;
  std::vector<std::unique_ptr<parallel::Communicator>> world_;
  std::vector<parallel::Groups> groups_;
};

// What a rank has opened is what it loads, however long it waits for the others before it reads.
TEST(LoadTest, FilesThatChangeOnceTheyAreOpenedAreOthers) {
  OtherWeights files("changed");
  TwoRanks ranks;
  TwoRanks::on_each([&](size_t rank) {
    if (rank == 1) {
      EXPECT_TRUE(ranks.first_waits());
      files.change();
      fs::last_write_time(files.weights(), fs::last_write_time(files.weights()) + std::chrono::seconds(1));
    }
    const auto runner = ranks.load(rank, files.path());
    ASSERT_TRUE(runner.ok()) << runner.error().message;
    const auto read = (*runner)->read_weight("model.norm.weight", 1);
    if (rank == 1) {
      EXPECT_TRUE(read.ok()) << read.error().message;
    } else {
      ASSERT_FALSE(read.ok());
      EXPECT_EQ(read.error().code, ErrorCode::kUnavailable);
      EXPECT_NE(read.error().message.find("have changed"), std::string::npos) << read.error().message;
    }
  });
}

// Nobody waits for the part of a rank that has no room for its own.
TEST(LoadTest, WhatOneRankHasNoRoomForFailsBothByTheReason) {
  TwoRanks ranks;
  TwoRanks::on_each([&](size_t rank) {
    const auto runner = ranks.load(rank, kLlama, rank == 0 ? 1 : 0);
    ASSERT_FALSE(runner.ok());
    EXPECT_NE(runner.error().message.find("this rank's weights take"), std::string::npos) << runner.error().message;
  });
}

TEST(ReloadTest, RanksThatShareWeightsReadThemOnce) {
  OtherWeights other("shared");
  other.change();
  const int fd = ::memfd_create("weights", MFD_CLOEXEC);
  ASSERT_GE(fd, 0);
  const auto first = load(kLlama, fd), second = load(kLlama, fd);
  ASSERT_TRUE(first->reload(other.path(), {}).ok());
  const auto changed = logits(*first);
  ASSERT_TRUE(second->reload(other.path(), {}).ok());
  EXPECT_EQ(logits(*second), changed);
  EXPECT_EQ(changed, logits(*load(other.path())));
  // One that starts later finds them there.
  EXPECT_EQ(logits(*load(other.path(), fd)), changed);
  ::close(fd);
}

TEST(ReloadTest, AnotherModelIsRefusedByWhatDiffers) {
  const auto runner = load(kLlama);
  const auto before = logits(*runner);
  const auto refused = runner->reload(std::string(SLUICE_FIXTURES_DIR) + "/tiny-qwen2", {});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(refused.error().message.find("architecture"), std::string::npos) << refused.error().message;
  EXPECT_FALSE(runner->reload("/no/such/folder", {}).ok());
  EXPECT_EQ(logits(*runner), before);
}

// Numbers that no tensor's shape tells.
TEST(ReloadTest, WhatIsComputedOtherwiseIsRefusedByName) {
  const std::string deepseek = std::string(SLUICE_FIXTURES_DIR) + "/tiny-deepseek-v3";
  const struct {
    std::string model;
    nlohmann::json members;
    std::string_view named;
  } cases[] = {
      {deepseek, {{"routed_scaling_factor", 1.5}}, "routed_scaling_factor is 1.5, not 2.5"},
      {deepseek, {{"topk_group", 3}}, "kept expert groups is 3, not 2"},
      {deepseek, {{"rope_scaling", {{"mscale", 0.707}}}}, "mscale"},
      {kLlama, {{"rope_scaling", {{"low_freq_factor", 2.0}}}}, "low_freq_factor is 2, not 1"},
  };
  for (const auto& c : cases) {
    OtherWeights other("other-numbers", c.model);
    other.configure(c.members);
    const auto runner = load(c.model);
    const auto before = logits(*runner);
    const auto refused = runner->reload(other.path(), {});
    ASSERT_FALSE(refused.ok()) << c.named;
    EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(refused.error().message.find(c.named), std::string::npos) << refused.error().message;
    EXPECT_EQ(logits(*runner), before);
  }
}

TEST(ReloadTest, PositionsAndTheEndsOfATextMayDiffer) {
  OtherWeights other("other-defaults");
  other.change();
  other.configure({{"max_position_embeddings", 1024}, {"eos_token_id", 7}});
  const auto runner = load(kLlama);
  EXPECT_TRUE(runner->reload(other.path(), {}).ok());
}

TEST(ReloadTest, AfterAFailureTheOldWeightsAreThereAgain) {
  OtherWeights other("broken");
  // A tensor that is read late has another name.
  std::fstream file(other.weights(), std::ios::in | std::ios::out | std::ios::binary);
  std::string text(1 << 16, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  file.clear();
  const auto at = text.find("\"model.norm.weight\"");
  ASSERT_NE(at, std::string::npos);
  file.seekp(static_cast<std::streamoff>(at));
  file << "\"model.morn.weight\"";
  file.close();
  other.change();

  const auto runner = load(kLlama);
  const auto before = logits(*runner);
  const auto failed = runner->reload(other.path(), {});
  ASSERT_FALSE(failed.ok());
  EXPECT_NE(failed.error().message.find("model.norm.weight"), std::string::npos) << failed.error().message;
  EXPECT_EQ(logits(*runner), before);
}

TEST(ReloadTest, TheHiddenStateTimesTheHeadIsTheLogits) {
  const auto runner = load(kLlama);
  const auto want = logits(*runner);
  const auto hidden = runner->hidden(0);
  ASSERT_EQ(hidden.size(), static_cast<size_t>(runner->info().hidden_size));
  auto source = tensor::open_safetensors(kLlama);
  ASSERT_TRUE(source.ok());
  auto head = (*source)->find("lm_head.weight");
  if (!head.ok()) head = (*source)->find("model.embed_tokens.weight");
  std::vector<float> row(hidden.size());
  for (int64_t token = 0; token < runner->info().vocab_size; token += 17) {
    head->read_rows(token, 1, row.data());
    double sum = 0, norm = 0;
    for (size_t i = 0; i < row.size(); ++i) {
      sum += static_cast<double>(row[i]) * static_cast<double>(hidden[i]);
      norm += std::abs(static_cast<double>(row[i]) * static_cast<double>(hidden[i]));
    }
    // Rounding of a float32 sum of that many terms.
    EXPECT_NEAR(want[static_cast<size_t>(token)], sum, norm * static_cast<double>(row.size()) * 0x1p-24);
  }
}

}  // namespace
}  // namespace sluice::models
