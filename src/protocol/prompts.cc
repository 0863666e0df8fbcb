#include "protocol/prompts.h"

#include <nlohmann/json.hpp>

namespace sluice::protocol {

std::vector<Prompt> read_prompts(Fields& fields, const std::string& name) {
  std::vector<Prompt> out;
  const auto* value = fields.find(name);
  const auto wrong = [&] {
    fields.fail(fmt::format("{} must be a string, a list of strings, a list of token ids or a list of such", name));
  };
  if (value == nullptr || (!value->is_string() && (!value->is_array() || value->empty()))) {
    wrong();
  } else if (value->is_string() || value->front().is_string()) {
    for (auto& text : fields.texts(name)) out.push_back({.text = std::move(text), .ids = std::nullopt});
  } else if (value->front().is_number()) {
    out.push_back({.text = "", .ids = fields.token_ids(name)});
  } else {
    for (const auto& list : *value) {
      const auto one = nlohmann::ordered_json{{name, list}};
      Fields member(one);
      out.push_back({.text = "", .ids = member.token_ids(name)});
      if (!member.ok() || !list.is_array() || list.empty()) wrong();
    }
  }
  if (out.size() > kMaxBatch) fields.fail(fmt::format("{} holds at most {} prompts", name, kMaxBatch));
  return out;
}

}  // namespace sluice::protocol
