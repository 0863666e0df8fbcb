#include "engine/served_model.h"

#include <nlohmann/json.hpp>

#include "engine/tokenizer_files.h"
#include "protocol/embedding_body.h"
#include "tokenizer/files.h"

namespace sluice::engine {
protocol::TemplateHabits habits_of(const tokenizer::ChatTemplate& chat_template,
                                   const std::map<std::string, std::string>& special_tokens) {
  return protocol::habits_of([&](nlohmann::ordered_json variables) -> std::optional<std::string> {
    variables.update(nlohmann::ordered_json(special_tokens));
    auto rendered = chat_template.render(variables);
    if (!rendered.ok()) return std::nullopt;
    return std::move(rendered).value();
  });
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
