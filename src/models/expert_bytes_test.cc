// What a step of a model with experts reads of their weights.
#include <gtest/gtest.h>

#include <set>

#include "models/model_fixture.h"

namespace sluice::models {
namespace {

class ExpertBytesTest : public testing::TestWithParam<const char*> {};

// However many tokens and sequences go to an expert, its weights are streamed once in a step, and those of nobody's are
// not.
TEST_P(ExpertBytesTest, EachExpertThatAnybodyChoseIsReadOnceInAStep) {
  kernels::KernelTimes times;
  auto runner = load_runner({.model_path = folder_of(GetParam()),
                             .dtype = "float32",
                             .threads = 1,
                             .max_step_tokens = 128,
                             .max_step_seqs = 8,
                             .record_routing = true,
                             .kernel_times = &times});
  ASSERT_TRUE(runner.ok()) << runner.error().message;
  Steps steps(**runner);
  double per_expert = 0;
  int64_t calls = 0;  // of the products of one step
  // One token alone, which has its experts for itself; then ever more of them, in several sequences.
  for (const int32_t tokens : {1, 2, 7, 40}) {
    std::vector<Piece> pieces;
    for (int32_t row = 0; row < std::min(tokens, 4); ++row) {
      Piece& piece = pieces.emplace_back(Piece{.row = row});
      for (int32_t i = row; i < tokens; i += 4) piece.ids.push_back((37 * i + 11) % 500);
    }
    times.clear();
    const Routing routing = steps.run(pieces).routing;
    int64_t chosen = 0;
    for (int64_t layer = 0; layer < routing.layers; ++layer) {
      const auto first = routing.experts.begin() + layer * tokens * routing.top_k;
      chosen += std::ssize(std::set(first, first + tokens * routing.top_k));
    }
    double read = 0;
    int64_t products = 0;
    for (const auto& [name, time] : times) {
      if (name.find("grouped_linear") == std::string::npos) continue;
      read += time.bytes;
      products += time.calls;
    }
    if (tokens == 1) {
      ASSERT_EQ(chosen, routing.layers * routing.top_k);
      ASSERT_GT(read, 0);
      per_expert = read / static_cast<double>(chosen);
      calls = products;
    }
    EXPECT_DOUBLE_EQ(read, per_expert * static_cast<double>(chosen)) << tokens << " tokens";
    EXPECT_EQ(products, calls) << "a product of all experts at once, whatever the batch";
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, ExpertBytesTest,
                         testing::Values("tiny-qwen3-moe", "tiny-deepseek-v3", "tiny-minimax-m2"));

}  // namespace
}  // namespace sluice::models
