#include "engine/served_model.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace sluice::engine {
namespace {

const std::string kFolder = std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama";

TEST(ServedModelTest, ReadsAFolder) {
  const auto model = load_served_model(
      {.model_path = "tiny", .name = "", .model_file = kFolder, .tokenizer_file = kFolder, .chat_template = ""});
  ASSERT_TRUE(model.ok()) << model.error().message;
  EXPECT_EQ(model->name, "tiny");
  EXPECT_EQ(model->tokenizer_path, "tiny");
  EXPECT_EQ(model->config.model_type, "llama");
  EXPECT_TRUE(model->chat_template);
  EXPECT_GT(model->tokenizer->vocab_size(), 0);
}

protocol::TemplateHabits habits(const std::string& folder) {
  std::ifstream in(std::string(SLUICE_FIXTURES_DIR) + "/" + folder + "/tokenizer_config.json");
  const auto source = nlohmann::json::parse(in)["chat_template"].get<std::string>();
  return habits_of(*tokenizer::ChatTemplate::parse(source), {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
}

TEST(TemplateHabitsTest, AreThoseOfThePublishedTemplates) {
  EXPECT_FALSE(habits("tokenizer-qwen3").text_arguments);
  EXPECT_FALSE(habits("tokenizer-qwen3").null_content);
  EXPECT_TRUE(habits("tokenizer-deepseek_v3").text_arguments);
  EXPECT_TRUE(habits("tokenizer-deepseek_v3").null_content);
}

TEST(TemplateHabitsTest, ATemplateThatPrintsArgumentsWantsText) {
  const auto of = [](std::string_view source) { return habits_of(*tokenizer::ChatTemplate::parse(source), {}); };
  const std::string call = "{{ c.function.name }} {{ c.function.arguments";
  const std::string loop = "{% for m in messages %}{% for c in m.tool_calls or [] %}" + call;
  EXPECT_TRUE(of(loop + " }}{% endfor %}{% endfor %}").text_arguments);
  EXPECT_FALSE(of(loop + " | tojson }}{% endfor %}{% endfor %}").text_arguments);
  EXPECT_FALSE(of("{{ messages[0].content }}").text_arguments) << "one that knows no calls";
}

TEST(TemplateHabitsTest, WhatTheDeveloperSaysIsTheSystemsWhereATemplateLeavesItOut) {
  EXPECT_TRUE(habits("tokenizer-qwen3").developer_is_system);
  EXPECT_TRUE(habits("tokenizer-deepseek_v3").developer_is_system);
  const auto of = [](std::string_view source) { return habits_of(*tokenizer::ChatTemplate::parse(source), {}); };
  EXPECT_FALSE(of("{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}").developer_is_system);
  EXPECT_FALSE(of("{{ messages[-1].content }}").developer_is_system) << "nobody's rules are shown";
}

TEST(ServedModelTest, NamesWhatIsWrong) {
  const auto missing = load_served_model(
      {.model_path = "m", .name = "", .model_file = "/nowhere", .tokenizer_file = kFolder, .chat_template = ""});
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.error().message.find("/nowhere"), std::string::npos);

  const auto path = std::filesystem::temp_directory_path() / fmt::format("sluice-template-{}.jinja", ::getpid());
  std::ofstream(path) << "a\n{% if %}";
  const auto broken = load_served_model({.model_path = "m",
                                         .name = "",
                                         .model_file = kFolder,
                                         .tokenizer_file = kFolder,
                                         .chat_template = path.string()});
  std::filesystem::remove(path);
  ASSERT_FALSE(broken.ok());
  EXPECT_NE(broken.error().message.find("line 2"), std::string::npos) << broken.error().message;
}

}  // namespace
}  // namespace sluice::engine
