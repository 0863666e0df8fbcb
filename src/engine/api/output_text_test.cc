#include "engine/api/output_text.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "engine/served_model.h"
#include "testing/seed.h"

namespace sluice::engine {
namespace {

using tokenizer::Tokenizer;

class OutputTextTest : public ::testing::Test {
 protected:
  OutputTextTest() {
    const std::string folder = std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama";
    auto model = load_served_model(
        {.model_path = "tiny", .name = "", .model_file = folder, .tokenizer_file = folder, .chat_template = ""});
    EXPECT_TRUE(model.ok());
    tokenizer_ = model->tokenizer;
    for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
      const auto bytes = tokenizer_->token_bytes(id);
      if (bytes.size() == 1) byte_ids_[static_cast<unsigned char>(bytes[0])] = id;
    }
  }

  std::vector<int32_t> bytes(std::string_view text) const {
    std::vector<int32_t> out;
    for (const char c : text) out.push_back(byte_ids_[static_cast<unsigned char>(c)]);
    return out;
  }

  // The pieces of a text that comes in messages of up to `step` tokens and ends with `finish`.
  std::vector<std::string> pieces(const std::vector<int32_t>& ids, size_t step, const OutputText::Options& options,
                                  const FinishReason& finish) const {
    OutputText text(tokenizer_, options);
    std::vector<std::string> out;
    for (size_t i = 0; i < ids.size(); i += step) {
      const size_t n = std::min(step, ids.size() - i);
      std::string piece;
      text.push(std::span(ids).subspan(i, n), i + n == ids.size() ? finish : FinishReason{}, piece);
      out.push_back(std::move(piece));
    }
    return out;
  }
  static std::string joined(const std::vector<std::string>& pieces) {
    std::string out;
    for (const auto& piece : pieces) out += piece;
    return out;
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::array<int32_t, 256> byte_ids_{};
};

const FinishReason kLength{.kind = FinishKind::kLength};

TEST_F(OutputTextTest, AStopStringNeverShowsWhereverItIsSplit) {
  // The rank ends with the token that completes it.
  const std::string whole = "ab#ab##ab###END";
  const FinishReason finish{.kind = FinishKind::kStopString, .matched_string = "###END"};
  for (size_t step = 1; step <= whole.size(); ++step) {
    const auto out = pieces(bytes(whole), step, {.stop = {"###END", "never"}}, finish);
    EXPECT_EQ(joined(out), "ab#ab##ab") << "in steps of " << step;
    std::string shown;
    for (const auto& piece : out) {
      shown += piece;
      EXPECT_TRUE(std::string_view("ab#ab##ab").starts_with(shown)) << shown;
    }
  }
  // That token may say more.
  EXPECT_EQ(joined(pieces(bytes("ab###END tail"), 13, {.stop = {"###END"}}, finish)), "ab");
}

TEST_F(OutputTextTest, WhatOnlyLookedLikeAStopIsShown) {
  for (size_t step = 1; step < 12; ++step) {
    EXPECT_EQ(joined(pieces(bytes("a##b###EN"), step, {.stop = {"###END"}}, kLength)), "a##b###EN");
  }
  // Its tail overlaps itself.
  const FinishReason finish{.kind = FinishKind::kStopString, .matched_string = "aab"};
  EXPECT_EQ(joined(pieces(bytes("xaaaab"), 1, {.stop = {"aab"}}, finish)), "xaa");
}

TEST_F(OutputTextTest, TheEarliestOfSeveralStopsCuts) {
  const FinishReason finish{.kind = FinishKind::kStopString, .matched_string = "bar"};
  EXPECT_EQ(joined(pieces(bytes("foo\nbar"), 7, {.stop = {"bar", "\n"}}, finish)), "foo");
}

TEST_F(OutputTextTest, WhatAStopRegexMatchedIsShownAlsoWhereItIsThePatternItself) {
  const FinishReason finish{.kind = FinishKind::kStopString, .matched_string = "END"};
  for (size_t step = 1; step <= 4; ++step) EXPECT_EQ(joined(pieces(bytes("aEND"), step, {}, finish)), "aEND") << step;
}

TEST_F(OutputTextTest, NoStopTrimShowsEverything) {
  const FinishReason by_string{.kind = FinishKind::kStopString, .matched_string = "END"};
  EXPECT_EQ(joined(pieces(bytes("aEND"), 1, {.no_stop_trim = true, .stop = {"END"}}, by_string)), "aEND");
  auto ids = bytes("ab");
  const FinishReason by_token{.kind = FinishKind::kStopToken, .matched_token = ids[1]};
  EXPECT_EQ(joined(pieces(ids, 1, {.no_stop_trim = true}, by_token)), "ab");
  EXPECT_EQ(joined(pieces(ids, 1, {}, by_token)), "a");
  ids[1] = 2;  // special
  const FinishReason special{.kind = FinishKind::kStopToken, .matched_token = 2};
  EXPECT_EQ(joined(pieces(ids, 1, {.skip_special = false, .no_stop_trim = true}, special)), "a<|im_end|>");
  EXPECT_EQ(joined(pieces(ids, 1, {.skip_special = true, .no_stop_trim = true}, special)), "a");
}

TEST_F(OutputTextTest, NoPieceEndsInHalfACharacter) {
  const std::string whole = "é€🙂x";
  for (size_t step = 1; step <= whole.size(); ++step) {
    std::string shown;
    for (const auto& piece : pieces(bytes(whole), step, {}, kLength)) {
      EXPECT_EQ(piece.find("\xEF\xBF\xBD"), std::string::npos);
      shown += piece;
    }
    EXPECT_EQ(shown, whole);
  }
  // What ends in the middle of one has a replacement for it, as decode() has.
  EXPECT_EQ(joined(pieces(bytes("a\xE2\x82"), 1, {}, kLength)), "a\xEF\xBF\xBD");
}

// Against the obvious: decode everything, cut at the first stop.
TEST_F(OutputTextTest, EqualsTheWholeDecodedAndCutForRandomTexts) {
  const uint64_t seed = testing::test_seed();
  SCOPED_TRACE(seed);
  Rng rng(seed);
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops;
    for (uint64_t i = 0; i <= rng.below(3); ++i) {
      std::string stop;
      for (uint64_t k = 0; k <= rng.below(4); ++k) stop += static_cast<char>('a' + rng.below(2));
      stops.push_back(stop);
    }
    // The rank's rule: it ends with the token that completes a stop string.
    std::string text;
    FinishReason finish = kLength;
    const size_t length = 1 + rng.below(30);
    std::vector<int32_t> ids;
    while (ids.size() < length && finish.kind == FinishKind::kLength) {
      const char c = static_cast<char>('a' + rng.below(3));
      text += c;
      ids.push_back(byte_ids_[static_cast<unsigned char>(c)]);
      for (const auto& stop : stops) {
        if (text.ends_with(stop)) finish = {.kind = FinishKind::kStopString, .matched_string = stop};
      }
    }
    size_t cut = text.size();
    for (const auto& stop : stops) cut = std::min(cut, text.find(stop));
    const std::string expected = text.substr(0, cut);
    EXPECT_EQ(joined(pieces(ids, 1 + rng.below(4), {.stop = stops}, finish)), expected) << text;
  }
}

}  // namespace
}  // namespace sluice::engine
