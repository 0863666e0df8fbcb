#include "routing/common_prefix.h"

#include <gtest/gtest.h>

#include <string>

namespace sluice::routing {
namespace {

TEST(CommonPrefixTest, EndsAtTheFirstByteThatDiffers) {
  const std::string text = "0123456789abcdefghij";
  for (size_t at = 0; at < text.size(); ++at) {
    std::string other = text;
    other[at] = '!';
    EXPECT_EQ(common_prefix(text, other), at);
    EXPECT_EQ(common_prefix(text, text.substr(0, at)), at);
  }
  EXPECT_EQ(common_prefix(text, text), text.size());
}

TEST(CommonPrefixTest, CutsNoCharacter) {
  const std::string text = "a\xc3\xa9\xe4\xbd\xa0\xf0\x9f\x98\x80";  // of one, two, three and four bytes
  const size_t ends[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10};
  for (size_t length = 0; length <= text.size(); ++length) EXPECT_EQ(whole_characters(text, length), ends[length]);
}

TEST(CommonPrefixTest, WhatIsNoUtf8IsCutAnywhere) {
  const std::string text = "\x80\x80\x80\x80\x80\xff\xc3(";
  for (size_t length = 0; length <= text.size(); ++length) EXPECT_EQ(whole_characters(text, length), length);
}

}  // namespace
}  // namespace sluice::routing
