// How a model's chat template wants messages; the templates differ.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

namespace sluice::protocol {

struct TemplateHabits {
  // Of earlier calls of functions.
  bool text_arguments = false;  // arguments as JSON text, not as an object
  bool null_content = false;    // a message that is nothing but calls has content null, not ""
  // What role developer says it leaves out, and what system says it shows.
  bool developer_is_system = false;
};

// What a template makes of its variables, those of the vocabulary (bos_token ...) apart; nothing if it refuses them.
using RenderTemplate = std::function<std::optional<std::string>(nlohmann::ordered_json variables)>;

// The first way in which a template shows an earlier call of a function, and whether it shows what the developer says.
TemplateHabits habits_of(const RenderTemplate& render);

}  // namespace sluice::protocol
