// A step in two halves, of which one rank is missing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "models/batch_split.h"
#include "models/model_fixture.h"
#include "parallel/inproc.h"

namespace sluice::models {
namespace {

using ::testing::HasSubstr;

TEST(OverlappedStepTest, FailsWithTheNameOfTheRankThatIsMissingAndLeavesNothingRunning) {
  auto world = parallel::make_inproc_group(2, {.silence_limit = std::chrono::seconds(2)});
  std::promise<void> failed;
  const auto rank = [&](size_t i) {
    const parallel::Layout layout{.tp_rank = static_cast<int64_t>(i),
                                  .tp_size = 2,
                                  .dp_size = 2,
                                  .ep_size = 2,
                                  .a2a = parallel::MoeAllToAll::kDeepEp,
                                  .dense_data_parallel = true,
                                  .dp_lm_head = true};
    const auto groups = parallel::make_groups(*world[i], layout);
    const auto overlap = parallel::Overlap::make(*world[i], layout);
    ASSERT_TRUE(groups.ok() && overlap.ok());
    if (i == 1) return failed.get_future().wait();
    const auto runner = load_runner({.model_path = folder_of("tiny-deepseek-v3"),
                                     .dtype = "float32",
                                     .max_step_tokens = 16,
                                     .max_step_seqs = 8,
                                     .groups = &*groups,
                                     .overlap = overlap->get()});
    ASSERT_TRUE(runner.ok()) << runner.error().message;
    const Steps steps(**runner);
    const StepArrays arrays({{.row = 0, .ids = {1, 2, 3, 4, 5, 6}}});
    const std::vector<int64_t> tokens{6, 0}, first_half{3, 0};
    StepBatch batch = arrays.view();
    batch.group_tokens = batch.group_logits = tokens;
    batch.first_half = first_half;
    const auto logits = (*runner)->forward(batch);
    failed.set_value();
    ASSERT_FALSE(logits.ok());
    EXPECT_THAT(logits.error().message, HasSubstr("rank 1"));
    EXPECT_THAT(logits.error().message, HasSubstr("half"));
    EXPECT_FALSE((*runner)->forward(batch).ok()) << "a group that failed stays so";
  };
  std::thread other([&] { rank(1); });
  rank(0);
  other.join();
}

}  // namespace
}  // namespace sluice::models
