#include "engine/api/plan.h"

#include <gtest/gtest.h>

namespace sluice::engine {
namespace {

TEST(PlanTest, PromptsAreCopiedForSoManyTokensTogether) {
  GenerationPlan plan;
  PromptPlan prompt;
  prompt.request.input_ids.assign(size_t{1} << 20, 7);
  ASSERT_TRUE(add_samples(plan, prompt, 17, "r", true).ok());
  EXPECT_EQ(plan.samples.size(), 17u);
  EXPECT_TRUE(add_samples(plan, prompt, 1, "r", true).ok()) << "the first of a prompt is no copy";
  const auto more = add_samples(plan, prompt, 2, "r", true);
  ASSERT_FALSE(more.ok());
  EXPECT_EQ(more.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(more.error().message.find("n is too large for such prompts"), std::string::npos) << more.error().message;
  EXPECT_EQ(plan.samples.size(), 18u);
}

}  // namespace
}  // namespace sluice::engine
