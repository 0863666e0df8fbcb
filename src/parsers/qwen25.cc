#include "parsers/qwen25.h"

#include <array>

#include "parsers/call_object.h"

namespace sluice::parsers {
namespace {

constexpr std::string_view kOpen = "<tool_call>";
constexpr std::string_view kClose = "</tool_call>";

class Qwen25 final : public ToolCallParser {
  enum class State { kText, kObject, kClose };

  bool step(ToolCallWriter& out) override {
    switch (state_) {
      case State::kText: {
        const std::array marks = {kOpen};
        std::string text;
        const auto mark = window_.take_until(marks, text);
        out.text(text);
        if (!mark) return false;
        object_ = CallObject();
        state_ = State::kObject;
        return true;
      }
      case State::kObject:
        return take_object(out);
      case State::kClose: {
        // What else stands there is left out.
        const std::array marks = {kClose, kOpen};
        std::string other;
        const auto mark = window_.take_until(marks, other);
        if (!mark) return false;
        if (*mark == 1) window_.put_back(kOpen.size());
        state_ = State::kText;
        return true;
      }
    }
    return false;
  }

  bool take_object(ToolCallWriter& out) {
    switch (object_.take(window_, out)) {
      case CallObject::Status::kMore:
        return false;
      case CallObject::Status::kDone:
        state_ = State::kClose;
        return true;
      case CallObject::Status::kNoCall:
        out.text(kOpen);
        out.text(object_.raw());
        state_ = State::kText;
        return true;
    }
    return false;
  }

  void stop(ToolCallWriter& out) override {
    std::string rest;
    if (state_ == State::kObject && !object_.called()) rest.append(kOpen).append(object_.raw());
    if (state_ == State::kText) window_.take_all(rest);
    out.text(rest);
  }

  State state_ = State::kText;
  CallObject object_;
};

std::string example(std::string_view text, const std::vector<ExampleCall>& calls) {
  std::string out(text);
  for (const auto& call : calls) {
    out += fmt::format("\n{}\n{}\n{}", kOpen, write_call_object(call, "arguments"), kClose);
  }
  return out;
}

}  // namespace

ToolCallFormat qwen25_format() {
  return {.name = "qwen25",
          .aliases = {"qwen"},
          .make = []() -> std::unique_ptr<ToolCallParser> { return std::make_unique<Qwen25>(); },
          .opens = {kOpen},
          .marks = {kOpen, kClose},
          .example = example};
}

}  // namespace sluice::parsers
