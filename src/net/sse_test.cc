#include "net/sse.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/rng.h"

namespace sluice::net {
namespace {

using testing::ElementsAre;
using Events = std::vector<std::string>;

Events read_in_pieces(std::string_view bytes, const std::function<size_t()>& piece) {
  Events events;
  SseReader reader;
  while (!bytes.empty()) {
    const size_t n = std::min(bytes.size(), piece());
    EXPECT_TRUE(reader.feed(bytes.substr(0, n), [&](std::string_view data) { events.emplace_back(data); }));
    bytes.remove_prefix(n);
  }
  return events;
}

Events read_whole(std::string_view bytes) {
  return read_in_pieces(bytes, [&] { return bytes.size() + 1; });
}

// The standard's algorithm, on the whole text at once.
Events naive(std::string text) {
  if (text.starts_with("\xEF\xBB\xBF")) text = text.substr(3);
  std::vector<std::string> lines;
  std::string line;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\r' && text[i] != '\n') {
      line.push_back(text[i]);
      continue;
    }
    if (text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n') ++i;
    lines.push_back(std::exchange(line, {}));
  }
  Events events;
  std::string data;
  for (const auto& l : lines) {
    if (l.empty()) {
      if (!data.empty()) events.push_back(data.substr(0, data.size() - 1));
      data.clear();
      continue;
    }
    const auto colon = l.find(':');
    std::string value = colon == std::string::npos ? "" : l.substr(colon + 1);
    if (value.starts_with(' ')) value = value.substr(1);
    if (l.substr(0, colon) == "data") data += value + "\n";
  }
  return events;
}

TEST(SseTest, WritesOneDataLinePerLine) {
  std::string out;
  append_sse(out, "{\"a\":1}");
  EXPECT_EQ(out, "data: {\"a\":1}\n\n");
  out.clear();
  append_sse(out, "a\nb\r\nc\rd\n");
  EXPECT_EQ(out, "data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n");
  EXPECT_THAT(read_whole(out), ElementsAre("a\nb\nc\nd\n"));
}

TEST(SseTest, HandlesWhatTheStandardNames) {
  EXPECT_THAT(read_whole("\xEF\xBB\xBF"
                         "data: a\n\n: comment\n\nevent: x\nid: 7\ndata:b\ndata\ndata:  c\n\nretry: 3\n\ndata:\n\n"),
              ElementsAre("a", "b\n\n c", ""));
  EXPECT_THAT(read_whole("data: a\r\rdata: b\r\n\r\ndatax: c\n\ndata: unfinished\n"), ElementsAre("a", "b"));
}

TEST(SseTest, NeverHoldsBackACompleteEvent) {
  for (const char* text : {"data: a\n\n", "data: a\r\r", "data: a\r\n\r\n"}) {
    SseReader reader;
    int events = 0;
    std::string_view bytes = text;
    // The event is complete with its blank line; the line feed after a final carriage return adds nothing.
    if (bytes.ends_with("\r\n")) bytes.remove_suffix(1);
    reader.feed(bytes, [&](std::string_view) { ++events; });
    EXPECT_EQ(events, 1) << text;
  }
}

TEST(SseTest, EqualsTheNaiveReaderUnderRandomSplits) {
  const uint64_t seed = 11;
  Rng rng(seed);
  const std::string_view pieces[] = {"data:",        "data",      " ",    ":",           "\n",
                                     "\r",           "\r\n",      "\n\n", "x",           "event: e",
                                     "\xEF\xBB\xBF", "{\"k\":1}", "id",   "\xE2\x82\xAC"};
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (uint64_t i = rng.below(40); i > 0; --i) text += pieces[rng.below(std::size(pieces))];
    // Ends a line for both; a lone CR at the very end means the same to both.
    const auto got = read_in_pieces(text, [&] { return 1 + rng.below(4); });
    EXPECT_EQ(got, naive(text)) << "seed " << seed << " round " << round << ": " << testing::PrintToString(text);
    EXPECT_EQ(read_whole(text), got);
  }
}

TEST(SseTest, BoundsAnEventWithoutAnEnd) {
  SseReader reader(100);
  const auto ignore = [](std::string_view) {};
  EXPECT_TRUE(reader.feed("data: " + std::string(80, 'a') + "\n\n", ignore));
  EXPECT_TRUE(reader.feed("data: " + std::string(80, 'a') + "\n", ignore));
  EXPECT_FALSE(reader.feed("data: " + std::string(80, 'a') + "\n", ignore));
  EXPECT_FALSE(reader.feed("\n\n", ignore));
}

}  // namespace
}  // namespace sluice::net
