#include "protocol/openai_body.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace sluice::protocol {
namespace {

std::string chat_error(std::string_view text) {
  const auto body = parse_chat_body(text, {});
  return body.ok() ? "no error" : body.error().message;
}
std::string completion_error(std::string_view text) {
  const auto body = parse_completion_body(text, {});
  return body.ok() ? "no error" : body.error().message;
}

TEST(CompletionBodyTest, TakesEveryFormOfPrompt) {
  const auto one = parse_completion_body(R"({"prompt":"a"})", {});
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->prompts[0].text, "a");
  EXPECT_EQ(one->sampling.max_new_tokens, 16);
  EXPECT_EQ(one->model, "default");
  EXPECT_EQ(parse_completion_body(R"({"prompt":["a","b"]})", {})->prompts.size(), 2u);
  EXPECT_EQ(*parse_completion_body(R"({"prompt":[1,2]})", {})->prompts[0].ids, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(*parse_completion_body(R"({"prompt":[[1],[2,3]]})", {})->prompts[1].ids, (std::vector<int32_t>{2, 3}));
}

TEST(CompletionBodyTest, ReadsWhatClientsSend) {
  const auto body = parse_completion_body(
      R"({"model":"m","prompt":"a","max_tokens":3,"echo":true,"logprobs":2,"n":2,"best_of":2,"seed":-1,"stop":"x",
          "stream":true,"stream_options":{"include_usage":true},"user":"me","suffix":"","logit_bias":{"5":-100},
          "routed_dp_rank":1,"ignore_eos":true,"stop_token_ids":[7],"unknown_extra":1,"frequency_penalty":null})",
      {});
  ASSERT_TRUE(body.ok()) << body.error().message;
  EXPECT_TRUE(body->echo);
  EXPECT_EQ(body->logprobs, 2);
  EXPECT_EQ(body->sampling.n, 2);
  EXPECT_EQ(body->sampling.stop, std::vector<std::string>{"x"});
  EXPECT_EQ(body->sampling.logit_bias.at(5), -100);
  EXPECT_TRUE(body->stream.stream && body->stream.include_usage);
  EXPECT_EQ(*body->routing.dp_rank, 1);
}

TEST(CompletionBodyTest, NamesWhatIsWrong) {
  EXPECT_EQ(completion_error(R"({"prompt":"a","max_tokens":0})"),
            "max_tokens must be an integer in [1, 2147483647], got 0");
  EXPECT_NE(completion_error(R"({"prompt":[]})").find("prompt must be"), std::string::npos);
  EXPECT_NE(completion_error(R"({"prompt":[[1],"a"]})").find("prompt must be"), std::string::npos);
  EXPECT_EQ(completion_error(R"({"prompt":"a","n":3,"best_of":2})"),
            "best_of must be an integer in [n, 128] with n being 3, got 2");
  EXPECT_EQ(completion_error(R"({"prompt":"a","best_of":129})"), "best_of must be an integer in [1, 128], got 129");
  EXPECT_NE(completion_error(R"({"prompt":"a","best_of":2,"stream":true})").find("cannot be streamed"),
            std::string::npos);
  EXPECT_EQ(completion_error(R"({"prompt":"a","best_of":2})"), "no error");
  EXPECT_EQ(completion_error(R"({"prompt":"a","n":2,"best_of":2,"stream":true})"), "no error");
  EXPECT_EQ(completion_error(R"({"prompt":"a","custom_params":3})"), "custom_params must be an object");
  EXPECT_EQ(completion_error(R"({"prompt":"a","custom_params":{"thinking_budget":9}})"), "no error");
  EXPECT_NE(completion_error(R"({"prompt":"a","custom_logit_processor":"{}"})").find("custom_logit_processor"),
            std::string::npos);
}

TEST(ChatBodyTest, FlattensTextPartsAndOpensArguments) {
  const auto body = parse_chat_body(
      R"({"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
          {"role":"assistant","content":null,"tool_calls":[{"function":{"name":"f","arguments":"{\"z\":1,\"a\":2}"}}]}],
          "tools":[{"type":"function","function":{"name":"f"}}],"chat_template_kwargs":{"enable_thinking":false}})",
      {});
  ASSERT_TRUE(body.ok()) << body.error().message;
  EXPECT_EQ(body->template_context->dump(),
            R"({"messages":[{"role":"user","content":"a b"},{"role":"assistant","content":"","tool_calls":)"
            R"([{"function":{"name":"f","arguments":{"z":1,"a":2}}}]}],"add_generation_prompt":true,)"
            R"("tools":[{"type":"function","function":{"name":"f"}}],"enable_thinking":false})");
  EXPECT_FALSE(body->sampling.max_new_tokens);
}

TEST(ChatBodyTest, WritesCallsAsTheTemplateWantsThem) {
  const std::string messages =
      R"({"messages":[{"role":"user","content":null},{"role":"assistant","content":null,"tool_calls":)"
      R"([{"function":{"name":"f","arguments":"{\"z\": 1}"}},{"function":{"name":"g","arguments":{"a":2}}}]}]})";
  const auto body = parse_chat_body(messages, {}, {.text_arguments = true, .null_content = true});
  ASSERT_TRUE(body.ok());
  EXPECT_EQ(
      (*body->template_context)["messages"].dump(),
      R"([{"role":"user","content":""},{"role":"assistant","content":null,"tool_calls":)"
      R"([{"function":{"name":"f","arguments":"{\"z\": 1}"}},{"function":{"name":"g","arguments":"{\"a\":2}"}}]}])");
}

TEST(ChatBodyTest, TheDeveloperSpeaksAsTheTemplateKnowsHim) {
  const char* const messages = R"({"messages":[{"role":"developer","content":"a"},{"role":"user","content":"b"}]})";
  const auto first_role = [&](const TemplateHabits& habits) {
    return (*parse_chat_body(messages, {}, habits)->template_context)["messages"][0]["role"];
  };
  EXPECT_EQ(first_role({.developer_is_system = true}), "system");
  EXPECT_EQ(first_role({}), "developer");
}

TEST(ChatBodyTest, LeavesOutTheGenerationPromptWhereAsked) {
  const auto body =
      parse_chat_body(R"({"messages":[{"role":"user","content":"a"}],"add_generation_prompt":false})", {});
  ASSERT_TRUE(body.ok());
  EXPECT_EQ((*body->template_context)["add_generation_prompt"], false);
  EXPECT_NE(chat_error(R"({"messages":[{"role":"user","content":"a"}],"add_generation_prompt":1})")
                .find("add_generation_prompt"),
            std::string::npos);
}

TEST(ChatBodyTest, ReadsHowToAnswerWithToolsAndReasoning) {
  const std::string head =
      R"({"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"f"}}])";
  const auto body = parse_chat_body(
      head + R"(,"parallel_tool_calls":false,"separate_reasoning":false,"stream_reasoning":false})", {});
  ASSERT_TRUE(body.ok());
  ASSERT_TRUE(body->tools);
  EXPECT_EQ((*body->tools)[0]["function"]["name"], "f");
  EXPECT_FALSE(body->parallel_tool_calls || body->separate_reasoning || body->stream_reasoning);
  const auto plain = parse_chat_body(head + R"(,"tool_choice":"none"})", {});
  ASSERT_TRUE(plain.ok());
  EXPECT_FALSE(plain->tools);
  EXPECT_TRUE(plain->parallel_tool_calls && plain->separate_reasoning && plain->stream_reasoning);
}

TEST(ChatBodyTest, ParametersOfAllSamplesTogetherAreBounded) {
  std::string stops = fmt::format(R"("{}")", std::string(kMaxStopBytes, 'x'));
  for (int i = 1; i < 64; ++i) stops += fmt::format(R"(,"{}")", std::string(kMaxStopBytes, 'x'));
  const auto chat = [&](int n) {
    return chat_error(fmt::format(R"({{"messages":[{{"role":"user","content":"a"}}],"n":{},"stop":[{}]}})", n, stops));
  };
  EXPECT_EQ(chat(1), "no error");
  EXPECT_NE(chat(128).find("of all samples together"), std::string::npos);
  const auto completion = [&](int n) {
    return completion_error(fmt::format(R"({{"prompt":["a","b"],"best_of":{},"stop":[{}]}})", n, stops));
  };
  EXPECT_EQ(completion(2), "no error");
  EXPECT_NE(completion(100).find("of all samples together"), std::string::npos);
}

TEST(ChatBodyTest, ToolsComeFromTheirFieldAlone) {
  for (const char* tools : {"[{}]", "[1]", R"([{"function":1}])", R"([{"function":{"name":"f"}}])", "3", "null"}) {
    for (const char* choice : {R"("required")", R"("none")", R"("auto")"}) {
      EXPECT_EQ(chat_error(fmt::format(R"({{"messages":[{{"role":"user","content":"a"}}],"tool_choice":{},)"
                                       R"("chat_template_kwargs":{{"tools":{}}}}})",
                                       choice, tools)),
                "chat_template_kwargs.tools is not taken: tools is a field of the body");
    }
  }
}

TEST(ChatBodyTest, TheModelsDefaultsStandWhereNothingIsSaid) {
  const SamplingDefaults defaults{.temperature = 0.6, .top_p = 0.9, .top_k = 20};
  const auto body = parse_chat_body(R"({"messages":[{"role":"user","content":"a"}],"top_p":1})", defaults);
  ASSERT_TRUE(body.ok());
  EXPECT_EQ(body->sampling.temperature, 0.6);
  EXPECT_EQ(body->sampling.top_p, 1.0);
  EXPECT_EQ(body->sampling.top_k, 20);
}

TEST(ChatBodyTest, ContinuesTheFinalMessage) {
  const auto body = parse_chat_body(
      R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"So"}],"continue_final_message":true,
          "max_tokens":5,"max_completion_tokens":7})",
      {});
  ASSERT_TRUE(body.ok());
  EXPECT_EQ(body->prefix, "So");
  EXPECT_EQ((*body->template_context)["messages"].size(), 1u);
  EXPECT_EQ(body->sampling.max_new_tokens, 7);
  EXPECT_EQ(chat_error(R"({"messages":[{"role":"user","content":"a"}],"continue_final_message":true})"),
            "continue_final_message needs a last message of role assistant");
}

TEST(ChatBodyTest, TheOlderFormOfToolsIsRefusedByName) {
  const std::string hello = R"({"messages":[{"role":"user","content":"a"}],)";
  EXPECT_EQ(chat_error(hello + R"("functions":[{"name":"f"}]})"),
            "functions is not supported: it is the older form of tools: send them");
  EXPECT_EQ(chat_error(hello + R"("function_call":"auto"})"),
            "function_call is not supported: it is the older form of tool_choice: send that");
  EXPECT_EQ(chat_error(hello + R"("function_call":"none","functions":[]})"), "no error");
  EXPECT_EQ(chat_error(R"({"messages":[{"role":"user","content":"a"},
                {"role":"assistant","content":null,"function_call":{"name":"f","arguments":"{}"}}]})"),
            "messages[1].function_call is not supported: it is the older form of tool_calls");
  EXPECT_EQ(chat_error(R"({"messages":[{"role":"assistant","content":"a","function_call":null}]})"), "no error");
}

TEST(ChatBodyTest, NamesWhatIsWrong) {
  EXPECT_EQ(chat_error("{}"), "messages must be a list of at least one message");
  EXPECT_EQ(chat_error(R"({"messages":[]})"), "messages must be a list of at least one message");
  EXPECT_EQ(chat_error(R"({"messages":[{"content":"a"}]})"), "messages[0].role must be a string");
  EXPECT_EQ(chat_error(R"({"messages":[{"role":"user","content":3}]})"),
            "messages[0].content must be a string, null or a list of text parts");
  EXPECT_NE(chat_error(R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})").find("image"),
            std::string::npos);
  const std::string head = R"({"messages":[{"role":"user","content":"a"}],)";
  EXPECT_EQ(chat_error(head + R"("temperature":-1})"), "temperature must be a number of at least 0, got -1");
  EXPECT_EQ(chat_error(head + R"("top_logprobs":2})"), "top_logprobs needs logprobs to be true");
  EXPECT_NE(chat_error(head + R"("response_format":{"type":"yaml"}})").find("response_format"), std::string::npos);
  EXPECT_EQ(chat_error(head + R"("response_format":{"type":"text"}})"), "no error");
  EXPECT_NE(chat_error(head + R"("tool_choice":"required"})").find("needs tools"), std::string::npos);
  EXPECT_NE(chat_error(head + R"("model":"base:adapter"})").find("base:adapter"), std::string::npos);
  EXPECT_EQ(chat_error(head + R"("max_tokens":0})"), "max_tokens must be an integer in [1, 2147483647], got 0");
}

TEST(OpenAiBodyTest, TokenIdsAreGivenToThoseWhoAsk) {
  EXPECT_FALSE(parse_completion_body(R"({"prompt":"a"})", {})->token_ids);
  EXPECT_TRUE(parse_completion_body(R"({"prompt":"a","return_token_ids":true})", {})->token_ids);
  EXPECT_TRUE(
      parse_chat_body(R"({"messages":[{"role":"user","content":"a"}],"return_token_ids":true})", {})->token_ids);
  EXPECT_EQ(completion_error(R"({"prompt":"a","return_token_ids":1})"),
            "return_token_ids must be true or false, got 1");
}

TEST(TokenizeBodyTest, TakesPromptsAndMessages) {
  EXPECT_FALSE(parse_tokenize_body(R"({"prompt":"a"})")->list);
  EXPECT_EQ(parse_tokenize_body(R"({"prompt":["a","b"],"add_special_tokens":false})")->prompts.size(), 2u);
  EXPECT_TRUE(parse_tokenize_body(R"({"messages":[{"role":"user","content":"a"}]})")->template_context);
  EXPECT_FALSE(parse_tokenize_body(R"({})").ok());
  EXPECT_EQ(parse_detokenize_body(R"({"tokens":[1,2]})")->tokens.size(), 1u);
  EXPECT_TRUE(parse_detokenize_body(R"({"tokens":[[1],[2]]})")->list);
  EXPECT_FALSE(parse_detokenize_body(R"({"tokens":["a"]})").ok());
}

TEST(OpenAiBodyTest, ResponseFormatsAreGrammars) {
  const auto grammar = [](const std::string& format) {
    const auto body = parse_chat_body(
        R"({"messages":[{"role":"user","content":"a"}],"response_format":)" + format + "}", SamplingDefaults{});
    EXPECT_TRUE(body.ok()) << body.error().message;
    return body.ok() ? body->sampling.grammar : std::nullopt;
  };
  EXPECT_FALSE(grammar(R"({"type":"text"})"));
  EXPECT_EQ(grammar(R"({"type":"json_object"})")->text, R"({"type": "object"})");
  const auto schema = grammar(R"({"type":"json_schema","json_schema":{"name":"n","schema":{"type":"integer"}}})");
  ASSERT_TRUE(schema);
  EXPECT_EQ(schema->text, R"({"type":"integer"})");
  EXPECT_EQ(schema->field, "response_format.json_schema.schema");
  // The older form of structural tags becomes the newer one.
  const auto tag =
      grammar(R"({"type":"structural_tag","triggers":["<f"],"structures":[{"begin":"<f>","schema":{},"end":"</f>"}]})");
  ASSERT_TRUE(tag);
  EXPECT_EQ(tag->text,
            R"({"type":"structural_tag","format":{"type":"triggered_tags","triggers":["<f"],"tags":[{"type":"tag",)"
            R"("begin":"<f>","content":{"type":"json_schema","json_schema":{}},"end":"</f>"}]}})");

  const std::string head = R"({"messages":[{"role":"user","content":"a"}],)";
  EXPECT_NE(chat_error(head + R"("response_format":{"type":"json_schema"}})").find("json_schema.schema must be"),
            std::string::npos);
  EXPECT_NE(chat_error(head + R"("regex":"a","response_format":{"type":"json_object"}})").find("together"),
            std::string::npos);
}

TEST(OpenAiBodyTest, AForcedCallIsAGrammar) {
  const std::string text = R"({"messages":[{"role":"user","content":"a"}],"tool_choice":"required",
      "tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}])";
  const auto body = parse_chat_body(text + "}", SamplingDefaults{});
  ASSERT_TRUE(body.ok()) << body.error().message;
  EXPECT_TRUE(body->forced_calls);
  ASSERT_TRUE(body->sampling.grammar);
  EXPECT_EQ(body->sampling.grammar->field, "tool_choice");
  EXPECT_TRUE(body->tools);
  EXPECT_NE(chat_error(text + R"(,"regex":"a"})").find("regex and tool_choice cannot be given together"),
            std::string::npos);
}

}  // namespace
}  // namespace sluice::protocol
