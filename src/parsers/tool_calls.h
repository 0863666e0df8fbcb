// Calls of functions in the text that a model writes: each family of models writes them in a form of its own. A format
// is a leaf (a file pair, a test and a row in registry.cc); the conformance suite holds every row to the same rules.
//
// What all have in common:
// * The pieces that a text comes in make no difference to what becomes of it.
// * A call is one of a function that the request offered. What looks like another call, and what begins like a call and
// is
//   none, stays text.
// * Arguments are the JSON that the model wrote, byte by byte as it comes; formats that do not write JSON give one
// object
//   whose values have the types of the function's parameters.
// * White space between text and calls, and between calls, belongs to neither.
#pragma once

#include <cstddef>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "parsers/text_window.h"

namespace sluice::parsers {

// The functions that a request offers: the list `tools` of a chat. It outlives this.
class OfferedTools {
 public:
  explicit OfferedTools(const nlohmann::ordered_json& tools) : tools_(tools) {}

  bool has(std::string_view name) const;
  // The JSON schema of a parameter; null where the function has none of that name.
  const nlohmann::ordered_json* parameter(std::string_view function, std::string_view name) const;
  // What a local "$ref" in a schema of the function leads to ("#/$defs/Point", from its `parameters` on); null for one
  // that leads nowhere.
  const nlohmann::ordered_json* referred(std::string_view function, const nlohmann::ordered_json& schema) const;

 private:
  const nlohmann::ordered_json* find(std::string_view name) const;
  const nlohmann::ordered_json& tools_;
};

// More of a call. The first one of a call has its name; `id` is empty where the format has none.
struct ToolCallDelta {
  size_t index = 0;
  std::string id;
  std::string name;
  std::string arguments;
};

// What a parser makes of a text; used by parsers.
class ToolCallWriter {
 public:
  explicit ToolCallWriter(const OfferedTools& offered) : offered_(offered) {}

  const OfferedTools& offered() const { return offered_; }
  // Text, shown unless it is white space beside a call.
  void text(std::string_view text);
  // Begins a call; false, and nothing happens, when no such function is offered.
  bool begin(std::string_view name, std::string_view id = {});
  void arguments(std::string_view json);
  // A call that got no arguments has {}.
  void end();
  // Nothing more comes.
  void finish();

  // What was written since the last time.
  struct News {
    std::string text;
    std::vector<ToolCallDelta> calls;
  };
  News take() { return std::exchange(news_, {}); }

 private:
  ToolCallDelta& current();

  const OfferedTools& offered_;
  News news_;
  std::string space_;        // at the end of the text so far: not shown if a call follows
  bool after_call_ = false;  // nothing but white space since the last call
  bool open_ = false;
  bool has_arguments_ = false;
  size_t calls_ = 0;
};

// One sample's. Used by one thread at a time.
class ToolCallParser {
 public:
  virtual ~ToolCallParser() = default;

  // Piece by piece: what is searched for and not there is searched for in all that has come.
  void push(std::string_view text, ToolCallWriter& out) {
    while (!text.empty()) {
      const size_t piece = whole_characters(text, kPiece);
      window_.append(text.substr(0, piece));
      text.remove_prefix(piece);
      while (step(out)) {
      }
    }
  }
  // Nothing more comes: what is still open is a call as far as it came, or text.
  void finish(ToolCallWriter& out) {
    stop(out);
    out.finish();
  }

 protected:
  // Takes from the window what can be decided; false when more text is needed.
  virtual bool step(ToolCallWriter& out) = 0;
  virtual void stop(ToolCallWriter& out) = 0;

  TextWindow window_;

 private:
  static constexpr size_t kPiece = 4096;
  // At most `most` bytes of the text, and no part of a character.
  static size_t whole_characters(std::string_view text, size_t most) {
    if (text.size() <= most) return text.size();
    size_t end = most;
    while (end > most - 4 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
    return end;
  }
};

struct ExampleCall {
  std::string name;
  std::string id;         // for formats that have one
  std::string arguments;  // a JSON object
};

struct ToolCallFormat {
  std::string_view name;  // of --tool-call-parser
  std::vector<std::string_view> aliases;
  std::unique_ptr<ToolCallParser> (*make)();
  // Where calls begin: such a mark ends reasoning that was left open.
  std::vector<std::string_view> opens;
  // Marks that may be special tokens of a vocabulary, which are otherwise not part of an answer's text.
  std::vector<std::string_view> marks;
  bool has_ids = false;
  // A text that ends in calls, as a model writes it.
  std::string (*example)(std::string_view text, const std::vector<ExampleCall>& calls);
};

const std::vector<ToolCallFormat>& tool_call_formats();
// Every name and alias, in the order of the rows.
std::vector<std::string_view> tool_call_format_names();
// Null for a name that is none.
const ToolCallFormat* find_tool_call_format(std::string_view name);

}  // namespace sluice::parsers
