#include "gateway/access.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace sluice::gateway {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Result<Gatekeeper> keeper(std::vector<std::string> flags, const char* environment = nullptr) {
  return Gatekeeper::from(gateway_option_table().parse(flags).value(), environment);
}

int status(const Gatekeeper& gatekeeper, Access access, const std::string& authorization = "") {
  net::RequestHead head;
  if (!authorization.empty()) head.headers.add("Authorization", authorization);
  const auto refused = gatekeeper.refuse(access, head);
  return refused ? refused->status : 200;
}

TEST(AccessTest, WithoutKeysEverythingIsOpen) {
  const auto open = keeper({}).value();
  for (const Access access : {Access::kServing, Access::kPublic, Access::kControl}) {
    EXPECT_EQ(status(open, access), 200);
  }
}

TEST(AccessTest, TheApiKeyServesAndControlsUnlessThereAreControlKeys) {
  const auto simple = keeper({"--api-key", "k"}).value();
  const auto split = keeper({"--api-key", "k", "--control-plane-api-keys", "1:ann:admin:a", "2:ulf:user:u:2"}).value();
  for (const Gatekeeper* of : {&simple, &split}) {
    EXPECT_EQ(status(*of, Access::kPublic), 200);
    EXPECT_EQ(status(*of, Access::kServing), 401);
    EXPECT_EQ(status(*of, Access::kServing, "Bearer k"), 200);
    EXPECT_EQ(status(*of, Access::kServing, "Basic k"), 401);
    EXPECT_EQ(status(*of, Access::kServing, "Bearer kk"), 401);
  }
  EXPECT_EQ(status(simple, Access::kControl, "Bearer k"), 200);
  EXPECT_EQ(status(split, Access::kControl, "Bearer k"), 401);
  EXPECT_EQ(status(split, Access::kControl, "Bearer a"), 200);
  EXPECT_EQ(status(split, Access::kControl, "Bearer u:2"), 403) << "a key may hold colons";
  EXPECT_EQ(status(split, Access::kControl), 401);
  EXPECT_EQ(status(split, Access::kServing, "Bearer a"), 401);
}

TEST(AccessTest, TheEnvironmentCountsWhereNoFlagIsGiven) {
  const char* given = "1:n:admin:x, 2:n:user:y\n3:n:admin:z";
  const auto of_environment = keeper({}, given).value();
  EXPECT_EQ(status(of_environment, Access::kControl, "Bearer x"), 200);
  EXPECT_EQ(status(of_environment, Access::kControl, "Bearer y"), 403);
  EXPECT_EQ(status(of_environment, Access::kControl, "Bearer z"), 200);
  EXPECT_EQ(status(of_environment, Access::kServing), 200) << "there is no API key";
  const auto of_flag = keeper({"--control-plane-api-keys", "1:n:admin:f"}, given).value();
  EXPECT_EQ(status(of_flag, Access::kControl, "Bearer x"), 401);
  EXPECT_FALSE(keeper({}, "1:n:admin").ok());
}

TEST(AccessTest, AMalformedKeyIsNamedWithoutItsText) {
  for (const char* key : {"", ":", "id:name:admin", "id:name:admin:", "id:name:root:s3cret", ":name:admin:s3cret",
                          "id::admin:s3cret", "id:name:Admin:s3cret", "s3cret"}) {
    const auto result = keeper({"--control-plane-api-keys", "1:n:admin:good", key});
    ASSERT_FALSE(result.ok()) << key;
    EXPECT_EQ(result.error().code, ErrorCode::kBadOption);
    EXPECT_THAT(result.error().message, HasSubstr("key 2 is not id:name:role:key"));
    EXPECT_THAT(result.error().message, Not(HasSubstr("s3cret")));
  }
}

}  // namespace
}  // namespace sluice::gateway
