#include "tokenizer/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/rng.h"
#include "testing/fake_clock.h"
#include "testing/seed.h"

namespace sluice::tokenizer {
namespace {

using nlohmann::ordered_json;

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

std::string fixture(const std::string& path) { return std::string(SLUICE_FIXTURES_DIR) + "/" + path; }

// What the template makes of the context, or its error message.
std::string render(std::string_view source, const std::string& context = "{}") {
  const auto parsed = ChatTemplate::parse(source);
  if (!parsed.ok()) return parsed.error().message;
  const auto rendered = parsed->render(ordered_json::parse(context));
  if (!rendered.ok()) {
    EXPECT_EQ(rendered.error().code, ErrorCode::kInvalidArgument);
    return rendered.error().message;
  }
  return *rendered;
}

class ChatFixtureTest : public ::testing::TestWithParam<const char*> {};

TEST_P(ChatFixtureTest, RendersLikeTheReference) {
  const std::string folder = GetParam();
  const auto config = ordered_json::parse(read_file(fixture(folder + "/tokenizer_config.json")));
  const auto parsed = ChatTemplate::parse(config["chat_template"].get<std::string>());
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  const auto reference = ordered_json::parse(read_file(fixture(folder + "/reference.json")));
  size_t cases = 0;
  for (const auto& c : reference["chat"]) {
    ordered_json context = c["extra"];
    context["messages"] = c["messages"];
    context["tools"] = c["tools"];
    context["add_generation_prompt"] = c["add_generation_prompt"];
    for (const char* token : {"bos_token", "eos_token"}) {
      if (config[token].is_object()) context[token] = config[token]["content"];
      if (config[token].is_string()) context[token] = config[token];
    }
    const auto rendered = parsed->render(context);
    ASSERT_TRUE(rendered.ok()) << rendered.error().message;
    EXPECT_EQ(*rendered, c["rendered"].get<std::string>());
    ++cases;
  }
  EXPECT_EQ(cases, 12u);
}

INSTANTIATE_TEST_SUITE_P(All, ChatFixtureTest, ::testing::Values("tokenizer-qwen3", "tokenizer-deepseek_v3"));

// tests/tools/make_jinja_reference.py says where these come from.
ordered_json jinja_reference() { return ordered_json::parse(read_file(fixture("jinja/reference.json"))); }

TEST(ChatTemplateTest, RendersWhatJinja2Renders) {
  const auto reference = jinja_reference();
  const std::string context = reference["context"].dump();
  ASSERT_GT(reference["cases"].size(), 100u);
  for (const auto& c : reference["cases"]) {
    const auto source = c["template"].get<std::string>();
    EXPECT_EQ(render(source, context), c["rendered"].get<std::string>()) << source;
  }
}

TEST(ChatTemplateTest, FailsWhereJinja2Fails) {
  const auto reference = jinja_reference();
  ASSERT_GT(reference["errors"].size(), 20u);
  for (const auto& c : reference["errors"]) {
    const auto source = c["template"].get<std::string>();
    const auto parsed = ChatTemplate::parse(source);
    if (!parsed.ok()) {
      EXPECT_EQ(parsed.error().code, ErrorCode::kInvalidArgument) << source;
      continue;
    }
    const auto rendered = parsed->render(reference["context"]);
    ASSERT_FALSE(rendered.ok()) << source << " renders as " << *rendered;
    EXPECT_EQ(rendered.error().code, ErrorCode::kInvalidArgument) << source;
  }
}

TEST(ChatTemplateTest, AnErrorNamesItsLine) {
  EXPECT_EQ(render("a\nb\n{{ raise_exception('no roles') }}"), "chat template, line 3: no roles");
  EXPECT_THAT(render("\n{{ 1 + 'a' }}"), ::testing::StartsWith("chat template, line 2: "));
  EXPECT_THAT(render("a\n\n{% if x %}"), ::testing::StartsWith("chat template, line 3: "));
  EXPECT_THAT(render("{# a\n #}\n{{ x | nofilter }}"), ::testing::StartsWith("chat template, line 3: "));
}

TEST(ChatTemplateTest, TellsTheTimeOfItsClock) {
  testing::FakeClock clock;
  const auto parsed = ChatTemplate::parse("{{ strftime_now('%Y-%m-%d %H:%M') }}", &clock);
  ASSERT_TRUE(parsed.ok());
  std::time_t now = static_cast<std::time_t>(clock.unix_nanos() / 1'000'000'000);
  char expected[32];
  std::strftime(expected, sizeof(expected), "%Y-%m-%d %H:%M", std::gmtime(&now));
  EXPECT_EQ(*parsed->render(ordered_json::object()), expected);
}

// As Qwen3's does: how long the conversation is costs nothing, however long it is.
TEST(ChatTemplateTest, ALongConversationMayBeCountedAtEachMessage) {
  auto messages = ordered_json::array();
  for (int i = 0; i < 5000; ++i) messages.push_back({{"role", "user"}, {"content", std::string(200, 'x')}});
  const std::string rendered =
      render("{% for message in messages %}{{ (messages|length - 1) - loop.index0 }} {% endfor %}",
             ordered_json{{"messages", messages}}.dump());
  EXPECT_THAT(rendered, ::testing::StartsWith("4999 4998 "));
  EXPECT_THAT(rendered, ::testing::EndsWith(" 1 0 "));
}

// What follows is what Jinja2 3.1 gives.
TEST(ChatTemplateTest, KeepsTheDigitsOfLargeIntegers) {
  const std::string context = R"({"n": 18446744073709551615, "m": 9223372036854775808})";
  EXPECT_EQ(
      render("{{ n }} {{ n | tojson }} {{ [n] }} {{ {n: 1} | tojson }} {{ '%d' | format(n) }} {{ n ~ '' }}", context),
      "18446744073709551615 18446744073709551615 [18446744073709551615] {\"18446744073709551615\": 1} "
      "18446744073709551615 18446744073709551615");
  EXPECT_EQ(render("{{ n | int }} {{ n | abs }} {{ n | round }} {{ [n, m, 1] | sort }}", context),
            "18446744073709551615 18446744073709551615 18446744073709551615 "
            "[1, 9223372036854775808, 18446744073709551615]");
  EXPECT_EQ(
      render("{{ n is integer }} {{ n is float }} {{ n is number }} {{ n == n }} {{ n == m }} {{ n > 1 }}", context),
      "True False True True False True");
}

TEST(ChatTemplateTest, EscapesWhatIsNotPrintable) {
  EXPECT_EQ(
      render("{{ [x] }}",
             ordered_json{{"x", "a\u200cb\u200d\u2028\u2029\u3000\ufeff\ue000 \u00a0\u00ad\U000e0001é\t"}}.dump()),
      R"(['a\u200cb\u200d\u2028\u2029\u3000\ufeff\ue000 \xa0\xad\U000e0001é\t'])");
}

TEST(ChatTemplateTest, TitlesAndCountsWordsAsItsFiltersDo) {
  EXPECT_EQ(render("{{ x | title }}", R"({"x": "hello(world) [a-b] {x} <y>z don't oé\u3000b 1st ABC a_b.c/d"})"),
            "Hello(World) [A-B] {X} <Y>z Don't Oé\u3000B 1st Abc A_b.c/d");
  EXPECT_EQ(render("{{ x | wordcount }} {{ '' | wordcount }}", R"({"x": "a-b c_d  e\u0301f 日本, 1.5 ²"})"), "9 0");
}

TEST(ChatTemplateTest, GroupsHaveTheirFirstKeyAndNames) {
  const std::string context = R"({"x": [{"c": "b", "v": 1}, {"c": "A", "v": 2}, {"c": "a", "v": 3}, {"v": 4}]})";
  EXPECT_EQ(
      render("{% for g in x | groupby('c', default='B') %}{{ g.grouper }}:{{ g.list | map(attribute='v') | list }} "
             "{% endfor %}",
             context),
      "A:[2, 3] b:[1, 4] ");
  EXPECT_EQ(
      render("{% for k, l in x | groupby('c', default='Z', case_sensitive=true) %}{{ k }}{{ l | length }} {% endfor %}",
             context),
      "A1 Z1 a1 b1 ");
  EXPECT_EQ(render("{{ (x[:1] | groupby('v'))[0] }}", context), "(1, [{'c': 'b', 'v': 1}])");
}

TEST(ChatTemplateTest, ANumberMayHaveASign) {
  EXPECT_EQ(
      render("{{ '+3.5' | float }} {{ ' +3' | int }} {{ '+-3' | int }} {{ '+-3.5' | float }} {{ '-3.5' | float }}"),
      "3.5 3 0 0.0 -3.5");
}

// What a hostile template or context tries: each ends in an error, soon.
TEST(ChatTemplateTest, EndsWhateverTheTemplateDoes) {
  const std::string deep(100'000, '(');
  const std::string many_not = [] {
    std::string text = "{{ ";
    for (int i = 0; i < 100'000; ++i) text += "not ";
    return text + "1 }}";
  }();
  const std::string sources[] = {
      "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}{% "
      "endfor %}",
      "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s "
      "}}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{{ 'x' * 999999999999 }}",
      "{{ [1] * 999999999999 }}",
      "{{ 'abc' | center(999999999) }}",
      "{{ '%999999999d' % 1 }}",
      "{{ '{:>999999999}'.format(1) }}",
      "{{ 9 ** 9 ** 9 ** 9 }}",
      "{{ " + deep,
      many_not,
  };
  for (const auto& source : sources) {
    const auto parsed = ChatTemplate::parse(source);
    if (!parsed.ok()) continue;
    const auto rendered = parsed->render(ordered_json::object());
    if (rendered.ok()) {
      EXPECT_LT(rendered->size(), size_t{64} << 20) << source.substr(0, 80);
    } else {
      EXPECT_EQ(rendered.error().code, ErrorCode::kInvalidArgument) << source.substr(0, 80);
    }
  }
}

TEST(ChatTemplateTest, AnyBytesAreATemplateOrAnError) {
  const auto reference = jinja_reference();
  std::vector<std::string> sources;
  for (const auto& c : reference["cases"]) sources.push_back(c["template"]);
  const uint64_t seed = testing::test_seed();
  SCOPED_TRACE(seed);
  Rng rng(seed);
  const auto below = [&](size_t n) { return static_cast<size_t>(rng.below(n)); };
  for (int round = 0; round < 4000; ++round) {
    std::string source = sources[below(sources.size())];
    for (size_t i = below(4) + 1; i > 0; --i) {
      const size_t at = below(source.size());
      switch (below(3)) {
        case 0:
          source[at] = static_cast<char>(below(256));
          break;
        case 1:
          source.erase(at, below(8));
          break;
        default: {
          const std::string& other = sources[below(sources.size())];
          source.insert(at, other.substr(below(other.size()), below(12)));
        }
      }
      if (source.empty()) source = " ";
    }
    const auto parsed = ChatTemplate::parse(source);
    if (!parsed.ok()) {
      EXPECT_EQ(parsed.error().code, ErrorCode::kInvalidArgument) << source;
      continue;
    }
    const auto rendered = parsed->render(reference["context"]);
    if (!rendered.ok()) {
      EXPECT_EQ(rendered.error().code, ErrorCode::kInvalidArgument) << source;
    }
  }
}

}  // namespace
}  // namespace sluice::tokenizer
