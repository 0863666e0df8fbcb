// What every family must do, held against reference logits and greedy tokens of an independent float32 implementation:
// each fixture on each device and in each arithmetic.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "base/rng.h"
#include "kernels/kernels.h"
#include "models/family.h"
#include "models/model_fixture.h"
#include "models/runner.h"
#include "tensor/safetensors.h"

namespace sluice::models {
namespace {

struct Case {
  std::string fixture;
  std::string device;
  std::string dtype;
  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << c.fixture << "_" << c.device << "_" << c.dtype;
  }
};

struct Prompt {
  std::vector<int32_t> input_ids;
  std::vector<int32_t> greedy_ids;
  std::vector<float> margins;
  std::vector<float> logits;  // [positions, vocab]
};

std::vector<Prompt> read_prompts(const std::string& fixture) {
  std::ifstream file(folder_of(fixture) + "/reference.json");
  const auto json = nlohmann::json::parse(file);
  auto source = tensor::open_safetensors_file(folder_of(fixture) + "/reference.safetensors");
  std::vector<Prompt> prompts;
  for (const auto& item : json["prompts"]) {
    Prompt prompt{.input_ids = item["input_ids"], .greedy_ids = item["greedy_ids"], .margins = item["top1_minus_top2"]};
    const auto stored = (*source)->find("logits." + std::to_string(prompts.size())).value();
    prompt.logits.resize(static_cast<size_t>(stored.elements()));
    stored.read_rows(0, stored.shape[0], prompt.logits.data());
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

class ModelConformance : public testing::TestWithParam<Case> {
 protected:
  std::unique_ptr<Runner> load(int threads = 1) { return load_as(GetParam().dtype, threads); }
  std::unique_ptr<Runner> load_as(const std::string& dtype, int threads = 1) {
    const Case& c = GetParam();
    auto runner = load_runner({.model_path = folder_of(c.fixture),
                               .device = c.device,
                               .dtype = dtype,
                               .threads = threads,
                               .max_step_tokens = 512,
                               .max_step_seqs = 8,
                               .record_routing = true});
    EXPECT_TRUE(runner.ok()) << runner.error().message;
    return std::move(*runner);
  }
  const Closeness& closeness() {
    if (!closeness_) closeness_.emplace(GetParam().fixture, GetParam().dtype);
    return *closeness_;
  }
  float tolerance(const std::vector<float>& reference) { return closeness().tolerance(reference); }
  void expect_same(const Output& got, const Output& want, int runs = 1) { closeness().expect_same(got, want, runs); }

 private:
  std::optional<Closeness> closeness_;
};

int32_t best_of(const float* logits, int64_t vocab) {
  return static_cast<int32_t>(std::max_element(logits, logits + vocab) - logits);
}

// float32 against the reference; bf16 against float32 with the same experts, which the reference did not choose after a
// near tie.
TEST_P(ModelConformance, LogitsEqualTheReferenceWithinTheRoundingOfTheArithmetic) {
  auto runner = load(), exact = load_as("float32");
  Steps steps(*runner), exact_steps(*exact);
  for (const Prompt& prompt : read_prompts(GetParam().fixture)) {
    const std::vector<Piece> whole{{.row = 1, .ids = prompt.input_ids}};
    const Output got = steps.run(whole);
    Output want = exact_steps.run(whole, got.routing);
    if (GetParam().dtype == "float32") want.logits = prompt.logits;
    expect_same(got, want);
  }
}

TEST_P(ModelConformance, GreedyTokensEqualTheReferenceButForNearTies) {
  auto runner = load(), exact = load_as("float32");
  Steps steps(*runner), exact_steps(*exact);
  const int64_t vocab = runner->info().vocab_size;
  for (const Prompt& prompt : read_prompts(GetParam().fixture)) {
    const float near_tie = 2 * tolerance(prompt.logits);
    Piece piece{.row = 2, .ids = prompt.input_ids};
    for (size_t step = 0; step < prompt.greedy_ids.size(); ++step) {
      const Output got = steps.run({piece}), want = exact_steps.run({piece}, got.routing);
      expect_same(got, want);
      const int32_t chosen = best_of(got.logits.data() + static_cast<int64_t>(got.logits.size()) - vocab, vocab);
      const float* exact_logits = want.logits.data() + static_cast<int64_t>(want.logits.size()) - vocab;
      if (GetParam().dtype == "float32" && prompt.margins[step] > near_tie) {
        ASSERT_EQ(chosen, prompt.greedy_ids[step]) << "step " << step << " margin " << prompt.margins[step];
      }
      EXPECT_LT(exact_logits[best_of(exact_logits, vocab)] - exact_logits[chosen], near_tie) << "step " << step;
      // The reference's token is forced, so that one near tie does not end the comparison.
      piece = {
          .row = 2, .ids = {prompt.greedy_ids[step]}, .cached = piece.cached + static_cast<int32_t>(piece.ids.size())};
    }
  }
}

TEST_P(ModelConformance, AnyChunkingGivesTheSameLogitsAsOnePrefill) {
  auto runner = load();
  Steps steps(*runner);
  Rng rng(17);
  std::vector<int32_t> ids(100);
  for (auto& id : ids) id = static_cast<int32_t>(rng.below(512));
  const Output whole = steps.run({{.row = 0, .ids = ids}});
  for (const size_t chunk : {size_t{1}, size_t{7}, size_t{64}}) {
    SCOPED_TRACE(chunk);
    for (size_t at = 0; at < ids.size(); at += chunk) {
      const auto end = std::min(ids.size(), at + chunk);
      const Output want = part_of(whole, at, end);
      const Output piece =
          steps.run({{.row = 3,
                      .ids = {ids.begin() + static_cast<int64_t>(at), ids.begin() + static_cast<int64_t>(end)},
                      .cached = static_cast<int32_t>(at)}},
                    want.routing);
      expect_same(want, piece, /*runs=*/2);
    }
  }
}

TEST_P(ModelConformance, StrangersInTheBatchDoNotMatter) {
  auto runner = load();
  Steps steps(*runner);
  const auto prompts = read_prompts(GetParam().fixture);
  const Output together = steps.run({{.row = 4, .ids = prompts[1].input_ids},
                                     {.row = 5, .ids = prompts[0].input_ids},
                                     {.row = 6, .ids = prompts[2].input_ids}});
  const size_t first = prompts[1].input_ids.size(), end = first + prompts[0].input_ids.size();
  const Output mine = part_of(together, first, end);
  expect_same(mine, steps.run({{.row = 0, .ids = prompts[0].input_ids}}, mine.routing), /*runs=*/2);
}

TEST_P(ModelConformance, TheNumberOfThreadsDoesNotChangeABit) {
  const auto prompts = read_prompts(GetParam().fixture);
  const auto run = [&](int threads) {
    auto runner = load(threads);
    Steps steps(*runner);
    return steps.run({{.row = 0, .ids = prompts[0].input_ids}, {.row = 1, .ids = prompts[1].input_ids}}).logits;
  };
  EXPECT_EQ(run(1), run(3));
}

TEST_P(ModelConformance, AStepEndsBeforeTheLayerBeforeWhichItIsToldToAndLeavesNoTrace) {
  auto runner = load();
  Steps steps(*runner);
  const Prompt prompt = read_prompts(GetParam().fixture).front();
  const std::vector<Piece> whole{{.row = 1, .ids = prompt.input_ids}};
  const Output want = steps.run(whole);
  int asked = 0;
  runner->ask_between_layers([&] { return ++asked < 2; });
  const auto ended = runner->forward(StepArrays(whole).view());
  ASSERT_FALSE(ended.ok());
  EXPECT_EQ(ended.error().code, ErrorCode::kCancelled);
  EXPECT_EQ(asked, 2) << "nothing is computed after the no";
  runner->ask_between_layers({});
  EXPECT_EQ(steps.run(whole).logits, want.logits) << "in the same row";
}

TEST_P(ModelConformance, AnIdleBatchOfZeroRowsIsLegal) {
  auto runner = load();
  Steps steps(*runner);
  EXPECT_TRUE(steps.run(std::vector<Piece>()).logits.empty());
}

TEST(ModelFiles, ShardsGiveTheLogitsOfOneFile) {
  const auto run = [](const std::string& fixture) {
    auto runner = load_runner({.model_path = folder_of(fixture), .dtype = "float32", .max_step_tokens = 64});
    EXPECT_TRUE(runner.ok()) << runner.error().message;
    return Steps(**runner).run({{.row = 0, .ids = {1, 2, 3, 4, 5}}}).logits;
  };
  EXPECT_EQ(run("tiny-qwen3-moe-sharded"), run("tiny-qwen3-moe"));
}

TEST(ModelExperts, TheTokensOfEachAreCounted) {
  auto runner = load_runner({.model_path = folder_of("tiny-qwen3-moe"), .max_step_tokens = 64, .record_routing = true});
  ASSERT_TRUE(runner.ok()) << runner.error().message;
  Steps steps(**runner);
  std::vector<std::vector<int64_t>> want(3, std::vector<int64_t>(8));
  EXPECT_EQ((*runner)->expert_loads(), want);
  for (int32_t step = 0; step < 3; ++step) {
    const Output output = steps.run({{.row = step, .ids = {1, 2, 3, 4, 5}}, {.row = 7, .ids = {step}, .cached = step}});
    for (size_t layer = 0; layer < 3; ++layer) {
      for (size_t token = 0; token < 6; ++token) {
        for (const int32_t expert : output.experts(layer, token)) ++want[layer][static_cast<size_t>(expert)];
      }
    }
  }
  EXPECT_EQ((*runner)->expert_loads(), want);
}

// Every checkpoint among the fixtures is held to this without being named here.
std::vector<std::string> fixtures() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(SLUICE_FIXTURES_DIR)) {
    if (std::filesystem::exists(entry.path() / "reference.safetensors")) names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

TEST(ModelFamilies, EachHasAFixture) {
  std::set<std::string> tested;
  for (const std::string& fixture : fixtures()) {
    std::ifstream file(folder_of(fixture) + "/config.json");
    tested.insert(nlohmann::json::parse(file)["architectures"][0].get<std::string>());
  }
  for (const FamilyRow& row : families())
    EXPECT_TRUE(tested.contains(std::string(row.architecture))) << row.architecture;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const std::string& fixture : fixtures()) {
    for (const auto& backend : kernels::backends()) {
      all.push_back({fixture, std::string(backend.name), "float32"});
      if (kernels::best_dtype() == kernels::DType::kBf16)
        all.push_back({fixture, std::string(backend.name), "bfloat16"});
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Fixtures, ModelConformance, testing::ValuesIn(cases()), [](const auto& info) {
  std::string name = info.param.fixture + "_" + info.param.device + "_" + info.param.dtype;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace sluice::models
