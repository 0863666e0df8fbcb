#include "bench/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "bench/arrivals.h"
#include "tokenizer/files.h"

namespace sluice::bench {
namespace {

using ::testing::Each;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;

BenchOptions options_of(const std::string& dataset) {
  BenchOptions options = bench_option_table().defaults();
  options.dataset_name = dataset;
  options.num_prompts = 20;
  return options;
}

Result<std::vector<Item>> make(const BenchOptions& options, const TextSource& texts = TextSource(nullptr),
                               uint64_t seed = 1) {
  Rng rng(seed);
  return make_dataset(options, texts, rng);
}

std::vector<Item> made(const BenchOptions& options, const TextSource& texts = TextSource(nullptr), uint64_t seed = 1) {
  return make(options, texts, seed).value();
}

// A file that is gone with the test.
class File {
 public:
  explicit File(std::string_view text)
      : path_(std::filesystem::path(::testing::TempDir()) /
              fmt::format("bench_{}", ::testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::ofstream(path_) << text;
  }
  ~File() { std::filesystem::remove(path_); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

std::shared_ptr<const tokenizer::Tokenizer> fixture_tokenizer() {
  const std::filesystem::path folder = std::filesystem::path(SLUICE_FIXTURES_DIR) / "tiny-qwen2";
  std::ifstream in(folder / "tokenizer.json");
  std::ostringstream text;
  text << in.rdbuf();
  return tokenizer::Tokenizer::from_json(text.str(), "").value();
}

TEST(DatasetTest, SameSeedSameRequestsAndAnotherSeedOthers) {
  for (const char* name : {"random", "random-ids", "generated-shared-prefix"}) {
    BenchOptions options = options_of(name);
    options.random_input_len = 50;
    options.gsp_num_groups = options.gsp_prompts_per_group = 4;
    options.gsp_system_prompt_len = options.gsp_question_len = 20;
    const auto a = made(options);
    const auto b = made(options);
    const auto other = made(options, TextSource(nullptr), 2);
    ASSERT_EQ(a.size(), b.size());
    bool differs = false;
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i].turns, b[i].turns) << name;
      EXPECT_EQ(a[i].output_len, b[i].output_len) << name;
      differs = differs || a[i].turns != other[i].turns;
    }
    EXPECT_TRUE(differs) << name;
  }
}

TEST(DatasetTest, LengthsAreUniformBetweenTheRatioAndTheWhole) {
  Rng rng(3);
  std::map<int64_t, int> counts;
  for (int i = 0; i < 6000; ++i) ++counts[draw_length(rng, 10, 0.5)];
  EXPECT_EQ(counts.size(), 6u);
  EXPECT_EQ(counts.begin()->first, 5);
  EXPECT_EQ(counts.rbegin()->first, 10);
  for (const auto& [length, count] : counts) EXPECT_NEAR(count, 1000, 150) << length;
  EXPECT_EQ(draw_length(rng, 10, 1.0), 10);
  for (int i = 0; i < 100; ++i) EXPECT_THAT(draw_length(rng, 3, 0.0), Ge(1));
}

TEST(DatasetTest, WithoutATokenizerAPromptHasAsManyWordsAsTokensWereAskedFor) {
  const TextSource words(nullptr);
  BenchOptions options = options_of("random");
  options.random_input_len = 64;
  options.random_range_ratio = 1;
  for (const auto& item : made(options)) {
    EXPECT_EQ(item.prompt_len, 64);
    EXPECT_EQ(words.count(item.turns.at(0)), 64);
    EXPECT_EQ(item.output_len, 1024);
  }
}

TEST(DatasetTest, WithATokenizerAPromptIsMadeOfThatManyTokens) {
  const TextSource texts(fixture_tokenizer());
  BenchOptions options = options_of("random-ids");
  options.tokenizer = "given";
  options.tokenize_prompt = true;
  options.random_input_len = 64;
  options.random_range_ratio = 1;
  for (const auto& item : made(options, texts)) {
    EXPECT_EQ(item.ids.size(), 64u);
    EXPECT_TRUE(item.turns.empty());
    for (const int32_t id : item.ids) EXPECT_FALSE(texts.tokenizer()->is_special(id));
  }
  const Passage passage = texts.fit("The river runs to the sea.", 20);
  EXPECT_EQ(passage.ids.size(), 20u);
  EXPECT_EQ(texts.count(passage.text), 20);
}

TEST(DatasetTest, ATokenizerReadsARandomTextAsTheWantedNumberOfTokens) {
  const TextSource texts(fixture_tokenizer());
  Rng rng(9);
  for (const int64_t wanted : {1, 2, 3, 17, 64, 300}) {
    for (int i = 0; i < 20; ++i) {
      const Passage passage = texts.random(rng, wanted);
      EXPECT_EQ(passage.tokens, wanted);
      EXPECT_EQ(texts.count(passage.text), wanted) << passage.text;
    }
  }
}

TEST(DatasetTest, SharedPrefixesAreSharedWithinAGroupOnly) {
  BenchOptions options = options_of("generated-shared-prefix");
  options.gsp_num_groups = 3;
  options.gsp_prompts_per_group = 5;
  options.gsp_system_prompt_len = 30;
  options.gsp_question_len = 7;
  options.gsp_output_len = 11;
  options.gsp_send_routing_key = true;
  const auto items = made(options);
  ASSERT_EQ(items.size(), 15u);
  std::map<std::string, std::set<std::string>> systems;
  std::set<std::string> prompts;
  for (const auto& item : items) {
    const std::string& text = item.turns.at(0);
    systems[text.substr(0, text.find("\n\n"))].insert(item.routing_key);
    prompts.insert(text);
    EXPECT_EQ(item.prompt_len, 37);
    EXPECT_EQ(item.output_len, 11);
  }
  EXPECT_EQ(systems.size(), 3u);
  for (const auto& [system, keys] : systems) EXPECT_EQ(keys.size(), 1u);
  EXPECT_EQ(prompts.size(), 15u);
}

TEST(DatasetTest, OrderedGroupsFollowEachOtherAndOthersAreMixed) {
  BenchOptions options = options_of("generated-shared-prefix");
  options.gsp_num_groups = 8;
  options.gsp_prompts_per_group = 4;
  options.gsp_system_prompt_len = options.gsp_question_len = 5;
  options.gsp_send_routing_key = true;
  const auto changes = [](const std::vector<Item>& items) {
    int n = 0;
    for (size_t i = 1; i < items.size(); ++i) n += items[i].routing_key != items[i - 1].routing_key;
    return n;
  };
  EXPECT_GT(changes(made(options)), 7);
  options.gsp_ordered = true;
  EXPECT_EQ(changes(made(options)), 7);
}

TEST(DatasetTest, AConversationHasItsTurns) {
  BenchOptions options = options_of("generated-shared-prefix");
  options.gsp_num_groups = options.gsp_prompts_per_group = 1;
  options.gsp_num_turns = 3;
  const auto items = made(options);
  ASSERT_EQ(items.size(), 1u);
  EXPECT_EQ(items[0].turns.size(), 3u);
  EXPECT_THAT(items[0].turns[0], HasSubstr("\n\n"));
}

TEST(DatasetTest, FixedIsTheSamePromptEveryTime) {
  BenchOptions options = options_of("fixed");
  options.fixed_prompt = "one two three";
  const auto items = made(options);
  ASSERT_EQ(items.size(), 20u);
  for (const auto& item : items) EXPECT_EQ(item.turns.at(0), "one two three");
  EXPECT_EQ(items[0].prompt_len, 3);
}

TEST(DatasetTest, ReadsShareGptAndLeavesOutWhatDoesNotFit) {
  const File file(R"([
    {"conversations": [{"from": "human", "value": "a b c"}, {"from": "gpt", "value": "d e"}]},
    {"conversation": [{"value": "f g h i j k"}, {"value": "l m n"}]},
    {"conversations": [{"value": "too"}, {"value": "short question"}]},
    {"conversations": [{"value": "no answer"}]},
    {"conversations": [{"value": "a very long one w w w w w w w w"}, {"value": "x y"}]}])");
  BenchOptions options = options_of("sharegpt");
  options.dataset_path = file.path();
  options.sharegpt_context_len = 9;
  std::map<std::string, int64_t> found;
  for (const auto& item : made(options)) found[item.turns.at(0)] = item.output_len;
  EXPECT_EQ(found, (std::map<std::string, int64_t>{{"a b c", 2}, {"f g h i j k", 3}}));

  options.sharegpt_output_len = 6;
  found.clear();
  for (const auto& item : made(options)) found[item.turns.at(0)] = item.output_len;
  EXPECT_EQ(found, (std::map<std::string, int64_t>{{"a b c", 6}}));
}

TEST(DatasetTest, ReadsCustomLines) {
  const File file("{\"conversations\": [{\"role\": \"user\", \"content\": \"a b\"}, {\"content\": \"c d\"}]}\n\n");
  BenchOptions options = options_of("custom");
  options.dataset_path = file.path();
  const auto items = made(options);
  ASSERT_EQ(items.size(), 1u);
  EXPECT_EQ(items[0].turns.at(0), "a b");
}

int64_t tokenizer_id(const nlohmann::json& tokenizer, std::string_view content) {
  for (const auto& token : tokenizer["added_tokens"]) {
    if (token["content"] == content) return token["id"];
  }
  return -1;
}

TEST(DatasetTest, ATemplateLosesItsFirstTokenOnlyWhereTheServerAddsIt) {
  const File file("{\"conversations\": [{\"role\": \"user\", \"content\": \"a b\"}, {\"content\": \"c d\"}]}\n");
  BenchOptions options = options_of("custom");
  options.dataset_path = file.path();
  options.apply_chat_template = true;
  const auto wrapped = [&](const std::filesystem::path& folder) {
    options.tokenizer = folder.string();
    const auto tokenizer = tokenizer::load_tokenizer(*options.tokenizer).value();
    return made(options, TextSource(tokenizer)).at(0).turns.at(0);
  };
  const std::filesystem::path fixtures = SLUICE_FIXTURES_DIR;
  const auto folder = std::filesystem::path(::testing::TempDir()) / "bench_first_token";
  std::filesystem::create_directories(folder);
  const std::string text = "<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\n";
  for (const bool adds : {false, true}) {
    nlohmann::json tokenizer = nlohmann::json::parse(std::ifstream(fixtures / "tiny-qwen2" / "tokenizer.json"));
    const nlohmann::json added = {
        {"id", "<|im_start|>"}, {"ids", {tokenizer_id(tokenizer, "<|im_start|>")}}, {"tokens", {"<|im_start|>"}}};
    const nlohmann::json single = nlohmann::json::parse(
        R"([{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}])");
    if (adds) {
      tokenizer["post_processor"] = {{"type", "TemplateProcessing"},
                                     {"single", single},
                                     {"pair", single},
                                     {"special_tokens", {{"<|im_start|>", added}}}};
    }
    std::ofstream(folder / "tokenizer.json") << tokenizer;
    std::ofstream(folder / "tokenizer_config.json") << R"({"bos_token": "<|im_start|>"})";
    std::filesystem::copy_file(fixtures / "tiny-qwen2" / "chat_template.jinja", folder / "chat_template.jinja",
                               std::filesystem::copy_options::overwrite_existing);
    EXPECT_THAT(wrapped(folder), HasSubstr(adds ? text.substr(12) : text));
    EXPECT_EQ(wrapped(folder).starts_with("<|im_start|>"), !adds);
  }
  std::filesystem::remove_all(folder);
}

TEST(DatasetTest, SaysWhatIsWrongWithAFile) {
  BenchOptions options = options_of("custom");
  options.dataset_path = "/does/not/exist";
  EXPECT_THAT(make(options).error().message, HasSubstr("/does/not/exist"));
  const File broken("{\"conversations\": []}\n{not json\n");
  options.dataset_path = broken.path();
  EXPECT_THAT(make(options).error().message, HasSubstr(":2: not JSON"));
  options.dataset_name = "sharegpt";
  EXPECT_THAT(make(options).error().message, HasSubstr("--dataset-name custom"));
}

TEST(DatasetTest, RandomCutsOrRepeatsTheTextsOfAFile) {
  const File file(R"([{"conversations": [{"value": "a b c"}, {"value": "d"}]}])");
  BenchOptions options = options_of("random");
  options.dataset_path = file.path();
  options.random_range_ratio = 1;
  options.random_input_len = 5;
  EXPECT_EQ(made(options)[0].turns.at(0), "a b c a b");
  options.random_input_len = 2;
  EXPECT_EQ(made(options)[0].turns.at(0), "a b");
}

TEST(ArrivalsTest, ArePoissonAtTheRate) {
  Rng rng(5);
  const size_t n = 20000;
  const auto times = arrival_times(n, /*rate=*/50, rng);
  EXPECT_EQ(times[0], Duration::zero());
  EXPECT_TRUE(std::is_sorted(times.begin(), times.end()));
  double sum = 0;
  double squares = 0;
  for (size_t i = 1; i < n; ++i) {
    const double gap = seconds(times[i] - times[i - 1]);
    sum += gap;
    squares += gap * gap;
  }
  const double mean = sum / (n - 1);
  const double deviation = std::sqrt(squares / (n - 1) - mean * mean);
  // The mean of n exponential gaps has a deviation of mean / sqrt(n); five of them leave no flake.
  EXPECT_NEAR(mean, 0.02, 0.02 * 5 / std::sqrt(n));
  EXPECT_NEAR(deviation / mean, 1, 0.1);
}

TEST(ArrivalsTest, AllComeAtOnceAtAnInfiniteRate) {
  Rng rng(5);
  EXPECT_THAT(arrival_times(3, std::numeric_limits<double>::infinity(), rng), Each(Duration::zero()));
}

}  // namespace
}  // namespace sluice::bench
