// Events of a stream, in any cut, held against a reader that has the whole text; and frames that are written and read.
#include <vector>

#include "fuzz.h"
#include "net/sse.h"

using namespace sluice;

namespace {

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  std::string line;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\r' && text[i] != '\n') {
      line += text[i];
      continue;
    }
    lines.push_back(std::move(line));
    line.clear();
    if (text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n') ++i;
  }
  return lines;  // what has no end is no line yet
}

std::vector<std::string> slow_events(std::string_view text) {
  std::vector<std::string> events;
  std::string data;
  bool has_data = false;
  auto lines = lines_of(text);
  if (!lines.empty() && lines[0].starts_with("\xEF\xBB\xBF")) lines[0].erase(0, 3);
  for (const std::string& line : lines) {
    if (line.empty()) {
      if (has_data) events.push_back(data);
      has_data = false;
      data.clear();
      continue;
    }
    const size_t colon = line.find(':');
    if (line.substr(0, colon) != "data") continue;
    std::string value = colon == std::string::npos ? "" : line.substr(colon + 1);
    if (value.starts_with(' ')) value.erase(0, 1);
    if (has_data) data += '\n';
    data += value;
    has_data = true;
  }
  return events;
}

struct Read {
  std::vector<std::string> events;
  bool fits = true;
  bool operator==(const Read&) const = default;
};

Read read(std::string_view text, size_t bound, uint8_t* seed) {
  net::SseReader reader(bound);
  Read result;
  fuzz::Splits splits(seed == nullptr ? 0 : *seed);
  while (!text.empty()) {
    const size_t piece = seed == nullptr ? text.size() : splits.next(text.size());
    const std::string bytes(text.substr(0, piece));  // its own memory: a reader that keeps a view is found out
    result.fits = reader.feed(bytes, [&](std::string_view data) { result.events.emplace_back(data); });
    text.remove_prefix(piece);
  }
  return result;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  uint8_t seed = input.byte();
  const std::string_view text = input.rest();
  const Read whole = read(text, 1 << 20, nullptr);
  FUZZ_CHECK(whole.fits, "a short event fits");
  FUZZ_CHECK(whole.events == slow_events(text), "the slow reader agrees");
  FUZZ_CHECK(whole == read(text, 1 << 20, &seed), "cuts make no difference");
  FUZZ_CHECK(read(text, 16, nullptr) == read(text, 16, &seed), "cuts make no difference to what is too long");

  std::string frames;
  net::append_sse(frames, text);
  net::append_sse(frames, "[DONE]");
  const Read back = read(frames, 1 << 20, &seed);
  FUZZ_CHECK(back.events.size() == 2 && back.events[1] == "[DONE]", "a frame is one event");
  std::string payload;
  for (const std::string& line : lines_of(std::string(text) + "x\n")) payload += line + '\n';
  FUZZ_CHECK(back.events[0] + "x\n" == payload, "a payload comes through with its line ends as line feeds");
  return 0;
}
