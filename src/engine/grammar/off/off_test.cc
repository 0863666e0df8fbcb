// What a build with -DSLUICE_GRAMMAR=OFF does. In a program of its own, with that build's table of backends.
#include <gmock/gmock.h>

#include "engine/api/api_fixture.h"
#include "engine/grammar/grammar.h"

namespace sluice::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using WithoutGrammarTest = ApiTest;

TEST_F(WithoutGrammarTest, EveryFieldThatAsksForAGrammarIsA400ThatSaysWhy) {
  serve();
  const auto expect_refused = [&](const std::string& path, const Json& body, const std::string& field) {
    const auto answer = call("POST", path, body.dump());
    EXPECT_EQ(answer.status, 400) << field;
    EXPECT_THAT(answer.body,
                HasSubstr(field + " is not supported: this build is without grammars (SLUICE_GRAMMAR=OFF)"));
  };
  const std::pair<const char*, const char*> grammars[] = {{"regex", "a+"},
                                                          {"json_schema", "{}"},
                                                          {"ebnf", "root ::= \"a\""},
                                                          {"structural_tag", R"({"structures": [], "triggers": []})"}};
  for (const auto& [field, text] : grammars) {
    expect_refused("/generate", {{"text", "a"}, {"sampling_params", {{field, text}}}}, field);
  }
  const Json messages = Json::parse(R"([{"role": "user", "content": "hi"}])");
  expect_refused("/v1/chat/completions", {{"messages", messages}, {"response_format", {{"type", "json_object"}}}},
                 "response_format");
  expect_refused("/v1/completions", {{"prompt", "a"}, {"regex", "a+"}}, "regex");
  EXPECT_TRUE(backend_->submitted().empty());
}

TEST_F(WithoutGrammarTest, EverythingElseIsServed) {
  serve();
  answer_with("hello");
  EXPECT_EQ(call("POST", "/generate", R"({"text": "a"})").status, 200);
  EXPECT_EQ(call("GET", "/server_info").json()["grammar_backend"], "none");
}

TEST_F(WithoutGrammarTest, TheFlagNamesWhatTheBuildHas) {
  EXPECT_THAT(grammar_backend_names(), ElementsAre("none"));
  EXPECT_EQ(find_grammar_backend("xgrammar"), nullptr);
  const auto checked = [](const std::string& backend) {
    const auto options = engine_option_table().parse({"--model-path=m", "--grammar-backend=" + backend});
    EXPECT_TRUE(options.ok()) << options.error().message;
    const auto result = check_engine_options(*options);
    return result.ok() ? std::string() : result.error().message;
  };
  EXPECT_EQ(checked("none"), "");
  EXPECT_EQ(checked("xgrammar"), "--grammar-backend xgrammar is not in this build (SLUICE_GRAMMAR=OFF)");
}

}  // namespace
}  // namespace sluice::engine
