#include "parsers/llama3.h"

#include <array>

#include "parsers/call_object.h"

namespace sluice::parsers {
namespace {

constexpr std::string_view kTag = "<|python_tag|>";

class Llama3 final : public ToolCallParser {
  // kBefore: nothing but white space so far, so that an object is a call without the tag.
  enum class State { kBefore, kText, kSeparator, kObject };

  bool step(ToolCallWriter& out) override {
    switch (state_) {
      case State::kBefore: {
        window_.take_space(undecided_);
        if (window_.empty()) return false;
        const char c = window_.rest().front();
        if (c == '{' || c == '[') {
          state_ = State::kSeparator;
        } else {
          give_up(out);
        }
        return true;
      }
      case State::kText: {
        const std::array marks = {kTag};
        std::string text;
        const auto mark = window_.take_until(marks, text);
        out.text(text);
        if (!mark) return false;
        undecided_ = kTag;
        in_list_ = false;
        state_ = State::kSeparator;
        return true;
      }
      case State::kSeparator:
        return take_separators(out);
      case State::kObject:
        return take_object(out);
    }
    return false;
  }

  bool take_separators(ToolCallWriter& out) {
    while (!window_.empty()) {
      const char c = window_.rest().front();
      if (c == '{') {
        object_ = CallObject();
        state_ = State::kObject;
        return true;
      }
      if (!is_space(c) && c != ';' && c != ',' && c != '[' && c != ']') {
        give_up(out);
        return true;
      }
      if (!in_list_) undecided_ += c;
      window_.drop(1);
    }
    return false;
  }

  bool take_object(ToolCallWriter& out) {
    switch (object_.take(window_, out)) {
      case CallObject::Status::kMore:
        return false;
      case CallObject::Status::kDone:
        undecided_.clear();
        in_list_ = true;
        state_ = State::kSeparator;
        return true;
      case CallObject::Status::kNoCall:
        undecided_ += object_.raw();
        give_up(out);
        return true;
    }
    return false;
  }

  void give_up(ToolCallWriter& out) {
    out.text(std::exchange(undecided_, {}));
    state_ = State::kText;
  }

  void stop(ToolCallWriter& out) override {
    if (state_ == State::kObject && object_.called()) return;
    std::string rest = std::move(undecided_);
    if (state_ == State::kObject) rest += object_.raw();
    window_.take_all(rest);
    out.text(rest);
  }

  State state_ = State::kBefore;
  std::string undecided_;  // taken, and text if no call comes of it
  CallObject object_;
  bool in_list_ = false;  // a call was made, and only separators since: they are no text
};

std::string example(std::string_view text, const std::vector<ExampleCall>& calls) {
  std::string out(text);
  if (!text.empty()) out += kTag;
  for (const auto& call : calls) {
    if (&call != &calls.front()) out += "; ";
    out += write_call_object(call, "parameters");
  }
  return out;
}

}  // namespace

ToolCallFormat llama3_format() {
  return {.name = "llama3",
          .aliases = {},
          .make = []() -> std::unique_ptr<ToolCallParser> { return std::make_unique<Llama3>(); },
          .opens = {kTag},
          .marks = {kTag},
          .example = example};
}

}  // namespace sluice::parsers
