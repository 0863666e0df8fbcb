#include "engine/server_environment.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace sluice::engine {
namespace {

constexpr const char* kVariables[] = {"SGLANG_REQ_WAITING_TIMEOUT",         "SGLANG_REQ_RUNNING_TIMEOUT",
                                      "SGLANG_HEALTH_CHECK_TIMEOUT",        "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION",
                                      "SGLANG_ENABLE_METRICS_DP_ATTENTION", "SGLANG_TRACE_LEVEL"};

class ServerEnvironmentTest : public ::testing::Test {
 protected:
  void SetUp() override { TearDown(); }
  void TearDown() override {
    for (const char* name : kVariables) unsetenv(name);
  }
  static ServerEnvironment with(const char* name, const char* value) {
    setenv(name, value, 1);
    const auto out = server_environment();
    EXPECT_TRUE(out.ok()) << out.error().message;
    return out.ok() ? *out : ServerEnvironment{};
  }
};

TEST_F(ServerEnvironmentTest, WithoutVariablesNothingIsLimitedButHealth) {
  for (const char* name : kVariables) setenv(name, "", 1);  // as if it were not set
  const auto out = server_environment();
  ASSERT_TRUE(out.ok()) << out.error().message;
  EXPECT_EQ(out->waiting_timeout, std::nullopt);
  EXPECT_EQ(out->running_timeout, std::nullopt);
  EXPECT_EQ(out->health_timeout, std::chrono::seconds(20));
  EXPECT_TRUE(out->health_generates);
  EXPECT_FALSE(out->metrics_of_cooperation);
  EXPECT_EQ(out->trace_level, 3);
}

TEST_F(ServerEnvironmentTest, EachVariableSetsItsOwn) {
  EXPECT_EQ(with("SGLANG_REQ_WAITING_TIMEOUT", "2.9").waiting_timeout, std::chrono::milliseconds(2900));
  EXPECT_EQ(with("SGLANG_REQ_RUNNING_TIMEOUT", "30").running_timeout, std::chrono::seconds(30));
  EXPECT_EQ(with("SGLANG_REQ_RUNNING_TIMEOUT", "-1").running_timeout, std::nullopt) << "SGLang's default";
  EXPECT_EQ(with("SGLANG_REQ_RUNNING_TIMEOUT", "0").running_timeout, std::nullopt);
  EXPECT_EQ(with("SGLANG_HEALTH_CHECK_TIMEOUT", "0.5").health_timeout, std::chrono::milliseconds(500));
  EXPECT_FALSE(with("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "0").health_generates);
  EXPECT_FALSE(with("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "false").health_generates);
  EXPECT_TRUE(with("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "1").health_generates);
  EXPECT_TRUE(with("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "true").health_generates);
  EXPECT_TRUE(with("SGLANG_ENABLE_METRICS_DP_ATTENTION", "1").metrics_of_cooperation);
  EXPECT_FALSE(with("SGLANG_ENABLE_METRICS_DP_ATTENTION", "false").metrics_of_cooperation);
  EXPECT_EQ(with("SGLANG_TRACE_LEVEL", "0").trace_level, 0);
  EXPECT_EQ(with("SGLANG_TRACE_LEVEL", "2").trace_level, 2);
}

TEST_F(ServerEnvironmentTest, WhatCannotBeIsRefusedByName) {
  const struct {
    const char* name;
    std::vector<const char*> wrong;
  } cases[] = {{kVariables[0], {"abc", "-5", "2 s", "nan", "1e10"}},
               {kVariables[1], {"abc", "-5", "1,5", "inf"}},
               {kVariables[2], {"abc", "0", "-1", "3601", "20s"}},
               {kVariables[3], {"no", "2", "off", "-1"}},
               {kVariables[4], {"off", "2"}},
               {kVariables[5], {"high", "-1", "4", "2x"}}};
  for (const auto& c : cases) {
    for (const char* value : c.wrong) {
      setenv(c.name, value, 1);
      const auto out = server_environment();
      ASSERT_FALSE(out.ok()) << c.name << "=" << value;
      EXPECT_EQ(out.error().code, ErrorCode::kBadOption);
      EXPECT_TRUE(out.error().message.starts_with(std::string(c.name) + " must be ")) << out.error().message;
      EXPECT_TRUE(out.error().message.ends_with(std::string("not '") + value + "'")) << out.error().message;
    }
    unsetenv(c.name);
  }
}

}  // namespace
}  // namespace sluice::engine
