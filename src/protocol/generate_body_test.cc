#include "protocol/generate_body.h"

#include <gtest/gtest.h>

namespace sluice::protocol {
namespace {

std::string error_of(std::string_view text) {
  const auto body = parse_generate_body(text);
  return body.ok() ? "no error" : body.error().message;
}

TEST(GenerateBodyTest, ReadsOnePromptWithDefaults) {
  const auto body = parse_generate_body(R"({"text":"hi"})");
  ASSERT_TRUE(body.ok()) << body.error().message;
  EXPECT_FALSE(body->batch);
  ASSERT_EQ(body->items.size(), 1u);
  EXPECT_EQ(body->items[0].prompt.text, "hi");
  EXPECT_FALSE(body->items[0].sampling.max_new_tokens);
  EXPECT_EQ(body->items[0].sampling.top_k, -1);
  EXPECT_FALSE(body->stream);
  EXPECT_FALSE(body->dp_rank);
}

TEST(GenerateBodyTest, SaltKeyPriorityAndRoutingKeyAreRead) {
  const auto plain = parse_generate_body(R"({"text":"hi"})");
  EXPECT_FALSE(plain->priority) << "none is not 0";
  EXPECT_EQ(plain->items[0].extra_key, "");
  const auto body = parse_generate_body(
      R"({"text":["a","b"],"cache_salt":"s","extra_key":["x","y"],"priority":-2,"routing_key":"session"})");
  ASSERT_TRUE(body.ok()) << body.error().message;
  EXPECT_EQ(body->items[0].extra_key, "sx");
  EXPECT_EQ(body->items[1].extra_key, "sy");
  EXPECT_EQ(body->priority, -2);
  EXPECT_EQ(body->routing_key, "session");
  EXPECT_EQ(parse_generate_body(R"({"text":"hi","cache_salt":"s"})")->items[0].extra_key, "s");
}

TEST(GenerateBodyTest, GivesEachPromptOfABatchItsOwnMembers) {
  const auto body = parse_generate_body(R"({"input_ids":[[1,2],[3]],"rid":["a","b"],
      "sampling_params":[{"max_new_tokens":4},{"temperature":0}],"return_logprob":[true,false],
      "token_ids_logprob":[[5],null],"top_logprobs_num":2,"logprob_start_len":[0,-1],"extra_key":["x","y"]})");
  ASSERT_TRUE(body.ok()) << body.error().message;
  EXPECT_TRUE(body->batch);
  ASSERT_EQ(body->items.size(), 2u);
  EXPECT_EQ(*body->items[0].prompt.ids, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(body->items[0].rid, "a");
  EXPECT_EQ(body->items[0].sampling.max_new_tokens, 4);
  EXPECT_FALSE(body->items[1].sampling.max_new_tokens);
  EXPECT_EQ(body->items[1].sampling.temperature, 0);
  EXPECT_TRUE(body->items[0].return_logprob);
  EXPECT_FALSE(body->items[1].return_logprob);
  EXPECT_EQ(body->items[0].token_ids_logprob, std::vector<int32_t>{5});
  EXPECT_TRUE(body->items[1].token_ids_logprob.empty());
  EXPECT_EQ(body->items[1].top_logprobs_num, 2);
  EXPECT_EQ(body->items[0].logprob_start_len, 0);
  EXPECT_EQ(body->items[1].extra_key, "y");
}

TEST(GenerateBodyTest, AListOfOneIsABatch) {
  const auto body = parse_generate_body(R"({"text":["hi"],"rid":"r"})");
  ASSERT_TRUE(body.ok());
  EXPECT_TRUE(body->batch);
  EXPECT_EQ(body->rid, "r");
}

TEST(GenerateBodyTest, TheNewNameOfTheRankWins) {
  EXPECT_EQ(*parse_generate_body(R"({"text":"a","routed_dp_rank":1,"data_parallel_rank":0})")->dp_rank, 1);
  EXPECT_EQ(*parse_generate_body(R"({"text":"a","data_parallel_rank":2})")->dp_rank, 2);
}

TEST(GenerateBodyTest, NamesTheFieldAndTheRange) {
  EXPECT_EQ(error_of(R"({})"), "exactly one of text, input_ids and input_embeds must be given");
  EXPECT_EQ(error_of(R"({"text":"a","input_ids":[1]})"),
            "exactly one of text, input_ids and input_embeds must be given");
  EXPECT_EQ(error_of(R"({"text":"a","sampling_params":{"top_p":0}})"),
            "sampling_params.top_p must be a number in (0, 1], got 0");
  EXPECT_EQ(error_of(R"({"text":"a","sampling_params":{"temperature":"hot"}})"),
            "sampling_params.temperature must be a number of at least 0, got \"hot\"");
  EXPECT_EQ(error_of(R"({"text":"a","sampling_params":{"temprature":0}})"),
            "sampling_params has no field \"temprature\"");
  EXPECT_EQ(error_of(R"({"text":["a","b"],"sampling_params":[{},{"top_p":0.5,"beams":null}]})"),
            "sampling_params has no field \"beams\"");
  EXPECT_EQ(error_of(R"({"text":"a","sampling_params":{"max_tokens":5}})"),
            "sampling_params.max_tokens is not supported: it is called max_new_tokens here");
  EXPECT_EQ(error_of(R"({"text":"a","sampling_params":{"n":0}})"),
            "sampling_params.n must be an integer in [1, 128], got 0");
  EXPECT_EQ(error_of(R"({"text":"a","sampling_params":{"top_k":0}})"),
            "top_k must be -1 (all tokens) or an integer of at least 1, got 0");
  EXPECT_EQ(error_of(R"({"text":"a","sampling_params":{"max_new_tokens":4,"min_new_tokens":5}})"),
            "min_new_tokens must be in [0, max_new_tokens (4)], got 5");
  EXPECT_EQ(error_of(R"({"text":"a","stream":"yes"})"), "stream must be true or false, got \"yes\"");
  EXPECT_EQ(error_of(R"({"text":"a","routed_dp_rank":"x"})"), "routed_dp_rank must be an integer, got \"x\"");
  EXPECT_EQ(error_of(R"({"input_ids":[1,-2]})"), "input_ids must be a list of token ids, got a list");
  EXPECT_EQ(error_of(R"({"input_ids":[]})"), "input_ids must not be empty");
  EXPECT_EQ(error_of(R"({"text":[]})"), "the list of prompts is empty");
  EXPECT_EQ(error_of(R"({"text":["a","b"],"sampling_params":[{}]})"),
            "sampling_params must have one entry per prompt (2), got 1");
}

TEST(GenerateBodyTest, WhatEverySampleHasACopyOfIsBounded) {
  const auto with = [](const char* form, size_t n) { return fmt::format(fmt::runtime(form), std::string(n, 'x')); };
  for (const char* name : {"extra_key", "cache_salt", "routing_key"}) {
    const std::string form = fmt::format(R"({{{{"text":["a","b"],"{}":"{{}}"}}}})", name);
    EXPECT_EQ(error_of(with(form.c_str(), 1024)), "no error");
    EXPECT_EQ(error_of(with(form.c_str(), 1025)), fmt::format("{} must have at most 1024 bytes, got 1025", name));
  }
  for (const auto& [name, most] : {std::pair{"stop", 4096}, std::pair{"stop_regex", 1024}}) {
    const std::string form = fmt::format(R"({{{{"text":"a","sampling_params":{{{{"{}":["y","{{}}"]}}}}}}}})", name);
    const auto bytes = static_cast<size_t>(most);
    EXPECT_EQ(error_of(with(form.c_str(), bytes)), "no error");
    EXPECT_EQ(error_of(with(form.c_str(), bytes + 1)),
              fmt::format("sampling_params.{} must have at most {} bytes, got {}", name, most, most + 1));
  }
  std::string list = "1";
  for (int i = 1; i < 1025; ++i) list += ",1";
  EXPECT_EQ(error_of(fmt::format(R"({{"text":"a","sampling_params":{{"stop_token_ids":[{}]}}}})", list)),
            "sampling_params.stop_token_ids must hold at most 1024 token ids, got 1025");
  EXPECT_EQ(error_of(fmt::format(R"({{"text":"a","token_ids_logprob":[{}]}})", list)),
            "token_ids_logprob must hold at most 1024 token ids, got 1025");
}

TEST(GenerateBodyTest, ParametersOfAllSamplesTogetherAreBounded) {
  const auto params = [](int n) {
    return fmt::format(R"({{"n":{},"regex":"{}"}})", n, std::string(kMaxGrammarBytes, 'a'));
  };
  std::string texts = R"("a")", lists = params(128);
  for (int i = 1; i < 4; ++i) {
    texts += R"(,"a")";
    lists += "," + params(128);
  }
  const char* together = "sampling_params";
  const std::string wrong = fmt::format("bytes of all samples together, {} at most", kMaxCopiedBytes);
  const auto shared = [&](int n) { return fmt::format(R"({{"text":[{}],"{}":{}}})", texts, together, params(n)); };
  EXPECT_EQ(error_of(shared(64)), "no error");
  EXPECT_NE(error_of(shared(65)).find(wrong), std::string::npos);
  EXPECT_NE(error_of(fmt::format(R"({{"text":[{}],"{}":[{}]}})", texts, together, lists)).find(wrong),
            std::string::npos);
}

TEST(GenerateBodyTest, RefusesWhatIsOutsideTheScopeUnlessItAsksForNothing) {
  EXPECT_NE(error_of(R"({"text":"a","lora_path":"x"})").find("lora_path is not supported"), std::string::npos);
  EXPECT_NE(error_of(R"({"text":"a","bootstrap_room":7})").find("bootstrap_room"), std::string::npos);
  EXPECT_NE(error_of(R"({"text":"a","image_data":["x"]})").find("image_data"), std::string::npos);
  EXPECT_EQ(error_of(R"({"text":"a","lora_path":null,"image_data":[],"return_hidden_states":false,
                         "bootstrap_room":null})"),
            "no error");
}

TEST(GenerateBodyTest, TakesRowsInPlaceOfEmbeddings) {
  const auto one = parse_generate_body(R"({"input_embeds":[[1,2.5],[-3,4]]})");
  ASSERT_TRUE(one.ok()) << one.error().message;
  EXPECT_FALSE(one->batch);
  EXPECT_EQ(one->items[0].prompt.embeds, (std::vector<std::vector<float>>{{1, 2.5}, {-3, 4}}));
  const auto two = parse_generate_body(R"({"input_embeds":[[[1]],[[2],[3]]]})");
  ASSERT_TRUE(two.ok()) << two.error().message;
  EXPECT_TRUE(two->batch);
  EXPECT_EQ(two->items[1].prompt.embeds.size(), 2u);
  for (const char* wrong :
       {"3", "[]", "[3]", "[[]]", "[[1],[2,3]]", R"([["1"]])", "[[1e300]]", "[[[1]],[]]", "[[[1]],3]"}) {
    EXPECT_NE(error_of(R"({"input_embeds":)" + std::string(wrong) + "}").find("input_embeds must be a list"),
              std::string::npos)
        << wrong;
  }
  EXPECT_NE(error_of(R"({"input_embeds":[[1]],"text":"a"})").find("exactly one of"), std::string::npos);
}

TEST(GenerateBodyTest, InsidesAreAskedForByPrompt) {
  const auto body =
      parse_generate_body(R"({"text":["a","b"],"return_hidden_states":[false,true],"return_routed_experts":true})");
  ASSERT_TRUE(body.ok()) << body.error().message;
  EXPECT_FALSE(body->items[0].insides.hidden_states);
  EXPECT_TRUE(body->items[1].insides.hidden_states);
  EXPECT_TRUE(body->items[0].insides.routed_experts);
  EXPECT_EQ(error_of(R"({"text":"a","return_hidden_states":1})"), "return_hidden_states must be true or false, got 1");
}

TEST(GenerateBodyTest, SurvivesHostileJson) {
  EXPECT_EQ(error_of(""), "the body is not valid JSON");
  EXPECT_EQ(error_of("[1]"), "the body must be a JSON object");
  EXPECT_EQ(error_of("{\"text\":\"\xff\"}"), "the body is not valid JSON");
  EXPECT_EQ(error_of(R"({"text":1e999})"), "the body is not valid JSON");
  EXPECT_EQ(error_of(std::string(100'000, '[')), "JSON is nested deeper than 64 levels");
  std::string wide = "{";
  for (int i = 0; i < 2000; ++i) wide += fmt::format("\"k{}\":1,", i);
  EXPECT_EQ(error_of(wide), "a JSON object has more than 1024 members");
  EXPECT_NE(error_of(R"({"text":"a","sampling_params":{"max_new_tokens":99999999999999999999}})"), "no error");
  EXPECT_NE(error_of(R"({"text":"a","sampling_params":{"logit_bias":{"x":1}}})"), "no error");
}

TEST(GenerateBodyTest, FindsOutWhetherABrokenBodyAsksForAStream) {
  const auto form = [](std::string_view text) {
    GenerateForm out;
    EXPECT_FALSE(parse_generate_body(text, &out).ok());
    return std::pair(out.object, out.stream);
  };
  EXPECT_EQ(form(R"({"stream":true,"text":3})"), std::pair(true, true));
  EXPECT_EQ(form(R"({"stream":false})"), std::pair(true, false));
  EXPECT_EQ(form(R"({"stream":"yes","text":"a"})"), std::pair(true, false));
  EXPECT_EQ(form(R"({"stream")"), std::pair(false, false));
  EXPECT_EQ(form(R"(["stream",true])"), std::pair(false, false));
}

TEST(GenerateBodyTest, OneGrammarPerPromptAsTextOrAsJson) {
  const auto grammar = [](const std::string& params) {
    const auto body = parse_generate_body(R"({"text":"a","sampling_params":{)" + params + "}}");
    EXPECT_TRUE(body.ok()) << body.error().message;
    return body->items[0].sampling.grammar;
  };
  EXPECT_FALSE(grammar(R"("regex":null,"json_schema":null)"));
  const auto regex = grammar(R"("regex":"a+")");
  ASSERT_TRUE(regex);
  EXPECT_EQ(regex->kind, Grammar::Kind::kRegex);
  EXPECT_EQ(regex->text, "a+");
  EXPECT_EQ(regex->field, "sampling_params.regex");
  EXPECT_EQ(grammar(R"("json_schema":"{\"type\":\"object\"}")")->text, R"({"type":"object"})");
  EXPECT_EQ(grammar(R"("json_schema":{"type":"object"})")->text, R"({"type":"object"})");
  EXPECT_EQ(grammar(R"("ebnf":"root ::= \"a\"")")->kind, Grammar::Kind::kEbnf);
  EXPECT_EQ(grammar(R"("structural_tag":{"type":"structural_tag"})")->kind, Grammar::Kind::kStructuralTag);

  const std::string both = error_of(R"({"text":"a","sampling_params":{"regex":"a","ebnf":"root ::= \"a\""}})");
  EXPECT_NE(both.find("sampling_params.regex and sampling_params.ebnf cannot be given together"), std::string::npos);
  EXPECT_NE(error_of(R"({"text":"a","sampling_params":{"regex":5}})").find("sampling_params.regex"), std::string::npos);
  EXPECT_NE(error_of(R"({"text":"a","sampling_params":{"regex":""}})").find("must not be empty"), std::string::npos);
  const std::string long_one =
      error_of(R"({"text":"a","sampling_params":{"regex":")" + std::string(kMaxGrammarBytes + 1, 'a') + "\"}}");
  EXPECT_NE(long_one.find("at most 262144 bytes, got 262145"), std::string::npos);
}

}  // namespace
}  // namespace sluice::protocol
