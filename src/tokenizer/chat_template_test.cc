#include "tokenizer/chat_template.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "testing/fake_clock.h"

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

TEST(ChatTemplateTest, SmallTest) { EXPECT_EQ(render("a{{ 1 + 2 * 3 }}b"), "a7b"); }

}  // namespace
}  // namespace sluice::tokenizer
