#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/rng.h"
#include "tokenizer/utf8.h"

namespace sluice::tokenizer {
namespace {

using nlohmann::json;

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

std::string fixture(const std::string& path) { return std::string(SLUICE_FIXTURES_DIR) + "/" + path; }

std::shared_ptr<const Tokenizer> load(const std::string& name) {
  auto tokenizer = Tokenizer::from_json(read_file(fixture(name + "/tokenizer.json")),
                                        read_file(fixture(name + "/tokenizer_config.json")));
  EXPECT_TRUE(tokenizer.ok()) << (tokenizer.ok() ? "" : tokenizer.error().message);
  return tokenizer.ok() ? *tokenizer : nullptr;
}

std::string incremental(const std::shared_ptr<const Tokenizer>& tokenizer, const std::vector<int32_t>& ids, bool skip) {
  IncrementalDecoder decoder(tokenizer, skip);
  std::string text;
  for (const auto id : ids) {
    const auto piece = decoder.push(id);
    EXPECT_TRUE(is_valid_utf8(piece));
    text += piece;
  }
  return text + decoder.finish();
}

class FixtureTest : public ::testing::TestWithParam<const char*> {};

TEST_P(FixtureTest, EncodesAndDecodesLikeTheReference) {
  const auto tokenizer = load(GetParam());
  ASSERT_TRUE(tokenizer);
  const auto reference = json::parse(read_file(fixture(std::string(GetParam()) + "/reference.json")));
  size_t cases = 0;
  for (const auto& c : reference["encode"]) {
    const auto text = c["text"].get<std::string>();
    const auto ids = c["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer->encode(text, false), ids) << text;
    EXPECT_EQ(tokenizer->decode(ids, false), c["decoded"].get<std::string>()) << text;
    EXPECT_EQ(tokenizer->decode(ids, true), c["decoded_skip_special"].get<std::string>()) << text;
    EXPECT_EQ(incremental(tokenizer, ids, false), c["decoded"].get<std::string>()) << text;
    EXPECT_EQ(incremental(tokenizer, ids, true), c["decoded_skip_special"].get<std::string>()) << text;
    ++cases;
  }
  EXPECT_EQ(cases, 133u);
  for (const auto& c : reference["encode_with_special"]) {
    EXPECT_EQ(tokenizer->encode(c["text"].get<std::string>(), true), c["ids"].get<std::vector<int32_t>>());
  }
  for (const auto& c : reference["chat"]) {
    EXPECT_EQ(tokenizer->encode(c["rendered"].get<std::string>(), false), c["ids"].get<std::vector<int32_t>>());
  }
}

INSTANTIATE_TEST_SUITE_P(All, FixtureTest, ::testing::Values("tokenizer-qwen3", "tokenizer-deepseek_v3"));

}  // namespace
}  // namespace sluice::tokenizer
