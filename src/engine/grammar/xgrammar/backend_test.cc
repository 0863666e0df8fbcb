#include "engine/grammar/xgrammar/backend.h"

#include <gtest/gtest.h>

namespace sluice::engine {
namespace {

// Every byte is a token, and so are a few words; 300 ends a text, 301 is special.
class XgrammarTest : public testing::Test {
 protected:
  XgrammarTest() {
    vocabulary_.tokens.resize(320);
    for (int i = 0; i < 256; ++i) vocabulary_.tokens[static_cast<size_t>(i)] = std::string(1, static_cast<char>(i));
    vocabulary_.tokens[256] = "true";
    vocabulary_.tokens[257] = "\": ";
    vocabulary_.tokens[258] = "ab";
    vocabulary_.stop_ids = {300};
    auto made = make_xgrammar_backend(vocabulary_);
    EXPECT_TRUE(made.ok());
    backend_ = std::move(*made);
  }

  std::unique_ptr<GrammarState> start(GrammarKind kind, const std::string& text) {
    const auto compiled = backend_->compile(kind, text);
    EXPECT_TRUE(compiled.ok()) << compiled.error().message;
    if (!compiled.ok()) return nullptr;
    const auto grammar = backend_->load(*compiled);
    EXPECT_TRUE(grammar.ok()) << grammar.error().message;
    EXPECT_GT((*grammar)->bytes(), 0u);
    grammars_.push_back(*grammar);
    return (*grammar)->start();
  }
  static std::vector<int32_t> allowed(GrammarState& state) {
    std::vector<uint32_t> mask(10);
    std::vector<int32_t> out;
    if (!state.allowed(mask)) return {-1};
    for (int32_t i = 0; i < 320; ++i) {
      if (mask[static_cast<size_t>(i) / 32] >> (i % 32) & 1) out.push_back(i);
    }
    return out;
  }
  // Takes the text byte by byte, and its end.
  static bool takes(GrammarState& state, std::string_view text) {
    for (const char c : text) {
      if (!state.accept(static_cast<unsigned char>(c))) return false;
    }
    return state.accept(300);
  }

  GrammarVocabulary vocabulary_;
  std::unique_ptr<GrammarBackend> backend_;
  std::vector<std::shared_ptr<const Grammar>> grammars_;
};

TEST_F(XgrammarTest, ARegularExpressionAllowsWhatGoesOnWithItAndThenTheEnd) {
  const auto state = start(GrammarKind::kRegex, "a(b|c)");
  ASSERT_TRUE(state);
  EXPECT_EQ(allowed(*state), (std::vector<int32_t>{'a', 258}));
  EXPECT_FALSE(state->accept('b'));
  EXPECT_TRUE(state->accept('a'));
  EXPECT_EQ(allowed(*state), (std::vector<int32_t>{'b', 'c'}));
  EXPECT_TRUE(state->accept('c'));
  EXPECT_EQ(allowed(*state), std::vector<int32_t>{300});
  EXPECT_FALSE(state->finished());
  EXPECT_TRUE(state->accept(300));
  EXPECT_TRUE(state->finished());
}

TEST_F(XgrammarTest, WithoutATokenForTheEndATextEndsWhereNothingGoesOn) {
  vocabulary_.stop_ids = {};
  backend_ = std::move(*make_xgrammar_backend(vocabulary_));
  const auto state = start(GrammarKind::kRegex, "a{1,3}");
  ASSERT_TRUE(state);
  for (const bool last : {false, false, true}) {
    EXPECT_FALSE(state->finished());
    EXPECT_TRUE(state->accept('a'));
    EXPECT_EQ(state->finished(), last);
  }
}

TEST_F(XgrammarTest, EachRequestHasItsOwnPlaceInAGrammar) {
  const auto first = start(GrammarKind::kRegex, "ab");
  ASSERT_TRUE(first);
  EXPECT_TRUE(first->accept('a'));
  const auto second = grammars_.back()->start();
  EXPECT_EQ(allowed(*second), (std::vector<int32_t>{'a', 258}));
}

TEST_F(XgrammarTest, AJsonSchemaHoldsToItsTypesAndProperties) {
  const std::string schema = R"({"type":"object","properties":{"ok":{"type":"boolean"},"n":{"type":"integer"}},
                                 "required":["ok"],"additionalProperties":false})";
  EXPECT_TRUE(takes(*start(GrammarKind::kJsonSchema, schema), R"({"ok": true, "n": -12})"));
  EXPECT_TRUE(takes(*start(GrammarKind::kJsonSchema, schema), "{\n  \"ok\": false\n}"));
  EXPECT_FALSE(takes(*start(GrammarKind::kJsonSchema, schema), R"({"n": 1})"));
  EXPECT_FALSE(takes(*start(GrammarKind::kJsonSchema, schema), R"({"ok": 1})"));
  EXPECT_FALSE(takes(*start(GrammarKind::kJsonSchema, schema), R"({"ok": true)"));
  EXPECT_FALSE(takes(*start(GrammarKind::kJsonSchema, schema), "{" + std::string(100, ' ')));
}

TEST_F(XgrammarTest, EbnfAndStructuralTags) {
  EXPECT_TRUE(takes(*start(GrammarKind::kEbnf, "root ::= \"x\" digit+\ndigit ::= [0-9]"), "x42"));
  const std::string tag = R"({"type":"structural_tag","format":{"type":"triggered_tags","triggers":["<f"],"tags":[
      {"type":"tag","begin":"<f>","content":{"type":"json_schema","json_schema":{"type":"integer"}},"end":"</f>"}]}})";
  EXPECT_TRUE(takes(*start(GrammarKind::kStructuralTag, tag), "free text <f>12</f> more"));
  EXPECT_FALSE(takes(*start(GrammarKind::kStructuralTag, tag), "<f>no</f>"));
}

TEST_F(XgrammarTest, SaysWhatIsWrongWithAGrammar) {
  const auto said = [&](GrammarKind kind, const std::string& text) {
    const auto compiled = backend_->compile(kind, text);
    EXPECT_FALSE(compiled.ok()) << text;
    if (compiled.ok()) return std::string();
    EXPECT_EQ(compiled.error().code, ErrorCode::kInvalidArgument);
    EXPECT_FALSE(compiled.error().message.empty()) << text;
    return compiled.error().message;
  };
  EXPECT_EQ(said(GrammarKind::kRegex, "a(b").find(".cc:"), std::string::npos) << "no places in source files";
  said(GrammarKind::kRegex, "[z-a]");
  said(GrammarKind::kJsonSchema, "{\"type\": ");
  said(GrammarKind::kJsonSchema, R"({"type": "number", "minimum": "x"})");
  said(GrammarKind::kEbnf, "root := 1");
  said(GrammarKind::kEbnf, "other ::= \"a\"");
  said(GrammarKind::kStructuralTag, "{}");
  EXPECT_FALSE(backend_->load("{}").ok());
}

}  // namespace
}  // namespace sluice::engine
