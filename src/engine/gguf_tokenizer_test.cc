// The tokenizer of a GGUF vocabulary against llama.cpp's on the same file. The vocabulary and what llama.cpp made of
// the texts are saved in a fixture (tests/tools/make_gguf_tokenizer_fixture.py).
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/tokenizer_files.h"

namespace sluice::engine {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

class GgufTokenizerTest : public ::testing::Test {
 protected:
  static const tokenizer::Tokenizer& smollm2() {
    static const auto tokenizer = load_tokenizer(folder() + "/vocabulary.gguf").value();
    return *tokenizer;
  }
  static const Json& reference() {
    static const Json json = [] {
      std::ifstream file(folder() + "/reference.json");
      return Json::parse(file);
    }();
    return json;
  }
  static std::string folder() { return std::string(SLUICE_FIXTURES_DIR) + "/tokenizer-smollm2"; }
};

TEST_F(GgufTokenizerTest, EncodesAsLlamaCppDoes) {
  for (const Json& c : reference().at("cases")) {
    EXPECT_EQ(smollm2().encode(c.at("text").get<std::string>(), false), c.at("ids").get<Ids>()) << c.at("text");
  }
  EXPECT_GT(reference().at("cases").size(), 300u);
}

TEST_F(GgufTokenizerTest, SpecialTokensAreTextWhereTheyAreNotAskedFor) {
  int different = 0;
  for (const Json& c : reference().at("cases")) {
    const auto want = c.contains("ids_as_plain_text") ? c.at("ids_as_plain_text").get<Ids>() : c.at("ids").get<Ids>();
    const auto got = smollm2().encode(c.at("text").get<std::string>(), false, /*parse_special=*/false);
    EXPECT_EQ(got, want) << c.at("text");
    different += c.contains("ids_as_plain_text");
  }
  EXPECT_GT(different, 30);
}

TEST_F(GgufTokenizerTest, DecodesAsLlamaCppDoes) {
  for (const Json& c : reference().at("cases")) {
    EXPECT_EQ(smollm2().decode(c.at("ids").get<Ids>(), false), c.at("decoded").get<std::string>()) << c.at("text");
  }
}

TEST_F(GgufTokenizerTest, BytesThatAreNotUtf8CountAsReplacementCharacters) {
  for (const Json& c : reference().at("invalid")) {
    std::string bytes;
    const auto hex = c.at("hex").get<std::string>();
    for (size_t i = 0; i < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    EXPECT_EQ(smollm2().encode(bytes, false), c.at("ids").get<Ids>()) << hex;
  }
}

}  // namespace
}  // namespace sluice::engine
