#include "parsers/reasoning.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace sluice::parsers {
namespace {

struct Parts {
  std::string reasoning, answer;
  bool operator==(const Parts&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Parts& parts) {
  return out << "[" << parts.reasoning << "][" << parts.answer << "]";
}

Parts split(const ReasoningFormat& format, bool inside, bool stream, const std::vector<std::string_view>& pieces,
            size_t* bytes = nullptr) {
  ReasoningSplitter splitter(format, inside, stream, {"<tool_call>"});
  Parts out;
  for (const auto piece : pieces) splitter.push(piece, out.reasoning, out.answer);
  splitter.finish(out.reasoning, out.answer);
  if (bytes != nullptr) *bytes = splitter.reasoning_bytes();
  return out;
}

class ReasoningConformance : public ::testing::TestWithParam<ReasoningFormat> {
 protected:
  // The same in every two pieces, and byte by byte but for characters.
  Parts every_way(bool inside, std::string_view text) {
    const auto& format = GetParam();
    const Parts whole = split(format, inside, true, {text});
    std::vector<std::string_view> single;
    for (size_t i = 0; i < text.size();) {
      size_t n = 1;
      while (i + n < text.size() && (static_cast<unsigned char>(text[i + n]) & 0xC0) == 0x80) ++n;
      single.push_back(text.substr(i, n));
      i += n;
      EXPECT_EQ(split(format, inside, true, {text.substr(0, i), text.substr(i)}), whole) << text;
      EXPECT_EQ(split(format, inside, false, {text.substr(0, i), text.substr(i)}), whole) << text;
    }
    EXPECT_EQ(split(format, inside, true, single), whole) << text;
    EXPECT_EQ(split(format, inside, false, single), whole) << text;
    return whole;
  }
  std::string open() const { return std::string(GetParam().open); }
  std::string close() const { return std::string(GetParam().close); }
};

TEST_P(ReasoningConformance, TellsReasoningFromTheAnswer) {
  if (GetParam().begins == ReasoningFormat::Begins::kInText) {
    EXPECT_EQ(every_way(false, "so\n" + close() + "\n\nyes"), (Parts{"", open() + "so\n" + close() + "\n\nyes"}));
    return;
  }
  const Parts expected{"I think 1 < 2.\n\nSo.", "It is ≤ 2. "};
  const std::string thought = "\nI think 1 < 2.\n\nSo.\n";
  EXPECT_EQ(every_way(false, open() + thought + close() + "\n\nIt is ≤ 2. "), expected);
  EXPECT_EQ(every_way(true, thought + close() + "\n\nIt is ≤ 2. "), expected);
  // An opening mark that the prompt had already, or that comes again.
  EXPECT_EQ(every_way(true, "\n" + open() + open() + thought + close() + "It is ≤ 2. "), expected);
  EXPECT_EQ(every_way(true, "\n " + close() + "yes"), (Parts{"", "yes"}));
  EXPECT_EQ(every_way(false, open() + "\n\n" + close() + "\n\nyes"), (Parts{"", "yes"}));
  // Cut short.
  EXPECT_EQ(every_way(false, open() + "hm, "), (Parts{"hm, ", ""}));
  EXPECT_EQ(every_way(true, "hm" + close().substr(0, close().size() - 1)),
            (Parts{"hm" + close().substr(0, close().size() - 1), ""}));
  EXPECT_EQ(every_way(true, ""), Parts());
  // A call ends it.
  EXPECT_EQ(every_way(true, "hm\n<tool_call> x"), (Parts{"hm", "<tool_call> x"}));
}

TEST_P(ReasoningConformance, AnAnswerWithoutReasoningStaysAsItIs) {
  if (GetParam().begins == ReasoningFormat::Begins::kInText) return;
  for (const std::string& text : {std::string(), std::string(" \n"), std::string("\n yes "), "yes " + open() + "no",
                                  open().substr(0, open().size() - 1), "\n" + open().substr(0, 3) + "x", close()}) {
    EXPECT_EQ(every_way(false, text), (Parts{"", text}));
  }
}

TEST_P(ReasoningConformance, CountsTheBytesOfReasoningWithItsMarks) {
  if (GetParam().begins == ReasoningFormat::Begins::kInText) return;
  size_t bytes = 0;
  const std::string thinking = "\n" + open() + "\n hm \n" + close();
  split(GetParam(), false, true, {thinking + "\n yes"}, &bytes);
  EXPECT_EQ(bytes, thinking.size());
  split(GetParam(), false, true, {"yes"}, &bytes);
  EXPECT_EQ(bytes, 0u);
}

TEST_P(ReasoningConformance, ThePromptSaysWhereTheAnswerBegins) {
  const auto& format = GetParam();
  const bool always = format.begins == ReasoningFormat::Begins::kInside;
  EXPECT_TRUE(begins_inside(format, "assistant\n" + open() + "\n"));
  EXPECT_FALSE(begins_inside(format, "assistant\n" + open() + "\n\n" + close() + "\n\n"));
  EXPECT_EQ(begins_inside(format, "say " + open() + "<|assistant|>"), always);
  EXPECT_TRUE(begins_inside(format, "", open() + "\nLet me"));
  EXPECT_FALSE(begins_inside(format, "", open() + "\nLet me" + close() + "It is"));
  EXPECT_EQ(begins_inside(format, "", "It is"), always);
  EXPECT_TRUE(begins_inside(format, "assistant\n" + open() + "\n", "Let me"));
  EXPECT_FALSE(begins_inside(format, "assistant\n" + open() + "\n\n" + close(), "It is"));
}

INSTANTIATE_TEST_SUITE_P(All, ReasoningConformance, ::testing::ValuesIn(reasoning_formats()), [](const auto& info) {
  std::string name(info.param.name);
  std::ranges::replace(name, '-', '_');
  return name;
});

TEST(ReasoningFormatsTest, NamesAreFound) {
  for (const auto name : reasoning_format_names()) EXPECT_EQ(find_reasoning_format(name)->name, name);
  EXPECT_EQ(find_reasoning_format("aloud"), nullptr);
}

TEST(ReasoningSplitterTest, StreamsReasoningAsItComes) {
  ReasoningSplitter splitter(*find_reasoning_format("qwen3"), false, true, {});
  std::string reasoning, answer;
  splitter.push("<think>\nfirst", reasoning, answer);
  EXPECT_EQ(reasoning, "first");
  splitter.push(" second\n", reasoning, answer);
  EXPECT_EQ(reasoning, "first second");
  splitter.push("third</think>", reasoning, answer);
  EXPECT_EQ(reasoning, "first second\nthird");
}

TEST(ReasoningSplitterTest, GivesItOutAsAWholeWhereItIsNotStreamed) {
  ReasoningSplitter splitter(*find_reasoning_format("qwen3"), false, false, {});
  std::string reasoning, answer;
  splitter.push("<think>\nfirst second", reasoning, answer);
  EXPECT_EQ(reasoning, "");
  splitter.push("\n</think>\n\nyes", reasoning, answer);
  EXPECT_EQ(reasoning, "first second");
  EXPECT_EQ(answer, "yes");
}

}  // namespace
}  // namespace sluice::parsers
