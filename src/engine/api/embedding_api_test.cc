#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

class EmbeddingApiTest : public ApiTest {
 protected:
  void serve_embeddings() {
    options_.is_embedding = true;
    serve();
    backend_->set_script([](const GenerateRequest& request) {
      EXPECT_TRUE(request.embed);
      return std::vector<Word>{{.ids = {}, .finish = {.kind = FinishKind::kLength}, .embedding = {0.6f, 0.0f, 0.8f}}};
    });
  }
};

TEST_F(EmbeddingApiTest, EmbedsTextsAndIds) {
  serve_embeddings();
  const auto one = post("/v1/embeddings", {{"input", "hello"}, {"model", "m"}}).json();
  EXPECT_EQ(one["object"], "list");
  EXPECT_EQ(one["model"], "m");
  ASSERT_EQ(one["data"].size(), 1u);
  EXPECT_EQ(one["data"][0]["object"], "embedding");
  EXPECT_FLOAT_EQ(one["data"][0]["embedding"][2].get<float>(), 0.8f);
  EXPECT_EQ(one["usage"]["prompt_tokens"], one["usage"]["total_tokens"]);
  EXPECT_GT(one["usage"]["prompt_tokens"], 0);

  const auto three = post("/v1/embeddings", {{"input", Json::parse("[[1,2],[3],[4]]")}}).json();
  ASSERT_EQ(three["data"].size(), 3u);
  EXPECT_EQ(three["data"][2]["index"], 2);
  EXPECT_EQ(three["usage"]["prompt_tokens"], 4);
}

TEST_F(EmbeddingApiTest, ARoutingKeyGoesToTheRank) {
  serve_embeddings();
  ASSERT_EQ(post("/v1/embeddings", {{"input", "hello"}, {"routing_key", "mine"}}).status, 200);
  EXPECT_EQ(backend_->submitted().back().first.routing_key, "mine");
}

TEST_F(EmbeddingApiTest, Base64IsTheFloatsAsTheyLieInMemory) {
  serve_embeddings();
  const auto answer = post("/v1/embeddings", {{"input", "a"}, {"encoding_format", "base64"}}).json();
  EXPECT_EQ(answer["data"][0]["embedding"], "mpkZPwAAAADNzEw/");  // 0x3f19999a, 0, 0x3f4ccccd
}

TEST_F(EmbeddingApiTest, FewerDimensionsHaveUnitLengthAgain) {
  serve_embeddings();
  const auto answer = post("/v1/embeddings", {{"input", "a"}, {"dimensions", 2}}).json();
  ASSERT_EQ(answer["data"][0]["embedding"].size(), 2u);
  EXPECT_FLOAT_EQ(answer["data"][0]["embedding"][0].get<float>(), 1.0f);
  const auto wrong = post("/v1/embeddings", {{"input", "a"}, {"dimensions", 100'000}});
  EXPECT_EQ(wrong.status, 400);
  EXPECT_THAT(wrong.body, HasSubstr("dimensions must be in [1, "));
}

TEST_F(EmbeddingApiTest, TheNativeFormHasTheNativeShape) {
  serve_embeddings();
  const auto one = post("/encode", {{"text", "a"}}).json();
  EXPECT_EQ(one["embedding"].size(), 3u);
  EXPECT_TRUE(one["meta_info"].contains("id"));
  EXPECT_EQ(post("/encode", {{"input_ids", Json::parse("[[1],[2]]")}}).json().size(), 2u);
  EXPECT_EQ(call("GET", "/model_info").json()["is_generation"], false);
}

TEST_F(EmbeddingApiTest, WithoutTheFlagItSaysWhichFlag) {
  serve();
  const auto answer = post("/v1/embeddings", {{"input", "a"}});
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.body, HasSubstr("--is-embedding"));
  EXPECT_TRUE(backend_->submitted().empty());
}

TEST_F(EmbeddingApiTest, BadInputsAre400) {
  serve_embeddings();
  for (const char* body : {"{}", R"({"input":[]})", R"({"input":5})", R"({"input":"a","encoding_format":"int8"})",
                           R"({"input":"a","dimensions":0})", R"({"input":[["a"]]})"}) {
    EXPECT_EQ(call("POST", "/v1/embeddings", body).status, 400) << body;
  }
}

TEST_F(EmbeddingApiTest, ScoresAreTheProbabilitiesOfLabelsAfterEachItem) {
  serve();
  backend_->set_script([](const GenerateRequest& request) {
    PositionLogprobs scores{.chosen = TokenLogprob{-1, 7}, .top = {}, .requested = {}};
    for (const int32_t id : request.token_ids_logprob) {
      scores.requested.push_back({std::log(id == 5 ? 0.5f : 0.25f), id});
    }
    return std::vector<Word>{
        {.ids = {7}, .finish = {.kind = FinishKind::kLength}, .input_logprobs = {}, .output_logprobs = {scores}}};
  });
  const Json body = {{"query", "is it? "}, {"items", {"yes", "no"}}, {"label_token_ids", {5, 6}}};
  const auto plain = post("/v1/score", body).json();
  EXPECT_EQ(plain["object"], "scoring");
  ASSERT_EQ(plain["scores"].size(), 2u);
  EXPECT_NEAR(plain["scores"][0][0], 0.5, 1e-6);
  EXPECT_NEAR(plain["scores"][1][1], 0.25, 1e-6);
  EXPECT_EQ(backend_->submitted()[0].first.input_ids, tokenizer_->encode("is it? yes", true));

  Json other = body;
  other["apply_softmax"] = true;
  other["item_first"] = true;
  const auto softmax = post("/v1/score", other).json();
  EXPECT_NEAR(softmax["scores"][0][0], 2.0 / 3, 1e-6);
  EXPECT_EQ(backend_->submitted()[2].first.input_ids, tokenizer_->encode("yesis it? ", true));

  EXPECT_EQ(post("/v1/score", {{"query", "a"}, {"items", "b"}}).status, 400);
  EXPECT_EQ(post("/v1/score", {{"query", "a"}, {"items", {1, 2}}, {"label_token_ids", {5}}}).status, 400);
  // Some 17 MB of query, four times.
  const std::string query(size_t{17} << 20, 'a');
  const auto large = post("/v1/score", {{"query", query}, {"items", {"b", "c", "d", "e"}}, {"label_token_ids", {5}}});
  EXPECT_EQ(large.status, 400);
  EXPECT_THAT(large.body, HasSubstr("send fewer items"));
  const auto outside = post("/v1/score", {{"query", "a"}, {"items", "b"}, {"label_token_ids", {1'000'000}}});
  EXPECT_EQ(outside.status, 400);
  EXPECT_THAT(outside.body, HasSubstr("label_token_ids"));
}

class ClassifyApiTest : public EmbeddingApiTest {
 protected:
  void serve_classifier() {
    override_ = R"({"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "bad", "1": "good"}})";
    serve();
    backend_->set_script([](const GenerateRequest& request) {
      EXPECT_TRUE(request.embed);
      const float second = request.input_ids.size() > 4 ? 1.0f : -1.0f;
      return std::vector<Word>{{.finish = {.kind = FinishKind::kLength}, .embedding = {0.0f, second}}};
    });
  }
};

TEST_F(ClassifyApiTest, NamesTheMostProbableLabelOfEachText) {
  serve_classifier();
  const auto answer = post("/v1/classify", {{"input", Json::parse("[[1,2,3],[1,2,3,4,5]]")}, {"model", "m"}}).json();
  EXPECT_EQ(answer["object"], "list");
  EXPECT_EQ(answer["model"], "m");
  ASSERT_EQ(answer["data"].size(), 2u);
  EXPECT_EQ(answer["data"][0]["label"], "bad");
  EXPECT_EQ(answer["data"][1]["label"], "good");
  EXPECT_EQ(answer["data"][1]["index"], 1);
  EXPECT_EQ(answer["data"][1]["num_classes"], 2);
  EXPECT_NEAR(answer["data"][1]["probs"][1], 1 / (1 + std::exp(-1.0)), 1e-9);
  EXPECT_NEAR(answer["data"][1]["probs"][0].get<double>() + answer["data"][1]["probs"][1].get<double>(), 1, 1e-9);
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 8);
  EXPECT_EQ(call("GET", "/model_info").json()["is_generation"], false);
}

TEST_F(ClassifyApiTest, TheNativeFormHasTheScores) {
  serve_classifier();
  for (const char* path : {"/classify", "/encode"}) {
    const auto answer = post(path, {{"input_ids", {1, 2, 3}}}).json();
    EXPECT_EQ(answer["embedding"], Json::parse("[0.0,-1.0]")) << path;
    EXPECT_EQ(answer["meta_info"]["prompt_tokens"], 3) << path;
  }
  EXPECT_EQ(post("/classify", {{"text", {"a", "b"}}}).json().size(), 2u);
}

TEST_F(ClassifyApiTest, AClassifierWritesNoText) {
  serve_classifier();
  const auto messages = Json::parse(R"([{"role":"user","content":"hi"}])");
  const std::pair<const char*, Json> bodies[] = {
      {"/generate", {{"text", "a"}}},
      {"/v1/completions", {{"prompt", "a"}}},
      {"/v1/chat/completions", {{"messages", messages}}},
      {"/v1/score", {{"query", "a"}, {"items", "b"}, {"label_token_ids", {5}}}},
      {"/v1/embeddings", {{"input", "a"}, {"dimensions", 1}}},
      {"/v1/classify", {{"input", " "}}},
      {"/v1/classify", Json::object()}};
  for (const auto& [path, body] : bodies) EXPECT_EQ(post(path, body).status, 400) << path;
  EXPECT_THAT(post("/generate", {{"text", "a"}}).body, HasSubstr("/v1/classify"));
  EXPECT_TRUE(backend_->submitted().empty());
}

TEST_F(ClassifyApiTest, OtherModelsDoNotClassify) {
  serve();
  for (const char* path : {"/v1/classify", "/classify"}) {
    const auto answer = post(path, {{"input", "a"}, {"text", "a"}});
    EXPECT_EQ(answer.status, 400) << path;
    EXPECT_THAT(answer.body, HasSubstr("LlamaForCausalLM"));
  }
}

class RerankApiTest : public ApiTest {
 protected:
  RerankApiTest() : folder_(std::filesystem::temp_directory_path() / fmt::format("sluice-rerank-{}", ::getpid())) {
    std::filesystem::create_directories(folder_);
  }
  ~RerankApiTest() override { std::filesystem::remove_all(folder_); }

  // Serves a model whose vocabulary has these words as tokens 512, 513, ...
  void serve_template(const std::string& text, const std::vector<std::string>& words = {"yes", "no"}) {
    std::ifstream in(std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama/tokenizer.json");
    Json vocabulary = Json::parse(in);
    for (size_t i = 0; i < words.size(); ++i) {
      vocabulary["added_tokens"].push_back({{"id", 512 + i},
                                            {"content", words[i]},
                                            {"single_word", false},
                                            {"lstrip", false},
                                            {"rstrip", false},
                                            {"normalized", false},
                                            {"special", false}});
    }
    tokenizer_file_ = folder_;
    std::ofstream(folder_ / "tokenizer.json") << vocabulary;
    use_template(text);
    serve();
  }
  // p("yes") = 3 p("no") where the document is a long one.
  void answer_by_length() {
    backend_->set_script([this](const GenerateRequest& request) {
      EXPECT_EQ(request.token_ids_logprob, (std::vector<int32_t>{512, 513}));
      const auto prompt = tokenizer_->decode(request.input_ids, false);
      const float yes = prompt.find("long") != std::string::npos ? 0.3f : 0.1f;
      PositionLogprobs scores{.chosen = TokenLogprob{-1, 7}, .top = {}, .requested = {}};
      scores.requested = {{std::log(yes), 512}, {std::log(0.1f), 513}};
      return std::vector<Word>{{.ids = {7}, .finish = {.kind = FinishKind::kLength}, .output_logprobs = {scores}}};
    });
  }

  const std::filesystem::path folder_;
  static constexpr const char* kTemplate =
      "Say \"yes\" or \"no\": {{ instruct | default('does it fit?') }}|{{ messages[0]['content'] }}|"
      "{{ messages[1]['content'] }}>";
};

TEST_F(RerankApiTest, TheBestDocumentsComeFirst) {
  serve_template(kTemplate);
  answer_by_length();
  const Json body = {{"query", "what?"}, {"documents", {"brief", "so long"}}};
  const auto all = post("/v1/rerank", body).json();
  ASSERT_EQ(all.size(), 2u);
  EXPECT_NEAR(all[0]["score"], 0.75, 1e-6);
  EXPECT_EQ(all[0]["document"], "so long");
  EXPECT_EQ(all[0]["index"], 1);
  EXPECT_NEAR(all[1]["score"], 0.5, 1e-6);
  EXPECT_GT(all[1]["meta_info"]["prompt_tokens"], 0);
  EXPECT_EQ(backend_->submitted()[1].first.input_ids,
            tokenizer_->encode("Say \"yes\" or \"no\": does it fit?|what?|so long>", false));

  Json fewer = body;
  fewer.update({{"top_n", 1}, {"return_documents", false}, {"instruct", "is it green?"}});
  const auto best = post("/v1/rerank", fewer).json();
  ASSERT_EQ(best.size(), 1u);
  EXPECT_EQ(best[0]["index"], 1);
  EXPECT_TRUE(best[0]["document"].is_null());
  EXPECT_THAT(tokenizer_->decode(backend_->submitted()[2].first.input_ids, false), HasSubstr("is it green?"));
}

TEST_F(RerankApiTest, BadInputsAre400) {
  serve_template(kTemplate);
  for (const char* body : {R"({"documents":["a"]})", R"({"query":" ","documents":["a"]})", R"({"query":"a"})",
                           R"({"query":"a","documents":[]})", R"({"query":"a","documents":["b"," "]})",
                           R"({"query":"a","documents":["b",1]})", R"({"query":"a","documents":["b"],"top_n":0})",
                           R"({"query":"a","documents":"b"})"}) {
    EXPECT_EQ(call("POST", "/v1/rerank", body).status, 400) << body;
  }
  EXPECT_TRUE(backend_->submitted().empty());
}

// The question stands at the end of a prompt: cut off, an answer would be about nothing.
TEST_F(RerankApiTest, ADocumentBeyondTheContextIsRefusedAndNeverCut) {
  options_.allow_auto_truncate = true;
  serve_template(kTemplate);
  std::string longest;
  for (int i = 0; i < 5000; ++i) longest += " word";
  const auto answer = post("/v1/rerank", {{"query", "what?"}, {"documents", {"brief", longest}}});
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.body, HasSubstr("document 1"));
  EXPECT_TRUE(backend_->submitted().empty());
}

TEST_F(RerankApiTest, AQueryThatMakesFarMoreThanTheBodyIsRefused) {
  serve_template(kTemplate);
  std::string query(40'000, 'a');
  const auto answer = post("/v1/rerank", {{"query", query}, {"documents", std::vector<std::string>(2'000, "b")}});
  EXPECT_EQ(answer.status, 400);
  EXPECT_TRUE(backend_->submitted().empty());
}

TEST_F(RerankApiTest, AVocabularyWithoutTheAnswersIsNamed) {
  serve_template(kTemplate, {"no"});  // "yes" is three
  const auto answer = post("/v1/rerank", {{"query", "a"}, {"documents", Json::array({"b"})}});
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.body, HasSubstr("'yes'"));
}

TEST_F(RerankApiTest, AnotherTemplateDoesNotRerank) {
  serve_template("{% for m in messages %}{{ m.content }}{% endfor %}");
  const auto answer = post("/v1/rerank", {{"query", "a"}, {"documents", Json::array({"b"})}});
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.body, HasSubstr("--chat-template"));
}

}  // namespace
}  // namespace sluice::engine
