// The part of an answer in which a model thinks before it answers, told apart from the answer by marks. The members
// differ in their marks and in where an answer begins, so a member is a row in registry.cc.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "parsers/text_window.h"

namespace sluice::parsers {

struct ReasoningFormat {
  std::string_view name;  // of --reasoning-parser
  std::string_view open, close;
  enum class Begins {
    kInside,   // a model that always thinks: text before the closing mark is reasoning
    kOutside,  // text is reasoning only after an opening mark at its beginning
    kInText    // nothing is told apart: the opening mark that the prompt had is put before the text
  } begins;
};

const std::vector<ReasoningFormat>& reasoning_formats();
std::vector<std::string_view> reasoning_format_names();
// Null for a name that is none.
const ReasoningFormat* find_reasoning_format(std::string_view name);

// Whether an answer to a prompt that ends in `prompt_end` begins with reasoning: templates end it with an opening mark,
// or with a closing one where thinking is turned off. Where the answer goes on with `prefix`, after that, a mark there
// says it.
bool begins_inside(const ReasoningFormat& format, std::string_view prompt_end, std::string_view prefix = "");

// One sample's. White space around the marks belongs to neither part. The pieces that a text comes in make no
// difference. Used by one thread at a time.
class ReasoningSplitter {
 public:
  // `interrupts`: marks that end reasoning and belong to the answer (of calls). `stream` false: reasoning is given out
  // as a whole.
  ReasoningSplitter(const ReasoningFormat& format, bool inside, bool stream, std::vector<std::string_view> interrupts);

  // Appends what is sure by now.
  void push(std::string_view text, std::string& reasoning, std::string& answer);
  // Nothing more comes.
  void finish(std::string& reasoning, std::string& answer);

  // Bytes of the text that were reasoning or its marks, so far.
  size_t reasoning_bytes() const { return bytes_; }

 private:
  enum class State { kBegin, kReasoning, kSpace, kAnswer };

  bool step(std::string& reasoning, std::string& answer);
  bool take_begin(std::string& answer);
  bool take_reasoning(std::string& reasoning, std::string& answer);
  void show_held(std::string& reasoning);

  const ReasoningFormat& format_;
  const bool inside_, stream_;
  std::vector<std::string_view> marks_;  // that end reasoning: the closing one first
  State state_ = State::kBegin;
  TextWindow window_;
  std::string held_;    // kBegin: white space; kReasoning: at its end, or all of it where it is not streamed
  bool shown_ = false;  // some reasoning was
  size_t bytes_ = 0;
};

}  // namespace sluice::parsers
