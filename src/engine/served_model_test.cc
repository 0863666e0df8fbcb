#include "engine/served_model.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

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
