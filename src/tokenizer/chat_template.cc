#include "tokenizer/chat_template.h"

#include <nlohmann/json.hpp>

#include "tokenizer/jinja_interpreter.h"

namespace sluice::tokenizer {

namespace {

Error error_of(const jinja::TemplateError& error) {
  return {ErrorCode::kInvalidArgument, fmt::format("chat template, line {}: {}", error.line, error.message)};
}

}  // namespace

struct ChatTemplate::Impl {
  jinja::Body body;
  const Clock* clock;
};

ChatTemplate::ChatTemplate(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

Result<ChatTemplate> ChatTemplate::parse(std::string_view source, const Clock* clock) {
  try {
    auto impl = std::make_unique<Impl>();
    impl->body = jinja::parse_template(source);
    impl->clock = clock != nullptr ? clock : &real_clock();
    return ChatTemplate(std::move(impl));
  } catch (const jinja::TemplateError& error) {
    return error_of(error);
  } catch (const std::exception& error) {
    return Error{ErrorCode::kInternal, fmt::format("chat template: {}", error.what())};
  }
}

Result<std::string> ChatTemplate::render(const nlohmann::ordered_json& context) const {
  if (!context.is_object()) return Error{ErrorCode::kInvalidArgument, "chat template: the context is no object"};
  try {
    const auto values = jinja::Value::from_json(context);
    return jinja::render_template(impl_->body, values, impl_->clock->unix_nanos(), jinja::RenderLimits{});
  } catch (const jinja::TemplateError& error) {
    return error_of(error);
  } catch (const std::exception& error) {
    return Error{ErrorCode::kInternal, fmt::format("chat template: {}", error.what())};
  }
}

}  // namespace sluice::tokenizer
