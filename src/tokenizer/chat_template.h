// Chat templates: an interpreter of the part of Jinja2 that published templates use, with the settings of Hugging Face
// transformers (trim_blocks, lstrip_blocks, loop controls, tojson that leaves Unicode alone).
//
// A template comes with a model and a context with a request, so neither may hang or end the process: depth of nesting,
// number of steps and size of the output are bounded.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/result.h"

namespace sluice::tokenizer {

// Immutable once parsed; any thread may render at any time.
class ChatTemplate {
 public:
  // A syntax error is kInvalidArgument and names the line. `clock` is read by strftime_now() and outlives the template;
  // null is the machine's clock.
  static Result<ChatTemplate> parse(std::string_view source, const Clock* clock = nullptr);
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // `context` is an object: messages, tools, add_generation_prompt, bos_token, ... Its order of keys is what tojson
  // writes. An error is kInvalidArgument and names the template line; so is what the template raises itself
  // (raise_exception), with its message.
  Result<std::string> render(const nlohmann::ordered_json& context) const;

 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<const Impl> impl);

  std::unique_ptr<const Impl> impl_;
};

}  // namespace sluice::tokenizer
