#include "engine/emulated_link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

namespace sluice::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class EmulatedLinkTest : public testing::Test {
 protected:
  void TearDown() override { set(nullptr, nullptr); }
  static void set(const char* millis, const char* rate) {
    const auto put = [](const char* name, const char* value) {
      value == nullptr ? unsetenv(name) : setenv(name, value, 1);
    };
    put("SLUICE_EMULATED_LATENCY_MS", millis);
    put("SLUICE_EMULATED_MB_PER_S", rate);
  }
};

TEST_F(EmulatedLinkTest, IsThereWhereOneOfItsVariablesIs) {
  set(nullptr, nullptr);
  EXPECT_FALSE(emulated_link({.tp_size = 4}, 2)->has_value());
  set("0", nullptr);
  EXPECT_FALSE(emulated_link({.tp_size = 4}, 2)->has_value());
  set("1.5", nullptr);
  const auto late = *emulated_link({.tp_size = 4}, 2);
  ASSERT_TRUE(late.has_value());
  EXPECT_EQ(late->latency, std::chrono::microseconds(1500));
  EXPECT_EQ(late->bytes_per_second, 0);
  set(nullptr, "25");
  const auto slow = *emulated_link({.tp_size = 4}, 2);
  ASSERT_TRUE(slow.has_value());
  EXPECT_EQ(slow->latency, Duration{0});
  EXPECT_EQ(slow->bytes_per_second, 25e6);
}

TEST_F(EmulatedLinkTest, LiesBetweenHostsOrBetweenAllRanksOfOne) {
  set("1", nullptr);
  EXPECT_THAT((*emulated_link({.tp_size = 4}, 2))->hosts, ElementsAre(0, 0, 1, 1));
  EXPECT_THAT((*emulated_link({.tp_size = 4}, 4))->hosts, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT((*emulated_link({.tp_size = 4}, 1))->hosts, IsEmpty()) << "each rank has one";
}

TEST_F(EmulatedLinkTest, AValueThatCannotBeIsNamedWithItsRange) {
  for (const char* wrong : {"-1", "1001", "2ms", "nan"}) {
    set(wrong, nullptr);
    const auto link = emulated_link({.tp_size = 2}, 2);
    ASSERT_FALSE(link.ok()) << wrong;
    EXPECT_EQ(link.error().code, ErrorCode::kBadOption);
    EXPECT_THAT(link.error().message, testing::HasSubstr("SLUICE_EMULATED_LATENCY_MS must be in [0, 1000], not '"));
  }
  set(nullptr, "0");
  EXPECT_THAT(emulated_link({.tp_size = 2}, 2).error().message,
              testing::HasSubstr("SLUICE_EMULATED_MB_PER_S must be in [0.01, 1000000"));
}

}  // namespace
}  // namespace sluice::engine
