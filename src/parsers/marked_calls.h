// Calls between marks, with their arguments as JSON: head, separator, arguments, end; several in a section. What
// DeepSeek's and Kimi's models write.
#pragma once

#include "parsers/json_span.h"
#include "parsers/tool_calls.h"

namespace sluice::parsers {

struct MarkedCallForm {
  std::string_view section_begin, section_end;
  std::string_view call_begin, call_end;
  std::string_view separator;  // between head and arguments
  // Name and id, which may be empty, in a head.
  struct Head {
    std::string_view name, id;
  };
  Head (*read_head)(std::string_view head);
};

class MarkedCalls final : public ToolCallParser {
 public:
  explicit MarkedCalls(const MarkedCallForm& form) : form_(form) {}

 private:
  enum class State { kText, kHead, kArguments };

  bool step(ToolCallWriter& out) override;
  void stop(ToolCallWriter& out) override;
  bool take_text(ToolCallWriter& out);
  bool take_head(ToolCallWriter& out);
  bool take_arguments(ToolCallWriter& out);

  const MarkedCallForm& form_;
  State state_ = State::kText;
  std::string head_;
  std::string undecided_;  // what was taken from the window and is text if no call comes of it
  JsonSpan span_;
  bool begun_ = false;   // an object has begun
  bool called_ = false;  // there was a call: the end of a section is no text
};

std::string write_marked_calls(const MarkedCallForm& form, std::string_view text, const std::vector<std::string>& heads,
                               const std::vector<std::string>& arguments, std::string_view between);

}  // namespace sluice::parsers
