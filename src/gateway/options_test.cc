#include "gateway/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gateway/policy/policy.h"

namespace sluice::gateway {
namespace {

using ::testing::HasSubstr;

Result<void> check(std::vector<std::string> flags) {
  const auto options = gateway_option_table().parse(flags);
  if (!options.ok()) return options.error();
  return validate(*options);
}

TEST(GatewayOptionsTest, TheDefaultsAreThoseOfTheReference) {
  const auto options = gateway_option_table().defaults();
  EXPECT_EQ(options.host, "0.0.0.0");
  EXPECT_EQ(options.port, 30000);
  EXPECT_EQ(options.policy, "cache_aware");
  EXPECT_EQ(options.cache_threshold, 0.3);
  EXPECT_EQ(options.balance_abs_threshold, 64);
  EXPECT_EQ(options.balance_rel_threshold, 1.5);
  EXPECT_EQ(options.eviction_interval_secs, 60);
  EXPECT_EQ(options.max_tree_size, 67108864);
  EXPECT_EQ(options.max_concurrent_requests, -1);
  EXPECT_EQ(options.queue_size, 100);
  EXPECT_EQ(options.queue_timeout_secs, 60);
  EXPECT_EQ(options.retry_max_retries, 5);
  EXPECT_EQ(options.cb_failure_threshold, 10);
  EXPECT_EQ(options.health_check_interval_secs, 60);
  EXPECT_EQ(options.prometheus_port, 29000);
  EXPECT_EQ(options.request_timeout_secs, 1800);
  EXPECT_EQ(options.shutdown_grace_period_secs, 180);
  EXPECT_TRUE(validate(options).ok());
}

TEST(GatewayOptionsTest, TheCommandsOfTheGuideAreTaken) {
  EXPECT_TRUE(
      check({"--worker-urls", "http://worker1:8000", "http://worker2:8000", "--policy", "cache_aware", "--host",
             "0.0.0.0", "--port", "30000", "--cache-threshold", "0.5", "--balance-abs-threshold", "32",
             "--balance-rel-threshold", "1.5", "--eviction-interval-secs", "120", "--max-tree-size", "67108864"})
          .ok());
  for (const char* policy : {"cache_aware", "round_robin", "random", "power_of_two"}) {
    EXPECT_TRUE(check({"--policy", policy}).ok()) << policy;
  }
}

TEST(GatewayOptionsTest, AWorkerUrlHasASchemeOrAPort) {
  for (const char* url : {"http://foo", "foo:8000", "[::1]:8000", "https://foo", "10.0.0.1:30000"}) {
    EXPECT_TRUE(check({"--worker-urls", url}).ok()) << url;
  }
  EXPECT_THAT(check({"--worker-urls", "foo"}).error().message, HasSubstr("'foo' has neither a scheme nor a port"));
  EXPECT_THAT(check({"--worker-urls", "http://a:1,http://b:2"}).error().message, HasSubstr("with spaces between them"));
}

TEST(GatewayOptionsTest, ThePoliciesOfTheFlagAreThoseOfTheRegistry) {
  for (const PolicyRow& row : policies()) EXPECT_TRUE(check({"--policy", std::string(row.name)}).ok()) << row.name;
  EXPECT_FALSE(check({"--policy", "bucket"}).ok());
}

TEST(GatewayOptionsTest, WhatCannotBeIsRefusedAtStartUp) {
  const std::vector<std::vector<std::string>> refused = {
      {"--port", "70000"},
      {"--max-payload-size", "0"},
      {"--request-timeout-secs", "0"},
      {"--queue-timeout-secs", "0"},
      {"--cache-threshold", "1.5"},
      {"--balance-rel-threshold", "0.9"},
      {"--eviction-interval-secs", "0"},
      {"--max-tree-size", "0"},
      {"--retry-max-retries", "0"},
      {"--retry-initial-backoff-ms", "99", "--retry-max-backoff-ms", "1"},
      {"--retry-backoff-multiplier", "0.5"},
      {"--retry-jitter-factor", "1.1"},
      {"--cb-failure-threshold", "0"},
      {"--cb-window-duration-secs", "0"},
      {"--worker-urls", "grpc://h:1"},
      {"--worker-urls", "http://"},
      {"--worker-urls", "http://h\xff:1"},
      {"--worker-urls", "foo"},
      {"--worker-urls", "foo/path:8000"},
      {"--worker-urls", "http://a:8000,http://b:8000"},
      {"--api-key", "\xff"},
      {"--health-check-endpoint", "health"},
      {"--api-key", ""},
      {"--prometheus-duration-buckets", "0.1", "x"},
      {"--health-check-port", "0"},
      {"--rl-control-timeout-secs", "0"},
      {"--rl-fanout-concurrency", "0"},
      {"--tls-cert-path", "/x"},
      {"--tls-key-path", "/x"},
      {"--client-cert-path", "/x"},
      {"--client-key-path", "/x"},
      {"--no-such-flag"},
  };
  for (const auto& flags : refused) EXPECT_FALSE(check(flags).ok()) << flags[0] << " " << flags.back();
  EXPECT_TRUE(check({"--queue-size", "0", "--queue-timeout-secs", "0"}).ok());
}

TEST(GatewayOptionsTest, FlagsThatAreNotBuiltAreNamedWithWhatToDoInstead) {
  for (const char* flag : {"--pd-disaggregation", "--service-discovery", "--parser", "--enable-mesh", "--jwt-issuer",
                           "--kv-index", "--backend"}) {
    const auto result = check({flag, "x"});
    ASSERT_FALSE(result.ok()) << flag;
    EXPECT_NE(result.error().message.find("not implemented"), std::string::npos) << result.error().message;
  }
}

TEST(GatewayOptionsTest, BucketsAreSortedAndUnique) {
  const auto options = gateway_option_table().parse({"--prometheus-duration-buckets", "2", "0.5", "2"}).value();
  EXPECT_EQ(duration_buckets(options).value(), (std::vector<double>{0.5, 2}));
  EXPECT_EQ(duration_buckets(gateway_option_table().defaults()).value().size(), 29u);
}

}  // namespace
}  // namespace sluice::gateway
