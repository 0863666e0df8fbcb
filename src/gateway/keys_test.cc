// Which key each route asks for, over real sockets.
#include <cstdlib>

#include "gateway/gateway_fixture.h"

namespace sluice::gateway {
namespace {

using ::testing::HasSubstr;

constexpr const char* kVariable = "CONTROL_PLANE_API_KEYS";

class KeysTest : public GatewayFixture {
 protected:
  int status_of(const std::string& method, const std::string& path, const std::string& key) {
    net::Headers headers;
    if (!key.empty()) headers.add("Authorization", "Bearer " + key);
    return call(method, path, method == "GET" ? "" : R"({"text":"x"})", headers)->status;
  }
};

TEST_F(KeysTest, EachRouteAsksForTheKeyOfItsClass) {
  worker({.api_key = "serve"});
  start({"--api-key", "serve", "--control-plane-api-keys", "1:ann:admin:boss", "2:ulf:user:guest"});
  for (const char* path : {"/health", "/liveness", "/readiness", "/v1/models", "/server_info", "/engine_metrics"}) {
    EXPECT_EQ(status_of("GET", path, ""), 200) << path;
  }
  for (const auto& [method, path] : {std::pair{"GET", "/workers"},
                                     {"GET", "/list_workers"},
                                     {"GET", "/get_loads"},
                                     {"POST", "/flush_cache"},
                                     {"GET", "/debug/why/x"},
                                     {"POST", "/pause_generation"},
                                     {"POST", "/abort_request"},
                                     {"POST", "/wasm"}}) {
    EXPECT_EQ(status_of(method, path, ""), 401) << path;
    EXPECT_EQ(status_of(method, path, "serve"), 401) << path;
    EXPECT_EQ(status_of(method, path, "guest"), 403) << path;
    const int admitted = status_of(method, path, "boss");
    EXPECT_TRUE(admitted != 401 && admitted != 403) << path << " " << admitted;
  }
  for (const auto& [method, path] : {std::pair{"POST", "/generate"}, {"GET", "/v1/responses/r"}}) {
    EXPECT_EQ(status_of(method, path, "boss"), 401) << path;
    EXPECT_NE(status_of(method, path, "serve"), 401) << path;
  }
}

TEST_F(KeysTest, RefusalsSayWhatIsWanted) {
  start({"--control-plane-api-keys", "1:ann:admin:boss", "2:ulf:user:guest"});
  const auto missing = call("GET", "/workers");
  EXPECT_EQ(missing->status, 401);
  EXPECT_EQ(missing->headers.get("www-authenticate"), "Bearer realm=\"control-plane\"");
  EXPECT_THAT(std::string(missing->headers.get("content-type").value_or("")), HasSubstr("text/plain"));
  EXPECT_FALSE(missing->body.empty());
  const auto other_scheme = call("GET", "/workers", "", {{"Authorization", "Basic boss"}});
  EXPECT_EQ(other_scheme->headers.get("www-authenticate"), "Bearer realm=\"control-plane\"");
  const auto guest = call("GET", "/workers", "", {{"Authorization", "Bearer guest"}});
  EXPECT_EQ(guest->status, 403);
  EXPECT_EQ(guest->body, "Admin role required for control plane access");
  EXPECT_EQ(call("GET", "/workers", "", {{"Authorization", "Bearer boss"}})->status, 200);
}

TEST_F(KeysTest, TheKeyOfTheControlPlaneStaysHere) {
  SimWorker& one = worker();
  start({"--control-plane-api-keys", "1:ann:admin:boss"});
  ASSERT_EQ(call("POST", "/flush_cache", "", {{"Authorization", "Bearer boss"}})->status, 200);
  EXPECT_EQ(last_post(one).target, "/flush_cache");
  EXPECT_FALSE(last_post(one).headers.has("authorization"));
  const net::Headers boss{{"Authorization", "Bearer boss"}};
  ++sent_;
  ASSERT_EQ(call("POST", "/generate", body_of("x"), boss)->status, 200);
  ASSERT_EQ(last_post(one).target, "/generate");
  EXPECT_FALSE(last_post(one).headers.has("authorization"));
  ASSERT_EQ(call("GET", "/server_info", "", boss)->status, 200);
  for (const auto& received : one.received()) EXPECT_FALSE(received.headers.has("authorization")) << received.target;
  // Any other key is between the client and the worker.
  ++sent_;
  ASSERT_EQ(call("POST", "/generate", body_of("x"), {{"Authorization", "Bearer mine"}})->status, 200);
  EXPECT_EQ(last_post(one).headers.get("authorization"), "Bearer mine");
}

TEST_F(KeysTest, AMalformedKeyStopsTheStart) {
  auto options = gateway_option_table().parse({"--host", "127.0.0.1", "--port", "0", "--prometheus-port", "0"}).value();
  options.control_plane_api_keys = {"nonsense"};
  EXPECT_FALSE(Gateway::start(options).ok());
  options.control_plane_api_keys = {};
  ::setenv(kVariable, "1:n:boss:x", 1);
  EXPECT_FALSE(Gateway::start(options).ok());
  ::setenv(kVariable, "1:n:admin:x", 1);
  start();
  ::unsetenv(kVariable);
  EXPECT_EQ(call("GET", "/workers")->status, 401);
  EXPECT_EQ(call("GET", "/workers", "", {{"Authorization", "Bearer x"}})->status, 200);
}

}  // namespace
}  // namespace sluice::gateway
