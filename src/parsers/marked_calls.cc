#include "parsers/marked_calls.h"

#include <array>

namespace sluice::parsers {
namespace {

constexpr size_t kLongestHead = 1024;

}  // namespace

bool MarkedCalls::step(ToolCallWriter& out) {
  switch (state_) {
    case State::kText:
      return take_text(out);
    case State::kHead:
      return take_head(out);
    case State::kArguments:
      return take_arguments(out);
  }
  return false;
}

// Text, also where it stands in a section. The beginning of a section is text when more text follows.
bool MarkedCalls::take_text(ToolCallWriter& out) {
  const std::array marks = {form_.call_begin, form_.section_begin, form_.section_end};
  std::string text;
  const auto mark = window_.take_until(marks, text);
  if (!trimmed(text).empty()) out.text(std::exchange(undecided_, {}));
  if (undecided_.empty()) {
    out.text(text);
  } else {
    undecided_ += text;
  }
  if (!mark) return false;
  if (*mark == 2) {
    if (!called_) undecided_ += form_.section_end;
    out.text(std::exchange(undecided_, {}));
    return true;
  }
  undecided_ += marks[*mark];
  if (*mark == 0) {
    state_ = State::kHead;
    head_.clear();
  }
  return true;
}

bool MarkedCalls::take_head(ToolCallWriter& out) {
  const std::array marks = {form_.separator, form_.call_end, form_.section_end};
  const auto mark = window_.take_until(marks, head_);
  const bool short_enough = head_.size() <= kLongestHead;
  if (!mark && short_enough) return false;
  const auto [name, id] = form_.read_head(head_);
  if (mark == size_t{0} && short_enough && out.begin(name, id)) {
    state_ = State::kArguments;
    undecided_.clear();
    span_ = JsonSpan();
    begun_ = false;
    called_ = true;
    return true;
  }
  out.text(std::exchange(undecided_, {}));
  if (mark) window_.put_back(marks[*mark].size());
  window_.put_front(head_);
  state_ = State::kText;
  return true;
}

// An object; what stands before and after it (fences of a code block) is left out.
bool MarkedCalls::take_arguments(ToolCallWriter& out) {
  const std::array marks = {form_.call_end, form_.section_end, form_.call_begin};
  std::string taken;
  const auto mark = window_.take_until(marks, taken);
  std::string_view text = taken;
  if (!begun_) {
    text.remove_prefix(std::min(text.find('{'), text.size()));
    begun_ = !text.empty();
  }
  out.arguments(text.substr(0, span_.push(text)));
  if (!mark) return false;
  out.end();
  if (*mark != 0) window_.put_back(marks[*mark].size());
  state_ = State::kText;
  return true;
}

void MarkedCalls::stop(ToolCallWriter& out) {
  if (state_ == State::kArguments) return;
  std::string rest = std::move(undecided_);
  if (state_ == State::kHead) rest += head_;
  window_.take_all(rest);
  out.text(rest);
}

std::string write_marked_calls(const MarkedCallForm& form, std::string_view text, const std::vector<std::string>& heads,
                               const std::vector<std::string>& arguments, std::string_view between) {
  std::string out(text);
  out += form.section_begin;
  for (size_t i = 0; i < heads.size(); ++i) {
    if (i > 0) out += between;
    out.append(form.call_begin).append(heads[i]).append(form.separator).append(arguments[i]).append(form.call_end);
  }
  out += form.section_end;
  return out;
}

}  // namespace sluice::parsers
