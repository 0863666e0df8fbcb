#include "base/result.h"

#include <gtest/gtest.h>

#include <memory>

namespace sluice {
namespace {

Error no_such_file() { return {ErrorCode::kNotFound, "x.txt: no such file"}; }

Result<int> half(int value) {
  if (value % 2 != 0) return Error{ErrorCode::kInvalidArgument, "odd"};
  return value / 2;
}
Result<void> even(int value) {
  SLUICE_TRY([[maybe_unused]] const int ignored, half(value));
  return {};
}
Result<int> quarter(int value) {
  SLUICE_TRY_VOID(even(value));
  SLUICE_TRY(const int once, half(value));
  SLUICE_TRY(const int twice, half(once));
  return twice;
}

TEST(ResultTest, HoldsAValueOrAnError) {
  const Result<int> value = 7;
  ASSERT_TRUE(value.ok());
  EXPECT_TRUE(static_cast<bool>(value));
  EXPECT_EQ(*value, 7);
  const Result<int> error = no_such_file();
  ASSERT_FALSE(error.ok());
  EXPECT_EQ(error.error().code, ErrorCode::kNotFound);
  EXPECT_EQ(error.error().message, "x.txt: no such file");
}

TEST(ResultTest, CarriesWhatCannotBeCopied) {
  Result<std::unique_ptr<int>> result = std::make_unique<int>(3);
  EXPECT_EQ(**result, 3);
  const std::unique_ptr<int> taken = std::move(result).value();
  EXPECT_EQ(*taken, 3);
}

TEST(ResultTest, AnErrorIsAValueTooWhenItIsAskedFor) {
  // A Result<std::string> of a string and one of an error with the same text are different things.
  const Result<std::string> text = std::string("no such file");
  EXPECT_TRUE(text.ok());
  EXPECT_EQ(text->size(), 12u);
}

TEST(ResultTest, TryGoesOnWithTheValueOrReturnsTheError) {
  EXPECT_EQ(*quarter(12), 3);
  EXPECT_EQ(quarter(3).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(quarter(6).error().message, "odd");
  EXPECT_TRUE(even(2).ok());
  EXPECT_FALSE(even(1).ok());
}

TEST(ResultTest, EveryCodeHasItsOwnName) {
  std::vector<std::string_view> names;
  for (int code = 0; code <= static_cast<int>(ErrorCode::kInternal); ++code) {
    names.push_back(to_string(static_cast<ErrorCode>(code)));
  }
  EXPECT_EQ(std::count(names.begin(), names.end(), "unknown"), 0);
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
}

TEST(ResultDeathTest, AskingAFailureForItsValueShowsTheError) {
  const Result<int> error = no_such_file();
  EXPECT_DEATH((void)error.value(), "x.txt: no such file");
  const Result<int> value = 7;
  EXPECT_DEATH((void)value.error(), "error of a successful Result");
}

}  // namespace
}  // namespace sluice
