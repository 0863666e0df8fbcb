#include "gateway/body_scan.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <cstdlib>
#include <list>
#include <nlohmann/json.hpp>

#include "base/rng.h"

namespace sluice::gateway {
namespace {

using Json = nlohmann::json;

BodyFacts scan(std::string body, Endpoint endpoint) {
  static std::list<std::string> bodies;  // what is found in them may be a view
  return scan_body(bodies.emplace_back(std::move(body)), endpoint).value();
}
std::string text(std::string body, Endpoint endpoint) {
  return std::string(scan(std::move(body), endpoint).routing_text.view());
}

TEST(BodyScanTest, JoinsTheTextOfChatMessagesBySpaces) {
  EXPECT_EQ(
      text(R"({"messages":[{"role":"system","content":"a"},)"
           R"({"role":"user","content":[{"type":"text","text":"b"},{"type":"image_url","image_url":{"url":"x"}}]},)"
           R"({"role":"assistant","content":null,"reasoning_content":"c","tool_calls":[{"id":1}]},)"
           R"({"role":"tool","content":"d"}]})",
           Endpoint::kChat),
      "a b c d");
}

TEST(BodyScanTest, FindsThePromptOfEachEndpoint) {
  EXPECT_EQ(text(R"({"prompt":"a"})", Endpoint::kCompletions), "a");
  EXPECT_EQ(text(R"({"prompt":["a","b"]})", Endpoint::kCompletions), "a b");
  EXPECT_EQ(text(R"({"prompt":[[1,2],[3]]})", Endpoint::kCompletions), "1 2 3");
  EXPECT_EQ(text(R"({"text":["a","b"]})", Endpoint::kGenerate), "a b");
  EXPECT_EQ(text(R"({"input_ids":[1,22,3]})", Endpoint::kGenerate), "1 22 3");
  EXPECT_EQ(text(R"({"input_ids":[1],"text":"t"})", Endpoint::kGenerate), "t");
  EXPECT_EQ(text(R"({"input":["a","b"]})", Endpoint::kEmbeddings), "a b");
  EXPECT_EQ(text(R"({"text":"a","prompt":"b","messages":[{"content":"c"}]})", Endpoint::kOther), "");
}

TEST(BodyScanTest, DecodesEscapes) {
  EXPECT_EQ(text(R"({"text":"\u4f60"})", Endpoint::kGenerate), text(R"({"text":"你"})", Endpoint::kGenerate));
  EXPECT_EQ(text(R"({"te\u0078t":"a\n\"b"})", Endpoint::kGenerate), "a\n\"b");
}

TEST(BodyScanTest, TextWithoutEscapesEndsAtItsQuoteWhateverFollows) {
  EXPECT_EQ(text("{\"prompt\":[ \"a \" \n,\t\"\", \"\xc3\xa4\\\\\"\n ] \n}", Endpoint::kCompletions), "a  \xc3\xa4\\");
  EXPECT_EQ(text("{\"prompt\":\"ends the body\"\n}\n", Endpoint::kCompletions), "ends the body");
  EXPECT_EQ(text(R"({"messages":[ {"content" : "b" } , {"content":[{"text":"c" }]}  ]})", Endpoint::kChat), "b c");
}

TEST(BodyScanTest, APromptThatStandsInTheBodyInOnePieceIsNotCopied) {
  const auto stays = [](std::string body, Endpoint endpoint) {
    const auto whole = std::make_shared<std::string>(std::move(body));
    const auto facts = scan_body(*whole, endpoint).value();
    const std::string_view text = facts.routing_text;
    EXPECT_FALSE(text.empty());
    const bool is_inside = text.data() > whole->data() && text.data() < whole->data() + whole->size();
    EXPECT_EQ(facts.routing_text.owner(whole) == whole, is_inside);
    return is_inside;
  };
  EXPECT_TRUE(stays(R"({"text":"a long prompt"})", Endpoint::kGenerate));
  EXPECT_TRUE(stays(R"({"text":"x","text":"the last counts"})", Endpoint::kGenerate));
  EXPECT_TRUE(stays(R"({"text":["x","y"],"text":["the last counts",""]})", Endpoint::kGenerate));
  EXPECT_TRUE(stays(R"({"messages":[{"content":""},{"content":[{"text":"x","text":"a"}]}]})", Endpoint::kChat));
  EXPECT_TRUE(stays(R"({"messages":[{"content":"a","reasoning_content":null,"content":"b"}]})", Endpoint::kChat));
  EXPECT_FALSE(stays(R"({"text":"a long\nprompt"})", Endpoint::kGenerate));
  EXPECT_FALSE(stays(R"({"messages":[{"content":"a"},{"content":"b"}]})", Endpoint::kChat));
  EXPECT_FALSE(stays(R"({"input_ids":[7]})", Endpoint::kGenerate));
}

TEST(BodyScanTest, ReadsTheFewOtherFields) {
  const auto facts =
      scan(R"({"model":"m","stream":true,"rid":"r","max_tokens":9,"tools":[{"model":"not this"}]})", Endpoint::kChat);
  EXPECT_EQ(facts.model, "m");
  EXPECT_TRUE(facts.stream);
  EXPECT_EQ(facts.rid, "r");
  EXPECT_EQ(facts.max_tokens, 9);
  EXPECT_EQ(scan(R"({"sampling_params":{"max_new_tokens":7}})", Endpoint::kGenerate).max_tokens, 7);
  EXPECT_EQ(scan(R"({"sampling_params":[{"max_new_tokens":7}]})", Endpoint::kGenerate).max_tokens, std::nullopt);
  EXPECT_FALSE(scan(R"({"stream":null,"model":null})", Endpoint::kChat).stream);
}

TEST(BodyScanTest, FindsTheTextOfRerankAndResponses) {
  EXPECT_EQ(text(R"({"query":"q","documents":["a"]})", Endpoint::kRerank), "q");
  EXPECT_EQ(text(R"({"input":"i"})", Endpoint::kResponses), "i");
  EXPECT_EQ(text(R"({"input":["a",{"role":"user","content":[{"type":"input_text","text":"b"}]},{"content":"c"}]})",
                 Endpoint::kResponses),
            "a b c");
  EXPECT_EQ(scan(R"({"input":"i","max_output_tokens":3})", Endpoint::kResponses).max_tokens, 3);
  EXPECT_EQ(scan(R"({"previous_response_id":"resp_1","input":"i"})", Endpoint::kResponses).previous, "resp_1");
  for (const char* none : {R"({"input":"i"})", R"({"previous_response_id":null})",
                           R"({"previous_response_id":"resp_1","previous_response_id":7})"}) {
    EXPECT_EQ(scan(none, Endpoint::kResponses).previous, "") << none;
  }
}

TEST(BodyScanTest, TheLastOfTwoEqualKeysCounts) {
  const auto facts = scan(R"({"model":"a","mod\u0065l":"b","stream":true,"stream":false,"rid":"a","rid":7,)"
                          R"("max_tokens":1,"max_tokens":2,"text":"a","text":"b"})",
                          Endpoint::kGenerate);
  EXPECT_EQ(facts.model, "b");
  EXPECT_FALSE(facts.stream);
  EXPECT_EQ(facts.rid, std::nullopt);
  EXPECT_EQ(facts.max_tokens, 2);
  EXPECT_EQ(facts.routing_text, "b");
  EXPECT_FALSE(scan(R"({"stream":true,"stream":null})", Endpoint::kChat).stream);
  EXPECT_EQ(scan(R"({"model":"a","model":null})", Endpoint::kChat).model, std::nullopt);
  EXPECT_EQ(scan(R"({"max_completion_tokens":5,"max_tokens":null})", Endpoint::kChat).max_tokens, 5);
  EXPECT_EQ(scan(R"({"sampling_params":{"max_new_tokens":1},"sampling_params":{}})", Endpoint::kGenerate).max_tokens,
            std::nullopt);
  EXPECT_EQ(text(R"({"input_ids":[1],"input_ids":[2,3]})", Endpoint::kGenerate), "2 3");
  EXPECT_EQ(text(R"({"messages":[{"content":"a"}],"messages":[{"content":"b"}]})", Endpoint::kChat), "b");
  EXPECT_EQ(
      text(R"({"messages":[{"content":"x"},{"content":"a","reasoning_content":"b","content":"c"}]})", Endpoint::kChat),
      "x b c");
  EXPECT_EQ(text(R"({"messages":[{"reasoning_content":"b","content":"a","content":null}]})", Endpoint::kChat), "b");
  EXPECT_EQ(text(R"({"messages":[{"content":[{"text":"a","text":"b"},{"text":"c"}]}]})", Endpoint::kChat), "b c");
}

TEST(BodyScanTest, AnIdThatNoIntegerHoldsIsLeftToTheEngine) {
  EXPECT_EQ(
      text(R"({"input_ids":[1, 123456789012345678901234567890 ,[-98765432109876543210],2.5,3]})", Endpoint::kGenerate),
      "1 3");
  std::string broken = R"({"input_ids":[1,1.2.3]})";
  EXPECT_FALSE(scan_body(broken, Endpoint::kGenerate).ok());
}

TEST(BodyScanTest, LeavesWhatItDoesNotKnowToTheEngine) {
  for (const char* body : {R"({"messages":"x"})", R"({"messages":[1,null,"x",{"content":7}]})", R"({"text":{"a":1}})",
                           R"({"max_tokens":"many"})", R"({"max_tokens":-1})", R"({"rid":["a","b"]})",
                           R"({"sampling_params":7})", R"({"messages":[{"content":[1,{"text":2}]}]})"}) {
    for (const Endpoint endpoint : {Endpoint::kChat, Endpoint::kGenerate}) {
      std::string copy = body;
      EXPECT_TRUE(scan_body(copy, endpoint).ok()) << body;
    }
  }
}

TEST(BodyScanTest, RefusesWhatIsNoObjectOrHasAFieldOfAnotherType) {
  for (const char* body :
       {"", " ", "{", "[]", "7", "null", "{}x", "{} {}", R"({"model":1})", R"({"stream":"yes"})", R"({"a":})",
        R"({"text":"\u00"})", R"({"text":"a)", "{\"text\":\"a\nb\"}", R"({"a":1,})", "{\"text\":\"\xff\"}"}) {
    std::string copy = body;
    const auto facts = scan_body(copy, Endpoint::kGenerate);
    EXPECT_FALSE(facts.ok()) << body;
    EXPECT_EQ(copy, body) << "the bytes are not touched";
  }
}

TEST(BodyScanTest, DeepNestingIsNoStackOverflow) {
  for (const char* field : {"text", "other"}) {
    std::string body =
        fmt::format(R"({{"{}":{}{},"stream":true}})", field, std::string(100'000, '['), std::string(100'000, ']'));
    const auto facts = scan_body(body, Endpoint::kGenerate);
    ASSERT_TRUE(facts.ok()) << "valid JSON that the engine may refuse";
    EXPECT_TRUE(facts->stream);
    EXPECT_EQ(facts->routing_text, "");
  }
}

// A random JSON value with everything that JSON has.
Json draw(Rng& rng, int depth) {
  switch (rng.below(depth > 3 ? 5 : 7)) {
    case 0:
      return nullptr;
    case 1:
      return rng.below(2) == 0;
    case 2:
      return static_cast<int64_t>(rng.below(1'000'000)) - 500'000;
    case 3:
      return static_cast<double>(rng.below(1000)) / 7;
    case 4: {
      constexpr std::string_view kParts[] = {"a", "\"", "\\", "\n", "你", "é", "\t", " ", "{", "]", "\x01"};
      std::string out;
      for (uint64_t i = rng.below(8); i > 0; --i) out += kParts[rng.below(std::size(kParts))];
      return out;
    }
    case 5: {
      Json list = Json::array();
      for (uint64_t i = rng.below(4); i > 0; --i) list.push_back(draw(rng, depth + 1));
      return list;
    }
    default: {
      constexpr const char* kKeys[] = {"text",   "content",         "messages", "model",
                                       "stream", "sampling_params", "x",        "prompt"};
      Json object = Json::object();
      for (uint64_t i = rng.below(4); i > 0; --i) object[kKeys[rng.below(std::size(kKeys))]] = draw(rng, depth + 1);
      return object;
    }
  }
}

uint64_t seed() {
  const char* given = std::getenv("SLUICE_TEST_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : 11;
}

// The slow twin: a parsed tree.
std::optional<std::string> prompt_of(const Json& body) {
  if (body.contains("model") && !body["model"].is_string() && !body["model"].is_null()) return std::nullopt;
  if (body.contains("stream") && !body["stream"].is_boolean() && !body["stream"].is_null()) return std::nullopt;
  std::string joined;
  const std::function<void(const Json&, int)> add = [&](const Json& value, int depth) {
    if (value.is_array() && depth < 3) {
      for (const auto& item : value) add(item, depth + 1);
      return;
    }
    std::string part;
    if (value.is_string()) part = value.get<std::string>();
    if (value.is_number_integer()) part = std::to_string(value.get<int64_t>());
    if (part.empty()) return;
    if (!joined.empty()) joined += ' ';
    joined += part;
  };
  if (body.contains("prompt")) add(body["prompt"], 0);
  return joined;
}

TEST(BodyScanTest, AgreesWithAParsedTreeOnRandomBodies) {
  Rng rng(seed());
  for (int round = 0; round < 20'000; ++round) {
    Json body = Json::object();
    body["prompt"] = draw(rng, 0);
    if (rng.below(2) == 0) body["other"] = draw(rng, 0);
    if (rng.below(4) == 0) body["model"] = draw(rng, 3);
    if (rng.below(4) == 0) body["stream"] = draw(rng, 3);
    const int indent = rng.below(2) == 0 ? -1 : 1;
    std::string bytes = body.dump(indent, ' ', rng.below(2) == 0);
    const std::string before = bytes;
    const auto facts = scan_body(bytes, Endpoint::kCompletions);
    const auto expected = prompt_of(body);
    ASSERT_EQ(facts.ok(), expected.has_value()) << "seed " << seed() << ": " << before;
    if (expected) {
      ASSERT_EQ(facts->routing_text, *expected) << "seed " << seed() << ": " << before;
    }
    ASSERT_EQ(bytes, before);
  }
}

TEST(BodyScanTest, SurvivesCutAndSpoiltBodies) {
  Rng rng(seed());
  const std::string whole =
      R"({"model":"m","stream":true,"messages":[{"role":"user","content":[{"type":"text","text":"\u4f60 hello"}]}],)"
      R"("sampling_params":{"max_new_tokens":5},"text":["a",{"b":[1,2.5e3]}],"prompt":[[1,2],"x"]})";
  for (size_t cut = 0; cut < whole.size(); ++cut) {
    std::string body = whole.substr(0, cut);
    EXPECT_FALSE(scan_body(body, Endpoint::kChat).ok()) << cut;
  }
  for (int round = 0; round < 20'000; ++round) {
    std::string body = whole;
    for (uint64_t n = 1 + rng.below(4); n > 0; --n) body[rng.below(body.size())] = static_cast<char>(rng.below(256));
    const std::string before = body;
    (void)scan_body(body, round % 2 == 0 ? Endpoint::kChat : Endpoint::kGenerate);  // an error or not, but no crash
    ASSERT_EQ(body, before);
  }
}

TEST(BodyScanTest, TheMemoryForAVeryLargeBodyIsGivenBack) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "another allocator";
#endif
  std::string body = R"({"text":")" + std::string(size_t{64} << 20, 'x') + R"("})";
  const size_t before = ::mallinfo2().hblkhd;
  ASSERT_TRUE(scan_body(body, Endpoint::kGenerate).ok());
  EXPECT_LT(::mallinfo2().hblkhd, before + (size_t{8} << 20));
}

}  // namespace
}  // namespace sluice::gateway
