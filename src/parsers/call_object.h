// A call as a JSON object, {"name": "f", "arguments": {...}}, read while it is written.
#pragma once

#include "parsers/json_span.h"
#include "parsers/tool_calls.h"

namespace sluice::parsers {

class CallObject {
 public:
  enum class Status {
    kMore,
    kDone,   // a call, and it has ended
    kNoCall  // none: raw() is what was taken
  };
  // Takes from the window what belongs to the object. The call begins as soon as its name is known; its arguments are
  // passed on as they come unless they stand before the name.
  Status take(TextWindow& window, ToolCallWriter& out);
  bool called() const { return called_; }
  // What was taken before the call began, or all of it where none did.
  const std::string& raw() const { return raw_; }

 private:
  enum class State { kOpen, kKey, kInKey, kColon, kValue, kComma };
  enum class End { kNotYet, kDone, kBroken };

  size_t take_piece(std::string_view text, ToolCallWriter& out);
  size_t take_sign(char c);
  void end_key();
  void take_value(std::string_view piece, ToolCallWriter& out);
  void end_value(ToolCallWriter& out);
  bool is_arguments() const { return key_ == "arguments" || key_ == "parameters"; }

  State state_ = State::kOpen;
  End end_ = End::kNotYet;
  JsonSpan span_;
  bool first_ = true;   // no member yet
  bool known_ = false;  // a member that calls have was seen
  bool called_ = false;
  bool streaming_ = false;      // the value is passed on as it comes
  bool has_arguments_ = false;  // of two members for them the first counts
  std::string key_, value_;     // of the member that is read
  std::string arguments_;       // that came before the name
  std::string raw_;
};

// The call as such an object.
std::string write_call_object(const ExampleCall& call, std::string_view arguments_key);

}  // namespace sluice::parsers
