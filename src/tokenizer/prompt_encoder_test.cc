#include "tokenizer/prompt_encoder.h"

#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "base/rng.h"
#include "testing/seed.h"
#include "tokenizer/files.h"

namespace sluice::tokenizer {
namespace {

using nlohmann::json;

std::shared_ptr<const Tokenizer> load(const std::string& name) {
  auto tokenizer = load_tokenizer(std::string(SLUICE_FIXTURES_DIR) + "/" + name);
  EXPECT_TRUE(tokenizer.ok()) << (tokenizer.ok() ? "" : tokenizer.error().message);
  return *tokenizer;
}

// Texts of the fixtures: prose, code, many scripts, seams between kinds of characters.
std::vector<std::string> texts() {
  std::ifstream in(std::string(SLUICE_FIXTURES_DIR) + "/tokenizer-qwen3/reference.json");
  std::vector<std::string> out;
  const auto reference = json::parse(in);
  for (const auto& c : reference["encode"]) out.push_back(c["text"]);
  for (const auto& c : reference["chat"]) out.push_back(c["rendered"]);
  return out;
}

std::string random_text(Rng& rng, const std::vector<std::string>& from, size_t bytes) {
  static const std::vector<std::string> kSeams = {
      " ",    "\n", "  ", "\n\n", "a ",         " b",   "\nc",           ".",    "'s",     "漢",
      "\n字", "é",  "\t", "9",    "<|im_end|>", "\r\n", "word and word", "\xff", "e\u0301"};
  std::string out;
  while (out.size() < bytes) {
    const auto& text = rng.below(3) == 0 ? kSeams[rng.below(kSeams.size())] : from[rng.below(from.size())];
    const size_t at = rng.below(text.size() + 1);
    out += text.substr(at, rng.below(400));
  }
  return out;
}

class PromptEncoderTest : public ::testing::TestWithParam<const char*> {};

// A conversation grows, is cut back and goes on elsewhere: whatever was there before, the ids are those of a full pass.
TEST_P(PromptEncoderTest, GivesTheIdsOfAFullPass) {
  const auto tokenizer = load(GetParam());
  PromptEncoder encoder(tokenizer, size_t{1} << 20);  // a small cache, so that entries are dropped
  const auto from = texts();
  const uint64_t seed = testing::test_seed();
  SCOPED_TRACE(seed);
  Rng rng(seed);
  std::string text;
  for (int round = 0; round < 100; ++round) {
    if (text.size() > 30'000 || rng.below(10) == 0) text.resize(rng.below(text.size() + 1));
    text += random_text(rng, from, rng.below(2000));
    const bool add_special = rng.below(2) == 0;
    ASSERT_EQ(encoder.encode(text, add_special), tokenizer->encode(text, add_special)) << text;
    EXPECT_LE(encoder.cached_bytes(), size_t{1} << 20);
  }
}

INSTANTIATE_TEST_SUITE_P(All, PromptEncoderTest,
                         ::testing::Values("tokenizer-qwen3", "tokenizer-deepseek_v3", "tokenizer-tiktoken",
                                           "tokenizer-sentencepiece", "tiny-llama"));

TEST(PromptEncoderCutsTest, TheServedFamiliesMayBeCut) {
  for (const char* name : {"tokenizer-qwen3", "tokenizer-deepseek_v3", "tokenizer-tiktoken"}) {
    EXPECT_EQ(PromptEncoder(load(name)).cuts(), Cuts::kWordsAndLines) << name;
  }
}

TEST(PromptEncoderCutsTest, SentencePieceIsCutBetweenWords) {
  EXPECT_EQ(PromptEncoder(load("tokenizer-sentencepiece")).cuts(), Cuts::kWords);
}

TEST(PromptEncoderCutsTest, ATextThatIsOneWordIsNotCut) {
  // A model whose words may go across a space.
  auto json = nlohmann::json::parse(std::ifstream(std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama/tokenizer.json"));
  json["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Split"}, {"pattern", {{"Regex", "[^\n]+|\n"}}}, {"behavior", "Isolated"}},
                             {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  const auto lines = Tokenizer::from_json(json.dump(), "");
  ASSERT_TRUE(lines.ok()) << lines.error().message;
  EXPECT_EQ(PromptEncoder(*lines).cuts(), Cuts::kNone);
}

// A space comes before the beginning of a prompt, and not before the same text elsewhere.
TEST(PromptEncoderCutsTest, TheBeginningOfAPromptMayHaveIdsOfItsOwn) {
  json vocabulary;
  vocabulary["▁"] = 0;
  for (int i = 0; i < 26; ++i) vocabulary[std::string(1, static_cast<char>('a' + i))] = i + 1;
  const json metaspace = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "first"}, {"split", true}};
  const json file = {{"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", json::array()}}},
                     {"added_tokens", json::array({{{"id", 27}, {"content", "<s>"}, {"special", true}}})},
                     {"pre_tokenizer", metaspace},
                     {"decoder", metaspace}};
  const auto tokenizer = Tokenizer::from_json(file.dump(), "");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  PromptEncoder encoder(*tokenizer);
  ASSERT_EQ(encoder.cuts(), Cuts::kWords);
  std::string text;
  for (int i = 0; i < 200; ++i) text += "some words ";
  for (const std::string& prompt : {text, "<s>" + text, text}) {
    EXPECT_EQ(encoder.encode(prompt, false), (*tokenizer)->encode(prompt, false));
  }
  EXPECT_NE((*tokenizer)->encode(text, false)[0], (*tokenizer)->encode("<s>" + text, false)[1]);
  EXPECT_LT(encoder.tokenized_bytes(), 2 * text.size()) << "the segments after the first are found";
}

TEST(PromptEncoderCutsTest, EveryPreTokenizerOfGgufFilesMayBeCut) {
  Vocabulary vocabulary;
  for (int b = 33; b < 127; ++b) vocabulary.tokens.emplace_back(1, static_cast<char>(b));
  for (const char* name : {"gpt-2", "smollm", "qwen2", "llama-bpe", "deepseek-llm", "deepseek-coder", "deepseek-v3",
                           "tekken", "gpt-4o", "kimi-k2", "falcon", "default"}) {
    vocabulary.pre_tokenizer = name;
    const auto tokenizer = Tokenizer::from_vocabulary(vocabulary);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
    EXPECT_NE(PromptEncoder(*tokenizer).cuts(), Cuts::kNone) << name;
  }
}

TEST(PromptEncoderCostTest, ATurnCostsItsNewPart) {
  const auto tokenizer = load("tokenizer-qwen3");
  PromptEncoder encoder(tokenizer);
  const auto from = texts();
  Rng rng(3);
  std::string prompt = "<|im_start|>system\nYou help.<|im_end|>\n";
  for (int turn = 0; turn < 40; ++turn) {
    const auto message = "<|im_start|>user\n" + random_text(rng, from, 500 + rng.below(3000)) + "<|im_end|>\n";
    prompt += message;
    const auto before = encoder.tokenized_bytes();
    const auto ids = encoder.encode(prompt, false);
    ASSERT_EQ(ids, tokenizer->encode(prompt, false));
    const auto cost = encoder.tokenized_bytes() - before;
    // U+FFFD for bytes that are no text is longer than they are. Segments below 48 bytes are not kept.
    EXPECT_LE(cost, message.size() * 3 + prompt.size() / 10) << "turn " << turn;
  }
  // The same once more costs what is too short to be kept.
  const auto before = encoder.tokenized_bytes();
  encoder.encode(prompt, false);
  EXPECT_LT(encoder.tokenized_bytes() - before, prompt.size() / 10);
}

class PromptEncoderGrowthTest : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Some, PromptEncoderGrowthTest,
                         ::testing::Values("tokenizer-deepseek_v3", "tokenizer-sentencepiece"));

// Of SentencePiece's the beginning as well.
TEST_P(PromptEncoderGrowthTest, PlainTextCostsItsNewPartAndASegment) {
  const auto tokenizer = load(GetParam());
  PromptEncoder encoder(tokenizer);
  std::string prompt;
  Rng rng(4);
  for (int turn = 0; turn < 50; ++turn) {
    std::string more;
    for (int i = 0; i < 200; ++i) more += std::string(1 + rng.below(8), static_cast<char>('a' + rng.below(26))) + " ";
    prompt += more;
    const auto before = encoder.tokenized_bytes();
    const auto ids = encoder.encode(prompt, false);
    EXPECT_LE(encoder.tokenized_bytes() - before, more.size() + 1200) << "turn " << turn;
    ASSERT_EQ(ids, tokenizer->encode(prompt, false));
  }
}

TEST(PromptEncoderCostTest, AFullCacheKeepsWhatIsUsed) {
  const auto tokenizer = load("tokenizer-qwen3");
  PromptEncoder encoder(tokenizer, 256 * 1024);
  std::string system;
  for (int i = 0; i < 500; ++i) system += fmt::format("Rule {} says that a line is a line.\n", i);
  encoder.encode(system, false);
  for (int i = 0; i < 300; ++i) {
    encoder.encode(system + fmt::format("User {} asks something that nobody asked before.\n", i), false);
    EXPECT_LE(encoder.cached_bytes(), 256u * 1024);
  }
  const auto before = encoder.tokenized_bytes();
  encoder.encode(system, false);
  EXPECT_LT(encoder.tokenized_bytes() - before, 700u);
}

TEST(PromptEncoderThreadsTest, ManyThreadsGetTheSame) {
  const auto tokenizer = load("tiny-llama");
  PromptEncoder encoder(tokenizer, 200 * 1024);
  const auto from = texts();
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Rng rng(t / 2);  // two threads of each kind
      for (int round = 0; round < 100; ++round) {
        const auto text = random_text(rng, from, 3000);
        if (encoder.encode(text, true) != tokenizer->encode(text, true)) ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(NextCutTest, IsBetweenWordsThatNothingJoins) {
  EXPECT_EQ(next_cut("ab cd", 1, Cuts::kWordsAndLines), 2u);
  EXPECT_EQ(next_cut("ab cd", 3, Cuts::kWordsAndLines), 5u);
  EXPECT_EQ(next_cut("ab  cd", 1, Cuts::kWordsAndLines), 6u);
  EXPECT_EQ(next_cut("ab 1 cd", 1, Cuts::kWordsAndLines), 7u);
  EXPECT_EQ(next_cut("ab\ncd", 1, Cuts::kWordsAndLines), 3u);
  EXPECT_EQ(next_cut("ab\n cd", 1, Cuts::kWordsAndLines), 6u);
  EXPECT_EQ(next_cut("字\n字", 1, Cuts::kWordsAndLines), 4u);
  EXPECT_EQ(next_cut("a", 1, Cuts::kWordsAndLines), 1u);
  EXPECT_EQ(next_cut("ab\ncd ef", 1, Cuts::kWords), 5u);
  EXPECT_EQ(next_cut("", 0, Cuts::kWordsAndLines), 0u);
}

}  // namespace
}  // namespace sluice::tokenizer
