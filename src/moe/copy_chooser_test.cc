#include "moe/copy_chooser.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace sluice::moe {
namespace {

// Random copies of one expert, on a rank whose tokens may come in two halves.
TEST(CopyChooserTest, TheSecondHalfOfABatchDrawsOtherNumbersThanTheFirst) {
  constexpr int64_t kTokens = 64, kTopK = 2;
  const ExpertMap map{.logical = 2,
                      .physical = 16,
                      .location = {{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1}},
                      .choice = CopyChoice::kDynamic};
  const parallel::Layout layout{.tp_size = 2, .ep_size = 2, .a2a = parallel::MoeAllToAll::kDeepEp};
  const auto backend = kernels::make_backend("cpu", 1).value();
  const auto stream = backend->make_stream();
  const kernels::Context context{backend.get(), stream.get()};
  CopyChooser chooser(*backend, map, layout);
  ASSERT_TRUE(chooser.allocate(context).ok());
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < kTokens; ++i) ids.insert(ids.end(), {0, 1});
  const auto choose = [&](int64_t before, int64_t n) {
    std::vector<int32_t> copies(static_cast<size_t>(n * kTopK));
    chooser.choose(context, 0, 9, before, ids.data(), copies.data(), n, kTopK);
    backend->synchronize(context);
    return copies;
  };
  const std::vector<int32_t> whole = choose(0, kTokens);
  std::vector<int32_t> halves = choose(0, kTokens / 2);
  const std::vector<int32_t> second = choose(kTokens / 2, kTokens / 2);
  EXPECT_NE(second, halves);
  halves.insert(halves.end(), second.begin(), second.end());
  EXPECT_EQ(halves, whole);
}

}  // namespace
}  // namespace sluice::moe
