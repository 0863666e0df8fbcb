// Evaluates a syntax tree over a context.
#pragma once

#include <string>

#include "tokenizer/jinja_ast.h"

namespace sluice::tokenizer::jinja {

struct RenderLimits {
  size_t steps = 20'000'000;         // nodes visited, plus one per 16 bytes made
  size_t output = size_t{64} << 20;  // bytes
};

// Throws TemplateError with the line.
std::string render_template(const Body& body, const Value& context, int64_t unix_nanos, const RenderLimits& limits);

}  // namespace sluice::tokenizer::jinja
