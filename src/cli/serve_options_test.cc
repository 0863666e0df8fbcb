#include "cli/serve_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace sluice::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ServeCommand parsed(const Arguments& arguments) {
  auto result = parse_serve(arguments);
  EXPECT_TRUE(result.ok()) << (result.ok() ? "" : result.error().message);
  return result.ok() ? *result : parse_serve({}).value();
}

TEST(ServeOptionsTest, ListensWhereTheEngineWould) {
  const auto command = parsed({"--model-path", "m"});
  EXPECT_EQ(command.gateway.host, command.engine.host);
  EXPECT_EQ(command.gateway.host, "127.0.0.1");
  EXPECT_EQ(command.gateway.port, 30000);
  EXPECT_EQ(command.serve.router_dp_worker_base_port, 31000);
  EXPECT_EQ(parsed({"--port", "0", "--host", "0.0.0.0"}).gateway.port, 0);
}

TEST(ServeOptionsTest, MetricsAreWhereTheGatewayListensUnlessSaidOtherwise) {
  EXPECT_EQ(parsed({}).gateway.prometheus_host, "127.0.0.1");
  EXPECT_EQ(parsed({"--host", "0.0.0.0"}).gateway.prometheus_host, "0.0.0.0");
  EXPECT_EQ(parsed({"--host", "::1", "--router-prometheus-host", "127.0.0.2"}).gateway.prometheus_host, "127.0.0.2");
  EXPECT_EQ(parsed({"--router-disable-arg-fallback"}).gateway.prometheus_host, "0.0.0.0")
      << "the gateway's own default";
}

TEST(ServeOptionsTest, PrefixedFlagsReachTheGatewayAndOthersTheWorkers) {
  const auto command =
      parsed({"--model-path", "m", "--dp-size", "4", "--router-policy", "round_robin", "--router-cache-match-threshold",
              "0.25", "--page-size=16", "--threads", "3", "--port", "7", "--host", "::1", "--disable-radix-cache"});
  EXPECT_EQ(command.gateway.policy, "round_robin");
  EXPECT_EQ(command.gateway.cache_threshold, 0.25);
  EXPECT_EQ(command.gateway.host, "::1");
  EXPECT_EQ(command.engine.dp_size, 4);
  EXPECT_EQ(command.engine.threads, 3);
  EXPECT_THAT(command.worker_flags, ElementsAre("--model-path=m", "--page-size=16", "--disable-radix-cache"));
}

TEST(ServeOptionsTest, FallbackCanBeSwitchedOffExceptForTheAddress) {
  const auto command = parsed({"--router-disable-arg-fallback", "--host", "::1", "--port", "9"});
  EXPECT_EQ(command.gateway.host, "::1");
  EXPECT_EQ(command.gateway.port, 9);
}

TEST(ServeOptionsTest, TheEnginesCertificateIsWhatTheGatewayShows) {
  const auto command = parsed({"--ssl-certfile", "a.pem", "--ssl-keyfile", "a.key"});
  EXPECT_EQ(command.gateway.tls_cert_path, "a.pem");
  EXPECT_EQ(command.gateway.tls_key_path, "a.key");
  EXPECT_THAT(command.worker_flags, IsEmpty());
  const auto refused = [](const Arguments& arguments) { return parse_serve(arguments).error().message; };
  EXPECT_THAT(refused({"--ssl-certfile", "a.pem"}), HasSubstr("--ssl-certfile and --ssl-keyfile"));
  EXPECT_THAT(refused({"--ssl-certfile", "a.pem", "--ssl-keyfile", "a.key", "--router-tls-cert-path", "b.pem",
                       "--router-tls-key-path", "b.key"}),
              HasSubstr("--router-tls-cert-path"));
  EXPECT_THAT(refused({"--ssl-ca-certs", "ca.pem"}), HasSubstr("--ssl-ca-certs"));
  EXPECT_THAT(refused({"--ssl-keyfile-password", "x"}), HasSubstr("--ssl-keyfile-password"));
}

TEST(ServeOptionsTest, TheEnginesAdminKeyIsAskedForByTheGatewayAlone) {
  const auto command =
      parsed({"--api-key", "k", "--admin-api-key", "a:b", "--router-control-plane-api-keys", "1:x:user:u"});
  EXPECT_THAT(command.gateway.control_plane_api_keys, ElementsAre("1:x:user:u", "admin:admin:admin:a:b"));
  EXPECT_THAT(command.worker_flags, ElementsAre("--api-key=k"));
}

TEST(ServeOptionsTest, WhatTheEngineCallsOtherwiseIsTheGatewaysToo) {
  EXPECT_EQ(parsed({"--log-level", "warning"}).gateway.log_level, "warn");
  EXPECT_EQ(parsed({"--log-level", "debug"}).gateway.log_level, "debug");
  EXPECT_EQ(parsed({"--host", "warning"}).gateway.host, "warning") << "levels alone have two names";
}

TEST(ServeOptionsTest, AKeyThatNoHeadMayHaveIsRefused) {
  const auto refused = parse_serve({"--api-key", "schl\xC3\xBCssel", "--router-api-key", "outer"});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().message, "--api-key: api_key must be printable ASCII");
}

TEST(ServeOptionsTest, UnknownAndRejectedFlagsEndWithOneLine) {
  EXPECT_THAT(parse_serve({"--router-polcy", "x"}).error().message, HasSubstr("did you mean --router-policy?"));
  EXPECT_THAT(parse_serve({"--connection-mode", "grpc"}).error().message, HasSubstr("is not implemented"));
  EXPECT_TRUE(parse_serve({"--backend", "sglang", "--router-history-backend", "none"}).ok());
  EXPECT_THAT(parse_serve({"--backend", "vllm"}).error().message, HasSubstr("--backend vllm is not implemented"));
  EXPECT_THAT(parse_serve({"--router-host", "x"}).error().message, HasSubstr("unknown flag"));
}

TEST(ServeOptionsTest, WithDpAttentionAWorkerHasTheGroupsAndReplicasSaysHowManyThereAre) {
  const auto native = parsed({"--dp-size", "4", "--tp", "2"});
  EXPECT_EQ(native.workers(), 4);
  EXPECT_FALSE(native.gateway.dp_aware);
  const auto groups = parsed({"--dp-size", "4", "--tp", "4", "--enable-dp-attention", "--replicas", "2"});
  EXPECT_EQ(groups.workers(), 2);
  EXPECT_TRUE(groups.gateway.dp_aware);
  EXPECT_EQ(parsed({"--dp-size", "1", "--enable-dp-attention"}).workers(), 1);
  EXPECT_THAT(parse_serve({"--dp-size", "2", "--replicas", "2"}).error().message, HasSubstr("--replicas 2"));
}

TEST(ServeOptionsTest, OneWorkerMayBeOnSeveralHostsWhoseFirstIsThis) {
  const Arguments several{"--tp=4", "--nnodes=2", "--dist-init-addr=a:5000", "--enable-dp-attention", "--dp-size=4"};
  const auto with = [&](const char* more) {
    Arguments arguments = several;
    arguments.emplace_back(more);
    return parse_serve(arguments);
  };
  EXPECT_TRUE(with("--node-rank=0").ok());
  EXPECT_THAT(with("--node-rank=1").error().message, HasSubstr("run `sluice server`"));
  EXPECT_THAT(with("--replicas=2").error().message, HasSubstr("--nnodes 2 is of one worker"));
}

TEST(ServeOptionsTest, WorkersGetNothingThatWasNotGiven) { EXPECT_THAT(parsed({}).worker_flags, IsEmpty()); }

}  // namespace
}  // namespace sluice::cli
