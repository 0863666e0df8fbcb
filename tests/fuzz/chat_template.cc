// Chat templates, which come with models: whatever they hold, they are refused or rendered within their limits, twice
// alike.
#include <nlohmann/json.hpp>

#include "fuzz.h"
#include "tokenizer/jinja_ast.h"
#include "tokenizer/jinja_interpreter.h"

using namespace sluice;
namespace jinja = tokenizer::jinja;

namespace {

const jinja::Value& context() {
  static const jinja::Value value = jinja::Value::from_json(nlohmann::ordered_json::parse(R"({
    "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"},
                 {"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function",
                  "function": {"name": "f", "arguments": {"a": [1, 2.5, true, null], "b": "\u00e9"}}}]}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "add_generation_prompt": true, "bos_token": "<s>", "n": 3})"));
  return value;
}

// The text, or "line: message" of an error.
std::string rendered(const jinja::Body& body, bool& failed) {
  // Far below what a real template may take: an input is over at once.
  const jinja::RenderLimits limits{.steps = 20'000, .output = 1 << 16};
  try {
    std::string text = jinja::render_template(body, context(), 1'700'000'000'000'000'000, limits);
    FUZZ_CHECK(text.size() <= limits.output, "the output is bounded");
    return text;
  } catch (const jinja::TemplateError& error) {
    failed = true;
    FUZZ_CHECK(error.line > 0, "an error says where");  // and what, unless the template raises it with nothing
    return std::to_string(error.line) + ": " + error.message;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  jinja::Body body;
  try {
    body = jinja::parse_template({reinterpret_cast<const char*>(data), size});
  } catch (const jinja::TemplateError& error) {
    FUZZ_CHECK(error.line > 0 && !error.message.empty(), "an error says what is wrong, and where");
    return 0;
  }
  bool first_failed = false, second_failed = false;
  const std::string first = rendered(body, first_failed);
  FUZZ_CHECK(rendered(body, second_failed) == first && first_failed == second_failed, "rendering changes nothing");
  return 0;
}
