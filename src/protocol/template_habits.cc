#include "protocol/template_habits.h"

#include <nlohmann/json.hpp>

namespace sluice::protocol {

TemplateHabits habits_of(const RenderTemplate& render) {
  using nlohmann::ordered_json;
  const auto shows_a_call = [&](const TemplateHabits& habits) {
    const ordered_json arguments = {{"some_key", "some value"}};
    ordered_json call = {{"id", "call_1"}, {"type", "function"}};
    call["function"] = {{"name", "some_function"},
                        {"arguments", habits.text_arguments ? ordered_json(arguments.dump()) : arguments}};
    ordered_json caller = {{"role", "assistant"}, {"content", habits.null_content ? ordered_json() : ordered_json("")}};
    caller["tool_calls"].push_back(std::move(call));
    ordered_json variables;
    variables["messages"].push_back({{"role", "user"}, {"content", "Hello"}});
    variables["messages"].push_back(std::move(caller));
    variables["messages"].push_back({{"role", "tool"}, {"tool_call_id", "call_1"}, {"content", "It is so."}});
    variables["add_generation_prompt"] = true;
    const auto rendered = render(std::move(variables));
    // 'some_key' is how an object looks that is written as text.
    return rendered && rendered->find("some_function") != std::string::npos &&
           rendered->find("some value") != std::string::npos && rendered->find("'some_key'") == std::string::npos;
  };
  const auto shows_a_rule_of = [&](const char* role) {
    ordered_json variables;
    variables["messages"].push_back({{"role", role}, {"content", "some rule"}});
    variables["messages"].push_back({{"role", "user"}, {"content", "Hello"}});
    const auto rendered = render(std::move(variables));
    return rendered && rendered->find("some rule") != std::string::npos;
  };
  const bool developer_is_system = !shows_a_rule_of("developer") && shows_a_rule_of("system");
  for (const bool null_content : {false, true}) {
    for (const bool text_arguments : {false, true}) {
      const TemplateHabits habits{
          .text_arguments = text_arguments, .null_content = null_content, .developer_is_system = developer_is_system};
      if (shows_a_call(habits)) return habits;
    }
  }
  return {.developer_is_system = developer_is_system};
}

}  // namespace sluice::protocol
