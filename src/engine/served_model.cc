#include "engine/served_model.h"

#include <nlohmann/json.hpp>

#include "engine/tokenizer_files.h"
#include "protocol/embedding_body.h"
#include "tokenizer/files.h"

namespace sluice::engine {
protocol::TemplateHabits habits_of(const tokenizer::ChatTemplate& chat_template,
                                   const std::map<std::string, std::string>& special_tokens) {
  using nlohmann::ordered_json;
  const auto shows_a_call = [&](const protocol::TemplateHabits& habits) {
    const ordered_json arguments = {{"some_key", "some value"}};
    ordered_json call = {{"id", "call_1"}, {"type", "function"}};
    call["function"] = {{"name", "some_function"},
                        {"arguments", habits.text_arguments ? ordered_json(arguments.dump()) : arguments}};
    ordered_json caller = {{"role", "assistant"}, {"content", habits.null_content ? ordered_json() : ordered_json("")}};
    caller["tool_calls"].push_back(std::move(call));
    ordered_json context = special_tokens;
    context["messages"].push_back({{"role", "user"}, {"content", "Hello"}});
    context["messages"].push_back(std::move(caller));
    context["messages"].push_back({{"role", "tool"}, {"tool_call_id", "call_1"}, {"content", "It is so."}});
    context["add_generation_prompt"] = true;
    const auto rendered = chat_template.render(context);
    // 'some_key' is how an object looks that is written as text.
    return rendered.ok() && rendered->find("some_function") != std::string::npos &&
           rendered->find("some value") != std::string::npos && rendered->find("'some_key'") == std::string::npos;
  };
  const auto shows_a_rule_of = [&](const char* role) {
    ordered_json context = special_tokens;
    context["messages"].push_back({{"role", role}, {"content", "some rule"}});
    context["messages"].push_back({{"role", "user"}, {"content", "Hello"}});
    const auto rendered = chat_template.render(context);
    return rendered.ok() && rendered->find("some rule") != std::string::npos;
  };
  const bool developer_is_system = !shows_a_rule_of("developer") && shows_a_rule_of("system");
  for (const bool null_content : {false, true}) {
    for (const bool text_arguments : {false, true}) {
      const protocol::TemplateHabits habits{
          .text_arguments = text_arguments, .null_content = null_content, .developer_is_system = developer_is_system};
      if (shows_a_call(habits)) return habits;
    }
  }
  return {.developer_is_system = developer_is_system};
}

bool is_rerank_template(const tokenizer::ChatTemplate& chat_template,
                        const std::map<std::string, std::string>& special_tokens) {
  nlohmann::ordered_json context = special_tokens;
  context["messages"] = protocol::rerank_messages("some query", "some document");
  const auto rendered = chat_template.render(context);
  if (!rendered.ok()) return false;
  for (const char* part : {"some query", "some document", "\"yes\"", "\"no\""}) {
    if (rendered->find(part) == std::string::npos) return false;
  }
  return true;
}

Result<ServedModel> load_served_model(const ServedModelFiles& files) {
  ServedModel out;
  out.name = files.name.empty() ? files.model_path : files.name;
  out.path = files.model_path;
  out.tokenizer_path = files.tokenizer_file == files.model_file ? files.model_path : files.tokenizer_file;
  SLUICE_TRY(out.config, models::load_config(files.model_file, files.config_override));
  SLUICE_TRY(out.tokenizer, load_tokenizer(files.tokenizer_file));
  SLUICE_TRY(const auto source,
             tokenizer::load_chat_template(files.tokenizer_file, *out.tokenizer, files.chat_template));
  if (!source.empty()) {
    SLUICE_TRY(out.chat_template, tokenizer::ChatTemplate::parse(source));
    const auto special_tokens = out.tokenizer->special_tokens();
    out.template_habits = habits_of(*out.chat_template, special_tokens);
    out.reranks = is_rerank_template(*out.chat_template, special_tokens);
  }
  return out;
}

}  // namespace sluice::engine
