#include "tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/rng.h"
#include "testing/seed.h"
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

std::string random_text(Rng& rng) {
  static const std::vector<std::string> pieces = {
      "hello", " ",        "\n",       "world's",      "123",        "é",  "日本", "😀", "\u0301",
      "\xff",  "\xe2\x82", "\xf0\x9f", "<|im_start|>", "<|im_end|>", "  ", "\t",   "ﬁ", "!?"};
  std::string text;
  for (uint64_t n = rng.below(20); n > 0; --n) text += pieces[rng.below(pieces.size())];
  return text;
}

// Ids of the `tokenizers` package, whose tables are of other versions of Unicode than those of PCRE2 and ICU.
TEST(TokenizerTest, KnowsTheCharactersThatTheReferenceKnows) {
  using Ids = std::vector<int32_t>;
  const auto qwen = load("tokenizer-qwen3"), deepseek = load("tokenizer-deepseek_v3");
  ASSERT_TRUE(qwen && deepseek);
  // Marks of Unicode 10 and 11, which change places with older ones only in tables that know them.
  EXPECT_EQ(qwen->encode("e\u0d3c\u09bc", false), (Ids{68, 33739, 120, 11125, 120}));
  EXPECT_EQ(qwen->encode("\u0915\u09fe\u09bc", false), (Ids{64704, 26927, 122, 11125, 120}));
  // Symbols of Unicode 15 and 16, letters of 16.
  EXPECT_EQ(deepseek->encode("\U0001fa77{G", false), (Ids{3574, 105, 118, 93, 41}));
  EXPECT_EQ(deepseek->encode("\u2429]x", false), (Ids{161, 241, 105, 63, 90}));
  EXPECT_EQ(deepseek->encode("\U00016d43\U00016d44!a", false), (Ids{175, 247, 116, 228, 175, 247, 116, 229, 3, 67}));
}

TEST(TokenizerTest, WhatItEncodesItDecodes) {
  const auto tokenizer = load("tiny-llama");
  ASSERT_TRUE(tokenizer);
  const uint64_t seed = testing::test_seed();
  SCOPED_TRACE(seed);
  Rng rng(seed);
  for (int round = 0; round < 3000; ++round) {
    const std::string text = random_text(rng);
    const auto ids = tokenizer->encode(text, false);
    const std::string decoded = tokenizer->decode(ids, false);
    EXPECT_TRUE(is_valid_utf8(decoded)) << text;
    EXPECT_EQ(tokenizer->encode(decoded, false), ids) << text;
    EXPECT_EQ(incremental(tokenizer, ids, false), decoded) << text;
    // A prefix of the ids may end in half a character; no piece of a stream does.
    const std::vector<int32_t> some(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(rng.below(ids.size() + 1)));
    EXPECT_EQ(incremental(tokenizer, some, true), tokenizer->decode(some, true)) << text;
  }
}

TEST(TokenizerTest, BytesThatAreNotUtf8CountAsReplacements) {
  const auto tokenizer = load("tiny-llama");
  ASSERT_TRUE(tokenizer);
  EXPECT_EQ(tokenizer->encode("a\xff"
                              "b",
                              false),
            tokenizer->encode("a\uFFFDb", false));
  EXPECT_EQ(tokenizer->encode("\xe2\x82", false), tokenizer->encode("\uFFFD", false));
}

TEST(TokenizerTest, ASpecialTokenIsTextUnlessItIsParsed) {
  const auto tokenizer = load("tiny-llama");
  ASSERT_TRUE(tokenizer);
  const auto parsed = tokenizer->encode("<|im_start|>", false, /*parse_special=*/true);
  ASSERT_EQ(parsed.size(), 1u);
  EXPECT_TRUE(tokenizer->is_special(parsed[0]));
  const auto text = tokenizer->encode("<|im_start|>", false, /*parse_special=*/false);
  EXPECT_GT(text.size(), 1u);
  EXPECT_EQ(tokenizer->decode(text, true), "<|im_start|>");
  EXPECT_EQ(tokenizer->decode(parsed, true), "");
}

TEST(TokenizerTest, UnknownIdsAreNothing) {
  const auto tokenizer = load("tiny-llama");
  ASSERT_TRUE(tokenizer);
  const std::vector<int32_t> ids = {-1, INT32_MIN, INT32_MAX, tokenizer->vocab_size()};
  EXPECT_EQ(tokenizer->decode(ids, false), "");
  EXPECT_EQ(incremental(tokenizer, ids, false), "");
  for (const int32_t id : ids) EXPECT_EQ(tokenizer->token_text(id), "");
}

// Quadratic merging would take minutes here, and a pattern that backtracks for ever as well.
TEST(TokenizerTest, LongRunsOfOneCharacterEnd) {
  const auto tokenizer = load("tokenizer-qwen3");
  ASSERT_TRUE(tokenizer);
  for (const std::string piece : {"a", " ", "\n", "1", "!", "é", "\xff", "ab"}) {
    std::string text;
    while (text.size() < 100'000) text += piece;
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, false), false).size() > 0, true);
  }
}

TEST(TokenizerTest, ADamagedFileIsAnErrorOrATokenizer) {
  const std::string whole = read_file(fixture("tiny-llama/tokenizer.json"));
  const uint64_t seed = testing::test_seed();
  SCOPED_TRACE(seed);
  Rng rng(seed);
  int refused = 0;
  for (int round = 0; round < 400; ++round) {
    std::string text = whole;
    for (uint64_t n = rng.below(3) + 1; n > 0; --n) {
      const size_t at = rng.below(text.size());
      switch (rng.below(3)) {
        case 0:
          text[at] = static_cast<char>(rng.below(256));
          break;
        case 1:
          text.erase(at, rng.below(64));
          break;
        default:
          text.resize(at + 1);
      }
    }
    const auto tokenizer = Tokenizer::from_json(text, "");
    if (!tokenizer.ok()) {
      EXPECT_FALSE(tokenizer.error().message.empty());
      ++refused;
      continue;
    }
    const auto ids = (*tokenizer)->encode("hello <|im_start|> world 123 é", true);
    EXPECT_TRUE(is_valid_utf8((*tokenizer)->decode(ids, false)));
  }
  EXPECT_GT(refused, 100);
}

TEST(TokenizerTest, ModelsThatAreNotBytePairsAreRefusedByName) {
  for (const char* type : {"Unigram", "WordPiece", "WordLevel"}) {
    const auto tokenizer =
        Tokenizer::from_json(json{{"model", {{"type", type}, {"vocab", json::object()}}}}.dump(), "");
    ASSERT_FALSE(tokenizer.ok());
    EXPECT_THAT(tokenizer.error().message, ::testing::HasSubstr(type));
  }
  Vocabulary vocabulary;
  vocabulary.model = "bert";
  vocabulary.tokens = {"a"};
  const auto tokenizer = Tokenizer::from_vocabulary(vocabulary);
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_THAT(tokenizer.error().message, ::testing::HasSubstr("bert"));
}

TEST(TokenizerTest, AByteTokenIsTwoHexadecimalDigits) {
  Vocabulary vocabulary;
  vocabulary.model = "llama";
  vocabulary.tokens = {"<unk>", "<0x-1>", "<0x4>", "<0x41>", "<0xZ0>", "<0x42"};
  vocabulary.token_types = {Vocabulary::kUnknown, Vocabulary::kByte, Vocabulary::kByte,
                            Vocabulary::kByte,    Vocabulary::kByte, Vocabulary::kByte};
  vocabulary.scores = {0, 0, 0, 0, 0, 0};
  vocabulary.unk_id = 0;
  vocabulary.add_bos = false;
  vocabulary.add_space_prefix = false;
  const auto tokenizer = Tokenizer::from_vocabulary(vocabulary);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  EXPECT_THAT((*tokenizer)->encode("A", false), ::testing::ElementsAre(3));
  EXPECT_THAT((*tokenizer)->encode("B", false), ::testing::ElementsAre(0)) << "the token of B has no end";
  EXPECT_EQ((*tokenizer)->token_bytes(1), "<0x-1>");
}

TEST(TokenizerTest, AMetaspaceOfNothingIsRefused) {
  json file = json::parse(read_file(fixture("tiny-llama/tokenizer.json")));
  file["decoder"] = {{"type", "Metaspace"}, {"replacement", ""}};
  const auto tokenizer = Tokenizer::from_json(file.dump(), "");
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_THAT(tokenizer.error().message, ::testing::HasSubstr("Metaspace"));
}

TEST(Utf8Test, AgreesWithTheTableOfUnicode) {
  const std::pair<const char*, const char*> cases[] = {
      {"\xc0\x80", "\uFFFD\uFFFD"},                      // overlong
      {"\xed\xa0\x80", "\uFFFD\uFFFD\uFFFD"},            // a surrogate
      {"\xf4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},  // above U+10FFFF
      {"\xe2\x82", "\uFFFD"},                            // cut short
      {"\xf0\x9f\x98", "\uFFFD"},                        // cut short
      {"\xf0\x9f\x41",
       "\uFFFD"
       "A"},               // cut short by a letter
      {"\x80", "\uFFFD"},  // a continuation alone
      {"\xf0\x9f\x98\x80", "\U0001F600"},
  };
  for (const auto& [bytes, expected] : cases) {
    std::string out;
    append_lossy(bytes, out, nullptr);
    EXPECT_EQ(out, expected);
  }
}

TEST(Utf8Test, KeepsTheBeginningOfACharacterForLater) {
  const std::string text = "aé日😀z";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    std::string out, rest;
    append_lossy(text.substr(0, cut), out, &rest);
    EXPECT_TRUE(is_valid_utf8(out));
    EXPECT_EQ(out.find(kReplacement), std::string::npos);
    EXPECT_EQ(out + rest, text.substr(0, cut));
  }
}

}  // namespace
}  // namespace sluice::tokenizer
