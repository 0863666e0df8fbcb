#include "base/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace sluice {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

struct Sample {
  bool verbose;
  int64_t port;
  double share;
  std::string policy;
  StringList urls;
  std::optional<int64_t> limit;
  std::optional<double> rate;
  std::optional<std::string> key;
};

const OptionTable<Sample>& table() {
  using O = Sample;
  static const OptionTable<O> t(
      {
          {.name = "verbose", .aliases = {"v"}, .field = &O::verbose, .value = false, .help = "Says more."},
          {.name = "port", .field = &O::port, .value = int64_t{30000}, .range = {0, 65535}, .group = "Listening"},
          {.name = "share", .field = &O::share, .value = 0.5, .range = {0.0, 1.0}, .help = "a|b"},
          {.name = "policy", .field = &O::policy, .value = std::string("random"), .choices = {"random", "robin"}},
          {.name = "worker-urls", .aliases = {"workers"}, .field = &O::urls, .value = StringList{"http://d"}},
          {.name = "limit", .field = &O::limit, .value = std::optional<int64_t>(), .range = {-1, 10}},
          {.name = "rate", .field = &O::rate, .value = std::optional<double>()},
          {.name = "key", .field = &O::key, .value = std::optional<std::string>()},
      },
      {{"pd-disaggregation", "start separate fleets."}, {"history", "leave it out.", {"none", "off"}}});
  return t;
}

Sample parsed(const std::vector<std::string>& arguments) {
  auto result = table().parse(arguments);
  EXPECT_TRUE(result.ok()) << (result.ok() ? "" : result.error().message);
  return result.ok() ? *result : table().defaults();
}

std::string error_of(const std::vector<std::string>& arguments) {
  auto result = table().parse(arguments);
  if (result.ok()) return "accepted";
  EXPECT_EQ(result.error().code, ErrorCode::kBadOption);
  EXPECT_THAT(result.error().message, testing::Not(HasSubstr("\n")));
  return result.error().message;
}

TEST(OptionsTest, StartsFromTheDefaultsOfTheRows) {
  const Sample s = parsed({});
  EXPECT_FALSE(s.verbose);
  EXPECT_EQ(s.port, 30000);
  EXPECT_EQ(s.policy, "random");
  EXPECT_THAT(s.urls, ElementsAre("http://d"));
  EXPECT_FALSE(s.limit || s.rate || s.key);
}

TEST(OptionsTest, TakesValuesAfterASpaceOrAnEqualsSign) {
  const Sample s = parsed({"--port", "1", "--share=0.25", "-v", "--limit", "-1", "--rate=-2.5", "--key=--odd=value"});
  EXPECT_EQ(s.port, 1);
  EXPECT_EQ(s.share, 0.25);
  EXPECT_TRUE(s.verbose);
  EXPECT_EQ(s.limit, -1);
  EXPECT_EQ(s.rate, -2.5);
  EXPECT_EQ(s.key, "--odd=value");
}

TEST(OptionsTest, TheLastOfTwoWins) { EXPECT_EQ(parsed({"--port", "1", "--port", "2"}).port, 2); }

TEST(OptionsTest, AListTakesEveryWordUpToTheNextFlagAndRepeatingAppends) {
  EXPECT_THAT(parsed({"--worker-urls", "a", "b", "--port", "1", "--workers", "c"}).urls, ElementsAre("a", "b", "c"));
  EXPECT_THAT(parsed({"--worker-urls"}).urls, IsEmpty());
  EXPECT_THAT(parsed({"--worker-urls=a"}).urls, ElementsAre("a"));
}

TEST(OptionsTest, AcceptsAnUnambiguousPrefix) {
  EXPECT_EQ(parsed({"--sha", "0.1"}).share, 0.1);
  EXPECT_THAT(parsed({"--work", "a"}).urls, ElementsAre("a")) << "name and alias are of one row";
  EXPECT_THAT(error_of({"--po", "1"}), HasSubstr("ambiguous: it could be --port, --policy"));
  auto strict = table().parse({"--sha", "0.1"}, /*allow_prefixes=*/false);
  EXPECT_FALSE(strict.ok());
}

TEST(OptionsTest, NamesTheNearestFlag) {
  EXPECT_THAT(error_of({"--prot", "1"}), HasSubstr("unknown flag --prot; did you mean --port?"));
  EXPECT_THAT(error_of({"--worker_urls", "1"}), HasSubstr("did you mean --worker-urls?"));
  EXPECT_THAT(error_of({"--something-else-entirely"}), HasSubstr("--help lists the flags"));
}

TEST(OptionsTest, RejectsWhatIsNotBuiltWithAdvice) {
  EXPECT_EQ(error_of({"--pd-disaggregation"}), "--pd-disaggregation is not implemented: start separate fleets.");
}

TEST(OptionsTest, TakesWhatAsksForNothing) {
  EXPECT_EQ(parsed({"--history", "none", "--port", "1"}).port, 1);
  EXPECT_EQ(parsed({"--history=off", "--port", "1"}).port, 1);
  EXPECT_EQ(error_of({"--history", "redis"}), "--history redis is not implemented, only none, off: leave it out.");
  EXPECT_EQ(error_of({"--history"}), "--history expects a value");
}

TEST(OptionsTest, ChecksTypesRangesAndChoices) {
  EXPECT_THAT(error_of({"--port", "70000"}), HasSubstr("--port is 70000, but must be 0 to 65535"));
  EXPECT_THAT(error_of({"--port", "1x"}), HasSubstr("--port expects a whole number, not '1x'"));
  EXPECT_THAT(error_of({"--port", "99999999999999999999"}), HasSubstr("whole number"));
  EXPECT_THAT(error_of({"--share", "nan"}), HasSubstr("expects a number"));
  EXPECT_THAT(error_of({"--limit", "11"}), HasSubstr("-1 to 10"));
  EXPECT_THAT(error_of({"--policy", "best"}), HasSubstr("must be one of: random, robin"));
  EXPECT_THAT(error_of({"--port"}), HasSubstr("--port expects a value"));
  EXPECT_THAT(error_of({"--port", "--verbose"}), HasSubstr("--port expects a value"));
  EXPECT_THAT(error_of({"--verbose=1"}), HasSubstr("takes no value"));
  EXPECT_THAT(error_of({"stray"}), HasSubstr("unexpected argument 'stray'"));
}

TEST(OptionsTest, EveryRowRoundTripsThroughItsText) {
  const Sample s = parsed({"--port", "7", "--share", "0.125", "--worker-urls", "x", "y", "--limit", "3"});
  std::vector<std::string> words;
  for (size_t i = 0; i < table().size(); ++i) {
    const auto value = internal::option_value_to_json(table().get(s, i));
    const std::string flag = "--" + std::string(table().specs()[i].name);
    if (value.is_null() || value.is_boolean()) continue;
    words.push_back(flag);
    if (value.is_array()) {
      for (const auto& word : value) words.push_back(word);
    } else {
      words.push_back(value.is_string() ? value.get<std::string>() : value.dump());
    }
  }
  const Sample again = parsed(words);
  for (size_t i = 0; i < table().size(); ++i) EXPECT_EQ(table().get(s, i), table().get(again, i)) << words[i];
}

TEST(OptionsTest, HelpAndMarkdownShowEveryRow) {
  const std::string help = table().help();
  const std::string page = table().markdown();
  for (const auto& spec : table().specs()) {
    EXPECT_THAT(help, HasSubstr("--" + std::string(spec.name)));
    EXPECT_THAT(page, HasSubstr("--" + std::string(spec.name)));
  }
  EXPECT_THAT(help, HasSubstr("Listening:"));
  EXPECT_THAT(help, HasSubstr("default 30000; 0 to 65535"));
  EXPECT_THAT(page, HasSubstr("a\\|b")) << "a bar inside a table cell";
}

}  // namespace
}  // namespace sluice
