#include "obs/exposition.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "net/client.h"

namespace sluice::obs {
namespace {

using ::testing::HasSubstr;

class ExpositionTest : public ::testing::Test {
 protected:
  net::Response fetch(const std::string& method, const std::string& target) {
    const net::Url url{.host = "127.0.0.1", .port = server_->port()};
    auto response = net::blocking_fetch(url, method, target);
    EXPECT_TRUE(response.ok()) << (response.ok() ? "" : response.error().message);
    return response.ok() ? *response : net::Response{};
  }

  Metrics metrics_;
  std::unique_ptr<ExpositionServer> server_ = ExpositionServer::start(metrics_, "127.0.0.1", 0).value();
};

TEST_F(ExpositionTest, ServesTheTextFormat) {
  metrics_.declare({{.name = "things_total", .help = "Things."}});
  metrics_.counter("things_total").add(3);
  const auto response = fetch("GET", "/metrics?x=1");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.headers.get("content-type"), kExpositionContentType);
  EXPECT_EQ(response.body, "# HELP things_total Things.\n# TYPE things_total counter\nthings_total 3\n");
}

TEST_F(ExpositionTest, RefusesOtherPathsAndMethods) {
  EXPECT_EQ(fetch("GET", "/").status, 404);
  const auto refused = fetch("POST", "/metrics");
  EXPECT_EQ(refused.status, 405);
  EXPECT_EQ(refused.headers.get("allow"), "GET, HEAD");
}

TEST_F(ExpositionTest, ATakenPortIsAnError) {
  auto second = ExpositionServer::start(metrics_, "127.0.0.1", server_->port());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, ErrorCode::kAlreadyExists);
}

}  // namespace
}  // namespace sluice::obs
