// A request's prompt in the tokens that its worker makes of it, for workers whose blocks are known by their tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "gateway/body_scan.h"
#include "gateway/kv_events/view.h"
#include "protocol/template_habits.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace sluice::gateway {

class KvPromptReader {
 public:
  // Longer bodies are not read: they would keep their loop from others for milliseconds.
  static constexpr size_t kMostBytes = 64 << 10;

  // `tokenizer_path`: a folder with tokenizer.json, or that file; `template_path`: a Jinja file, empty = what comes
  // with the tokenizer. kBadOption.
  static Result<std::unique_ptr<KvPromptReader>> load(const std::string& tokenizer_path,
                                                      const std::string& template_path);

  // Any thread. None where the tokens cannot be told: other endpoints, several prompts, images, prompts whose cache is
  // kept apart by a key, and what the worker will refuse.
  std::optional<KvPrompt> read(Endpoint endpoint, std::string_view body) const;
  bool has_template() const { return template_.has_value(); }

 private:
  KvPromptReader() = default;
  std::optional<KvPrompt> read_chat(std::string_view body) const;
  std::optional<std::string> render(nlohmann::ordered_json variables) const;

  std::shared_ptr<const tokenizer::Tokenizer> tokenizer_;
  std::optional<tokenizer::ChatTemplate> template_;
  protocol::TemplateHabits habits_;
};

}  // namespace sluice::gateway
