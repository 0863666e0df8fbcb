#include "protocol/secret.h"

#include <gtest/gtest.h>

namespace sluice::protocol {
namespace {

TEST(SecretTest, SecretsAreEqualOrNot) {
  EXPECT_TRUE(same_secret("abc", "abc"));
  for (const char* given : {"", "ab", "abd", "abcabc", "abcd", "ABC"}) EXPECT_FALSE(same_secret(given, "abc")) << given;
  EXPECT_FALSE(same_secret("", "")) << "no secret lets nobody in";
}

}  // namespace
}  // namespace sluice::protocol
