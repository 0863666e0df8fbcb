#include "base/check.h"

#include <gtest/gtest.h>

namespace sluice {
namespace {

TEST(CheckTest, LooksAtItsConditionOnce) {
  int looked = 0;
  SLUICE_CHECK(++looked > 0, "not reached");
  EXPECT_EQ(looked, 1);
}

TEST(CheckTest, DoesNotFormatWhatHolds) {
  int formatted = 0;
  SLUICE_CHECK(true, "{}", ++formatted);
  EXPECT_EQ(formatted, 0);
}

TEST(CheckDeathTest, AbortsWithThePlaceTheConditionAndTheValues) {
  const int slots = 3;
  EXPECT_DEATH(SLUICE_CHECK(slots > 4, "{} slots for {} requests", slots, 5),
               "check_test.cc:[0-9]+: check failed: slots > 4: 3 slots for 5 requests");
  EXPECT_DEATH(SLUICE_CHECK(slots == 0), "check failed: slots == 0");
}

}  // namespace
}  // namespace sluice
