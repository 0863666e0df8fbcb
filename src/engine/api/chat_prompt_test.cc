// What of a chat's body reaches the prompt, through the template.
#include <gtest/gtest.h>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

class ChatPromptTest : public ApiTest {
 protected:
  // Serves with a template that shows all that it gets.
  void serve_template() {
    use_template(
        "{% if tools %}{{ tools | map(attribute='function') | map(attribute='name') | join(',') }}|"
        "{% endif %}{% if style is defined %}{{ style }}|{% endif %}"
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %};{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}");
    serve();
    backend_->set_script(
        [](const GenerateRequest&) { return std::vector<Word>{{.finish = {.kind = FinishKind::kLength}}}; });
  }
  // The prompt that the rank got.
  std::string prompt(const Json& more) {
    Json body = {{"messages", {{{"role", "user"}, {"content", "hi"}}}}};
    body.update(more);
    const auto answer = post("/v1/chat/completions", body);
    EXPECT_EQ(answer.status, 200) << answer.body;
    return tokenizer_->decode(backend_->submitted().back().first.input_ids, false);
  }
};

TEST_F(ChatPromptTest, HasWhatTheBodySays) {
  serve_template();
  EXPECT_EQ(prompt(Json::object()), "user:hi;>");
  EXPECT_EQ(prompt({{"add_generation_prompt", false}}), "user:hi;");
  EXPECT_EQ(prompt({{"chat_template_kwargs", {{"style", "brief"}}}}), "brief|user:hi;>");
  const auto tools =
      Json::parse(R"([{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"g"}}])");
  EXPECT_EQ(prompt({{"tools", tools}}), "f,g|user:hi;>");
  EXPECT_EQ(prompt({{"tools", tools}, {"tool_choice", "none"}}), "user:hi;>");
}

TEST_F(ChatPromptTest, GoesOnWithTheFinalMessage) {
  serve_template();
  const auto messages = Json::parse(R"([{"role":"user","content":"hi"},{"role":"assistant","content":"So "}])");
  EXPECT_EQ(prompt({{"messages", messages}, {"continue_final_message", true}}), "user:hi;>So ");
  EXPECT_EQ(prompt({{"messages", messages}}), "user:hi;assistant:So ;>");
}

TEST_F(ChatPromptTest, HasTheCallsOfEarlierTurns) {
  serve_template();
  const auto messages =
      Json::parse(R"([{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":)"
                  R"({"name":"f","arguments":"{\"a\":1}"}}]},{"role":"tool","tool_call_id":"1","content":"2"}])");
  EXPECT_EQ(prompt({{"messages", messages}}), R"(assistant:f{"a": 1};tool:2;>)");
}

// What a client sends the second time is tokenized once: the ids are those of a whole pass.
TEST_F(ChatPromptTest, ALongChatThatComesBackHasTheSameIds) {
  serve_template();
  Json messages = Json::array();
  for (int turn = 0; turn < 2; ++turn) {
    std::string text;
    for (int i = 0; i < 20; ++i) text += fmt::format("line {} of turn {} and on\n", i, turn);
    messages.push_back({{"role", "user"}, {"content", text}});
    const auto ids = [&] {
      EXPECT_EQ(post("/v1/chat/completions", {{"messages", messages}, {"max_tokens", 1}}).status, 200);
      return backend_->submitted().back().first.input_ids;
    };
    const auto first = ids();
    EXPECT_EQ(ids(), first);
    EXPECT_EQ(first, tokenizer_->encode(tokenizer_->decode(first, false), false));
  }
}

}  // namespace
}  // namespace sluice::engine
