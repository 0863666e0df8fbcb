// What the front process knows of the model: it reads names, vocabulary, template and configuration, never weights.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "models/config.h"
#include "protocol/openai_body.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace sluice::engine {

struct ServedModelFiles {
  std::string model_path;       // --model-path as the user wrote it
  std::string name;             // --served-model-name; empty: model_path
  std::string model_file;       // where models/locate.h found it
  std::string tokenizer_file;   // for engine/tokenizer_files.h
  std::string config_override;  // --json-model-override-args
  std::string chat_template;    // --chat-template, a file; empty: the model's own
};

struct ServedModel {
  std::string name;
  std::string path;            // as the user wrote it
  std::string tokenizer_path;  // likewise
  models::ModelConfig config;
  std::shared_ptr<const tokenizer::Tokenizer> tokenizer;
  std::optional<tokenizer::ChatTemplate> chat_template;  // absent: the model has none
  protocol::TemplateHabits template_habits;
  bool reranks = false;  // see is_rerank_template()
};

// `special_tokens`: variables of the template.
protocol::TemplateHabits habits_of(const tokenizer::ChatTemplate& chat_template,
                                   const std::map<std::string, std::string>& special_tokens);

// The template of a reranker: of a query and a document, its first two messages, it makes the question whether they
// fit, which can only be answered "yes" or "no".
bool is_rerank_template(const tokenizer::ChatTemplate& chat_template,
                        const std::map<std::string, std::string>& special_tokens);

// kNotFound or kProtocol naming the file; kInvalidArgument with the line of a template that does not parse.
Result<ServedModel> load_served_model(const ServedModelFiles& files);

}  // namespace sluice::engine
