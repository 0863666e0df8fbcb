#include "gateway/kv_events/prompt_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tokenizer/files.h"

namespace sluice::gateway {
namespace {

constexpr const char* kFolder = SLUICE_FIXTURES_DIR "/tiny-llama";

class KvPromptReaderTest : public ::testing::Test {
 protected:
  std::vector<int32_t> ids(const std::string& text, bool add_special) const {
    return tokenizer_->encode(text, add_special);
  }
  const std::unique_ptr<KvPromptReader> reader_ = KvPromptReader::load(kFolder, "").value();
  const std::shared_ptr<const tokenizer::Tokenizer> tokenizer_ = tokenizer::load_tokenizer(kFolder).value();
};

TEST_F(KvPromptReaderTest, MakesTheTokensThatTheEngineMakes) {
  EXPECT_EQ(reader_->read(Endpoint::kGenerate, R"({"text":"def main():"})")->tokens, ids("def main():", true));
  EXPECT_EQ(reader_->read(Endpoint::kGenerate, R"({"input_ids":[5,6,7]})")->tokens, (std::vector<int32_t>{5, 6, 7}));
  EXPECT_EQ(reader_->read(Endpoint::kCompletions, R"({"model":"m","prompt":"def"})")->tokens, ids("def", true));
  EXPECT_EQ(reader_->read(Endpoint::kCompletions, R"({"model":"m","prompt":[1,2]})")->tokens,
            (std::vector<int32_t>{1, 2}));
  const auto chat = reader_->read(Endpoint::kChat, R"({"model":"m","messages":[{"role":"user","content":"def"}]})");
  const auto source = tokenizer::load_chat_template(kFolder, *tokenizer_, "").value();
  const auto rendered = tokenizer::ChatTemplate::parse(source)->render(
      {{"messages", {{{"role", "user"}, {"content", "def"}}}}, {"add_generation_prompt", true}});
  ASSERT_TRUE(rendered.ok());
  EXPECT_EQ(chat->tokens, ids(*rendered, false));
  EXPECT_FALSE(chat->has_tools);
}

TEST_F(KvPromptReaderTest, AsksTheTemplateHowItWantsMessages) {
  const auto file = std::filesystem::temp_directory_path() / fmt::format("sluice-habits-{}.jinja", ::getpid());
  std::ofstream(file)
      << ("{% for m in messages %}{% if m.role != 'developer' %}{{ m.role }}: {{ m.content }} "
          "{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments }}{% endfor %}{% endif %}{% "
          "endfor %}");
  const auto reader = KvPromptReader::load(kFolder, file.string()).value();
  std::filesystem::remove(file);
  const auto of = [&](const std::string& message) {
    return reader->read(Endpoint::kChat, R"({"model":"m","messages":[)" + message + "]}")->tokens;
  };
  EXPECT_EQ(of(R"({"role":"developer","content":"def"})"), ids("system: def ", false));
  EXPECT_EQ(of(R"({"role":"assistant","content":"a","tool_calls":[{"id":"1","type":"function",
                   "function":{"name":"main","arguments":"{\"x\":1}"}}]})"),
            ids(R"(assistant: a main{"x":1})", false));
}

TEST_F(KvPromptReaderTest, WhereTheTokensCannotBeToldThereAreNone) {
  for (const auto& [endpoint, body] : {
           std::pair{Endpoint::kEmbeddings, R"({"input":"x"})"},
           {Endpoint::kGenerate, R"({"text":["a","b"]})"},
           {Endpoint::kGenerate, R"({"text":7})"},
           {Endpoint::kGenerate, R"({"text":"a","extra_key":"salt"})"},
           {Endpoint::kCompletions, R"({"prompt":"a","cache_salt":"salt"})"},
           {Endpoint::kChat, R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]})"},
           {Endpoint::kChat, "no JSON"},
       }) {
    EXPECT_FALSE(reader_->read(endpoint, body)) << body;
  }
  EXPECT_FALSE(
      reader_->read(Endpoint::kGenerate, R"({"text":")" + std::string(KvPromptReader::kMostBytes, 'a') + "\"}"));
}

}  // namespace
}  // namespace sluice::gateway
