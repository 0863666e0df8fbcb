// Calls whose parameters stand in tags, each value as plain text. What Qwen3-Coder and MiniMax-M2 write. A value
// becomes JSON of the type that the function's schema gives it.
#pragma once

#include "parsers/tool_calls.h"

namespace sluice::parsers {

struct TaggedCallForm {
  std::string_view section_begin, section_end;
  std::string_view call_begin;       // before the function's name
  std::string_view parameter_begin;  // before a parameter's name
  std::string_view name_end;         // after either
  std::string_view parameter_end, call_end;
  bool lines = false;          // a value has lines of its own: one newline before and after it is not part of it
  bool may_omit_ends = false;  // a value also ends where the next parameter begins, or the call ends
};

// One value in the making: text in, JSON out.
class TaggedValue {
 public:
  TaggedValue() = default;
  // Of a parameter of one of the functions; one that it does not have is a string.
  TaggedValue(const OfferedTools& offered, std::string_view function, std::string_view name, bool lines);

  // JSON that is sure by now. Strings are passed on as they come.
  std::string push(std::string_view text);
  std::string finish();

 private:
  std::string whole_value() const;

  bool plain_ = true;  // nothing but a string
  bool null_words_ = false;
  std::vector<std::string> types_;
  bool lines_ = false;
  bool first_line_ = true;
  bool begun_ = false;
  std::string held_;
};

class TaggedCalls final : public ToolCallParser {
 public:
  explicit TaggedCalls(const TaggedCallForm& form) : form_(form) {}

 private:
  enum class State { kText, kSection, kName, kParameters, kKey, kValue };

  bool step(ToolCallWriter& out) override;
  void stop(ToolCallWriter& out) override;
  bool take_text(ToolCallWriter& out);
  bool take_section(ToolCallWriter& out);
  bool take_name(ToolCallWriter& out);
  bool take_parameters(ToolCallWriter& out);
  bool take_key(ToolCallWriter& out);
  bool take_value(ToolCallWriter& out);
  void end_call(ToolCallWriter& out);

  const TaggedCallForm& form_;
  State state_ = State::kText;
  std::string undecided_;  // taken, and text if no call comes of it
  std::string function_, key_;
  bool first_ = true;  // no parameter yet
  TaggedValue value_;
};

std::string write_tagged_calls(const TaggedCallForm& form, std::string_view text,
                               const std::vector<ExampleCall>& calls);

}  // namespace sluice::parsers
