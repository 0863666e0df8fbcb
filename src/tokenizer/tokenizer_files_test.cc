// Tokenizers from tiktoken.model and tokenizer.model, against what their libraries say
// (tests/tools/make_tokenizer_files_fixture.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/rng.h"
#include "testing/seed.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/files.h"
#include "tokenizer/prompt_encoder.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/tokenizer_config.h"
#include "tokenizer/utf8.h"

namespace sluice::tokenizer {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

std::string fixture(const std::string& path) { return std::string(SLUICE_FIXTURES_DIR) + "/" + path; }

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

std::shared_ptr<const Tokenizer> load(const std::string& name) {
  auto tokenizer = load_tokenizer(fixture(name));
  EXPECT_TRUE(tokenizer.ok()) << (tokenizer.ok() ? "" : tokenizer.error().message);
  return tokenizer.ok() ? *tokenizer : nullptr;
}

TEST(TiktokenTest, EncodesAndDecodesLikeTheLibrary) {
  const auto tokenizer = load("tokenizer-tiktoken");
  ASSERT_TRUE(tokenizer);
  const auto reference = json::parse(read_file(fixture("tokenizer-tiktoken/reference.json")));
  for (const auto& c : reference["cases"]) {
    const auto text = c["text"].get<std::string>();
    const auto ids = c["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer->encode(text, true), ids) << text;
    EXPECT_EQ(tokenizer->decode(ids, false), c["decoded"].get<std::string>()) << text;
  }
  EXPECT_GT(reference["cases"].size(), 300u);
}

TEST(TiktokenTest, KnowsTheSpecialTokensOfItsConfiguration) {
  const auto tokenizer = load("tokenizer-tiktoken");
  ASSERT_TRUE(tokenizer);
  EXPECT_EQ(tokenizer->vocab_size(), 956);
  EXPECT_EQ(tokenizer->bos_id(), 700);
  EXPECT_EQ(tokenizer->eos_id(), 701);
  EXPECT_TRUE(tokenizer->is_special(702));
  EXPECT_FALSE(tokenizer->is_special(711)) << "marks of tool calls are part of the text";
  EXPECT_EQ(tokenizer->token_text(720), "<|reserved_token_720|>");
  EXPECT_EQ(tokenizer->chat_template(), "{{ messages[0].content }}");
}

std::string rendered(const std::string& source, const std::string& context) {
  const auto parsed = ChatTemplate::parse(source);
  if (!parsed.ok()) return parsed.error().message;
  const auto out = parsed->render(nlohmann::ordered_json::parse(context));
  return out.ok() ? *out : out.error().message;
}

// As the library chooses, and each renders as it does by itself.
TEST(TokenizerConfigTest, OfNamedTemplatesTheOneForToolsIsTakenWhereThereAreTools) {
  const auto chat_template = [](const json& list) {
    return read_tokenizer_config(json{{"chat_template", list}}.dump())->chat_template;
  };
  const json plain = {{"name", "default"}, {"template", "  {% set a = 1 %}\n plain {{ a }}\n  \n"}};
  const json tools = {{"name", "tool_use"}, {"template", "\n\n  {{ tools[0] }}\n{# c #}\n  \n"}};
  const json rag = {{"name", "rag"}, {"template", "rag"}};
  for (const auto& list : {json::array({rag, plain, tools}), json::array({tools, rag, plain})}) {
    const auto both = chat_template(list);
    EXPECT_EQ(rendered(both, R"({"tools": ["t"]})"), "\n\n  t\n  ");
    for (const char* none : {"{}", R"({"tools": null})", R"({"tools": []})"}) {
      EXPECT_EQ(rendered(both, none), " plain 1\n  ") << none;
    }
    EXPECT_EQ(rendered(both, R"({"tools": ["t"]})"), rendered(tools["template"], R"({"tools": ["t"]})"));
    EXPECT_EQ(rendered(both, "{}"), rendered(plain["template"], "{}"));
  }
  EXPECT_EQ(chat_template(json::array({rag, plain})), plain["template"]);
  EXPECT_EQ(chat_template(json::array({tools})), tools["template"]);
}

TEST(TiktokenTest, RefusesWhatItCannotKnow) {
  const auto error = [](std::string_view ranks, std::string_view config) {
    const auto tokenizer = Tokenizer::from_tiktoken(ranks, config);
    return tokenizer.ok() ? "no error" : tokenizer.error().message;
  };
  const std::string kimi = R"({"tokenizer_class":"TikTokenTokenizer"})";
  EXPECT_THAT(error("IQ== 0\n", R"({"tokenizer_class":"QWenTokenizer"})"), HasSubstr("QWenTokenizer"));
  EXPECT_THAT(error("", kimi), HasSubstr("empty"));
  EXPECT_THAT(error("IQ== 0\nIg==\n", kimi), HasSubstr("line 2"));
  EXPECT_THAT(error("IQ== 0\n*g== 1\n", kimi), HasSubstr("line 2"));
  EXPECT_THAT(error("IQ== 0\nIg== 0\n", kimi), HasSubstr("rank 0 comes twice"));
  EXPECT_THAT(error("IQ== 99999999999\n", kimi), HasSubstr("line 1"));
  EXPECT_THAT(error("IQ== 99999999\n", kimi), HasSubstr("rank 99999999"));
  EXPECT_THAT(error("IQ== 0\n", kimi), HasSubstr("no token of byte 0"));
}

TEST(SentencePieceTest, EncodesAndDecodesLikeTheLibrary) {
  const auto tokenizer = load("tokenizer-sentencepiece");
  ASSERT_TRUE(tokenizer);
  const auto config = read_file(fixture("tokenizer-sentencepiece/tokenizer_config.json"));
  auto legacy_config = json::parse(config);
  legacy_config.erase("legacy");
  const auto model = read_file(fixture("tokenizer-sentencepiece/tokenizer.model"));
  const auto legacy = Tokenizer::from_sentencepiece(model, legacy_config.dump());
  ASSERT_TRUE(legacy.ok());
  const auto reference = json::parse(read_file(fixture("tokenizer-sentencepiece/reference.json")));
  size_t differ = 0, decoded = 0;
  for (const auto& c : reference["cases"]) {
    const auto text = c["text"].get<std::string>();
    const auto ids = c["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer->encode(text, false), ids) << text;
    EXPECT_EQ((*legacy)->encode(text, false), c["ids_legacy"].get<std::vector<int32_t>>()) << text;
    if (c["ids"] != c["ids_legacy"]) ++differ;
    if (!c.contains("decoded")) continue;
    EXPECT_EQ(tokenizer->decode(ids, false), c["decoded"].get<std::string>()) << text;
    ++decoded;
  }
  EXPECT_GT(differ, 20u);
  EXPECT_GT(decoded, 150u);
}

Vocabulary scored_vocabulary() {
  const auto json = json::parse(read_file(fixture("tokenizer-sentencepiece/vocabulary.json")));
  Vocabulary out;
  out.model = "llama";
  out.tokens = json["tokens"];
  out.scores = json["scores"].get<std::vector<float>>();
  out.token_types = json["types"].get<std::vector<int32_t>>();
  out.unk_id = 0;
  out.bos_id = 1;
  out.eos_id = 2;
  return out;
}

// The vocabulary of a GGUF file, which has scores and no merges. It encodes each stretch of text as if it stood at the
// start.
TEST(ScoredVocabularyTest, EncodesAndDecodesLikeTheLibrary) {
  const auto tokenizer = Tokenizer::from_vocabulary(scored_vocabulary());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  const auto reference = json::parse(read_file(fixture("tokenizer-sentencepiece/reference.json")));
  for (const auto& c : reference["cases"]) {
    const auto text = c["text"].get<std::string>();
    const auto ids = (*tokenizer)->encode(text, false);
    EXPECT_EQ(ids, c["ids_legacy"].get<std::vector<int32_t>>()) << text;
    if (!c.contains("decoded")) continue;
    EXPECT_EQ((*tokenizer)->decode(ids, false), c["decoded"].get<std::string>()) << text;
  }
  EXPECT_EQ((*tokenizer)->encode("a", true)[0], 1);
  EXPECT_TRUE((*tokenizer)->is_special(2));
}

// One after another, so that later texts find segments of earlier ones.
TEST(ScoredVocabularyTest, APromptIsCutBetweenWordsAndHasTheIdsOfAFullPass) {
  const auto tokenizer = Tokenizer::from_vocabulary(scored_vocabulary());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  PromptEncoder encoder(*tokenizer);
  EXPECT_EQ(encoder.cuts(), Cuts::kWords);
  const auto reference = json::parse(read_file(fixture("tokenizer-sentencepiece/reference.json")));
  std::string prompt;
  for (const auto& c : reference["cases"]) {
    prompt += c["text"].get<std::string>() + " and so on";
    if (prompt.size() > 8000) prompt.erase(0, 4000);
    ASSERT_EQ(encoder.encode(prompt, true), (*tokenizer)->encode(prompt, true)) << prompt;
  }
  const auto before = encoder.tokenized_bytes();
  encoder.encode(prompt, true);
  EXPECT_LT(encoder.tokenized_bytes() - before, prompt.size());
}

TEST(ScoredVocabularyTest, AVocabularyWhosePiecesGoAcrossSpacesIsNotCut) {
  auto vocabulary = scored_vocabulary();
  for (auto& token : vocabulary.tokens) {
    if (token == "the")
      token =
          "a\xE2\x96\x81"
          "b";
  }
  const auto tokenizer = Tokenizer::from_vocabulary(vocabulary);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  EXPECT_EQ(PromptEncoder(*tokenizer).cuts(), Cuts::kNone);
}

TEST(ScoredVocabularyTest, RefusesOneWithoutScores) {
  auto vocabulary = scored_vocabulary();
  vocabulary.scores.pop_back();
  const auto tokenizer = Tokenizer::from_vocabulary(vocabulary);
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_THAT(tokenizer.error().message, HasSubstr("scores"));
}

TEST(SentencePieceTest, PutsTheBeginningOfSequenceFirst) {
  const auto tokenizer = load("tokenizer-sentencepiece");
  ASSERT_TRUE(tokenizer);
  const auto ids = tokenizer->encode("the gateway", true);
  ASSERT_GT(ids.size(), 1u);
  EXPECT_EQ(ids[0], 1);
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_TRUE(tokenizer->is_special(1));
  EXPECT_EQ(tokenizer->decode(ids, true), "the gateway");
  IncrementalDecoder decoder(tokenizer, true);
  std::string text;
  for (const auto id : ids) text += decoder.push(id);
  EXPECT_EQ(text + decoder.finish(), "the gateway");
  // What follows other text keeps its space, each time.
  IncrementalDecoder answer(tokenizer, true, /*at_head=*/false);
  for (int time = 0; time < 2; ++time) {
    text.clear();
    for (const auto id : ids) text += answer.push(id);
    EXPECT_EQ(text + answer.finish(), " the gateway");
  }
  EXPECT_EQ(tokenizer->special_tokens().at("unk_token"), "<unk>");
}

TEST(SentencePieceTest, ADamagedFileIsAnErrorOrATokenizer) {
  const auto whole = read_file(fixture("tokenizer-sentencepiece/tokenizer.model"));
  EXPECT_FALSE(Tokenizer::from_sentencepiece("", "").ok());
  EXPECT_FALSE(Tokenizer::from_sentencepiece("no model", "").ok());
  const uint64_t seed = testing::test_seed();
  SCOPED_TRACE(seed);
  Rng rng(seed);
  int refused = 0;
  for (int round = 0; round < 100; ++round) {
    auto model = whole;
    rng.below(2) == 0 ? model.resize(rng.below(model.size()))
                      : void(model[rng.below(200)] = static_cast<char>(rng.below(256)));
    const auto tokenizer = Tokenizer::from_sentencepiece(model, "");
    if (!tokenizer.ok()) {
      EXPECT_THAT(tokenizer.error().message, HasSubstr("tokenizer.model"));
      ++refused;
      continue;
    }
    EXPECT_TRUE(is_valid_utf8((*tokenizer)->decode((*tokenizer)->encode("hello 漢", true), false)));
  }
  EXPECT_GT(refused, 20);
}

TEST(TokenizerFilesTest, AFolderWithoutAnyIsAnErrorThatNamesThem) {
  const auto missing = load_tokenizer(fixture("gguf-blocks"));
  ASSERT_FALSE(missing.ok());
  EXPECT_THAT(missing.error().message, HasSubstr("tiktoken.model"));
}

}  // namespace
}  // namespace sluice::tokenizer
