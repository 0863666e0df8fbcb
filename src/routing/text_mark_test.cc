#include "routing/text_mark.h"

#include <gtest/gtest.h>

#include <set>

namespace sluice::routing {
namespace {

TEST(TextMarkTest, TellsTextsApartAtTheirEndsAndByTheirLength) {
  const std::string middle(10'000, 'm');
  const std::set<uint64_t> marks{text_hash(""),           text_hash("a"),          text_hash("b"),
                                 text_hash(middle),       text_hash(middle + "m"), text_hash("a" + middle),
                                 text_hash(middle + "a"), text_hash("b" + middle)};
  EXPECT_EQ(marks.size(), 8u);
  EXPECT_EQ(text_hash("a" + middle), text_hash("a" + middle));
}

TEST(TextMarkTest, IsShownAsSixteenDigits) { EXPECT_EQ(hash_digits(0xabc), "0000000000000abc"); }

}  // namespace
}  // namespace sluice::routing
