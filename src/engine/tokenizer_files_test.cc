#include "engine/tokenizer_files.h"

#include <gtest/gtest.h>

#include "tokenizer/files.h"

namespace sluice::engine {
namespace {

TEST(TokenizerFilesTest, ReadsAFolder) {
  const std::string folder = std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama";
  const auto tokenizer = load_tokenizer(folder);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  EXPECT_EQ((*tokenizer)->encode("def main():\n    return", false),
            (std::vector<int32_t>{320, 322, 67, 265, 10, 310, 261, 328}));
  const auto chat = tokenizer::load_chat_template(folder, **tokenizer, "");
  ASSERT_TRUE(chat.ok());
  EXPECT_NE(chat->find("messages"), std::string::npos);
}

TEST(TokenizerFilesTest, NamesWhatIsMissing) {
  const auto tokenizer = load_tokenizer("/nowhere/model.gguf");
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_NE(tokenizer.error().message.find("/nowhere/model.gguf"), std::string::npos);
  const auto folder = load_tokenizer(SLUICE_FIXTURES_DIR);
  ASSERT_FALSE(folder.ok());
  EXPECT_NE(folder.error().message.find("tokenizer.json"), std::string::npos);
}

}  // namespace
}  // namespace sluice::engine
