#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class AdminApiTest : public ApiTest {
 protected:
  // What the ranks were told, in order.
  std::vector<ControlKind> told() const {
    std::vector<ControlKind> out;
    for (const auto& [kind, text] : backend_->controls()) out.push_back(kind);
    return out;
  }
};

TEST_F(AdminApiTest, PausesInThreeModes) {
  serve();
  EXPECT_EQ(call("POST", "/pause_generation").json(),
            (Json{{"message", "Generation paused successfully."}, {"status", "ok"}}));
  EXPECT_EQ(post("/pause_generation", {{"mode", "retract"}}).status, 200);
  EXPECT_EQ(post("/pause_generation", {{"mode", "in_place"}}).status, 200);
  EXPECT_EQ(call("POST", "/continue_generation").json()["status"], "ok");
  EXPECT_THAT(told(), ElementsAre(ControlKind::kPauseAbort, ControlKind::kPauseRetract, ControlKind::kPauseInPlace,
                                  ControlKind::kContinue));
  const auto wrong = post("/pause_generation", {{"mode", "softly"}});
  EXPECT_EQ(wrong.status, 400);
  EXPECT_THAT(wrong.body, HasSubstr("in_place"));
}

TEST_F(AdminApiTest, ARankThatDoesNotPauseIsNamed) {
  serve();
  backend_->control_results[ControlKind::kPauseAbort] = Error{ErrorCode::kTimeout, "no answer from rank 1"};
  const auto answer = call("POST", "/pause_generation");
  EXPECT_EQ(answer.status, 408);
  EXPECT_THAT(answer.body, HasSubstr("no answer from rank 1"));
}

TEST_F(AdminApiTest, AProfilesFilesAreWhereTheClientWantsThem) {
  serve();
  const auto started = post("/start_profile", {{"output_dir", "/var/tmp"},
                                               {"profile_prefix", "p"},
                                               {"profile_id", "7"},
                                               {"num_steps", 5},
                                               {"activities", {"CPU", "GPU"}}});
  EXPECT_EQ(started.status, 200);
  EXPECT_THAT(started.body, HasSubstr("/var/tmp/p-7-DP-<rank>.trace.json"));
  ASSERT_EQ(backend_->controls().size(), 1u);
  EXPECT_EQ(Json::parse(backend_->controls()[0].second), (Json{{"num_steps", 5}, {"path_prefix", "/var/tmp/p-7"}}));
  EXPECT_EQ(call("GET", "/stop_profile").status, 200);

  backend_->control_results[ControlKind::kStopProfile] = Error{ErrorCode::kUnavailable, "rank 0: no profile"};
  EXPECT_EQ(call("POST", "/stop_profile").status, 400);
  EXPECT_EQ(post("/start_profile", {{"profile_id", "../../etc/x"}}).status, 400);
  EXPECT_EQ(post("/start_profile", {{"num_steps", 0}}).status, 400);
}

TEST_F(AdminApiTest, AProfilesFilesAreWhereTheVariableSaysUnlessTheClientDoes) {
  serve();
  ::setenv("SGLANG_TORCH_PROFILER_DIR", "/var/profiles", 1);
  EXPECT_THAT(post("/start_profile", {{"profile_id", "7"}}).body, HasSubstr("/var/profiles/7-DP-<rank>.trace.json"));
  EXPECT_THAT(post("/start_profile", {{"profile_id", "7"}, {"output_dir", "/var/tmp"}}).body,
              HasSubstr("/var/tmp/7-DP-<rank>.trace.json"));
  ::unsetenv("SGLANG_TORCH_PROFILER_DIR");
  EXPECT_THAT(post("/start_profile", {{"profile_id", "7"}}).body, HasSubstr("/tmp/7-DP-<rank>.trace.json"));
}

TEST_F(AdminApiTest, OtherWeightsAreLoadedInAPauseAndTheCachesEmptied) {
  serve();
  const std::string folder = std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama";
  const auto answer = post("/update_weights_from_disk", {{"model_path", folder}, {"weight_version", "v2"}});
  EXPECT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(answer.json()["success"], true);
  EXPECT_THAT(told(), ElementsAre(ControlKind::kPauseRetract, ControlKind::kFlushCache, ControlKind::kLoadWeights,
                                  ControlKind::kContinue));
  EXPECT_EQ(backend_->controls()[2].second, folder);
  const auto info = call("GET", "/model_info").json();
  EXPECT_EQ(info["model_path"], folder);
  EXPECT_EQ(info["weight_version"], "v2");
  answer_with("yes");
  EXPECT_EQ(post("/generate", {{"text", "a"}}).json()["meta_info"]["weight_version"], "v2");
}

TEST_F(AdminApiTest, APauseOfTheClientOutlastsTheUpdate) {
  serve();
  const std::string folder = std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama";
  ASSERT_EQ(post("/pause_generation", {{"mode", "in_place"}}).status, 200);
  EXPECT_EQ(post("/update_weights_from_disk", {{"model_path", folder}, {"flush_cache", false}}).status, 200);
  EXPECT_THAT(told(), ElementsAre(ControlKind::kPauseInPlace, ControlKind::kLoadWeights));
}

TEST_F(AdminApiTest, WeightsThatDoNotFitLeaveEverythingAsItWas) {
  serve();
  backend_->control_results[ControlKind::kLoadWeights] = Error{ErrorCode::kRefused, "rank 0: another model"};
  const auto answer =
      post("/update_weights_from_disk", {{"model_path", std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama"}});
  EXPECT_EQ(answer.status, 400);
  EXPECT_EQ(answer.json()["success"], false);
  EXPECT_EQ(answer.json()["message"], "rank 0: another model");
  EXPECT_THAT(told(), ElementsAre(ControlKind::kPauseRetract, ControlKind::kFlushCache, ControlKind::kLoadWeights,
                                  ControlKind::kContinue));
  EXPECT_EQ(call("GET", "/model_info").json()["model_path"], "tiny");

  EXPECT_EQ(post("/update_weights_from_disk", {{"model_path", "/no/such/folder"}}).status, 400);
  EXPECT_EQ(post("/update_weights_from_disk", Json::object()).status, 400);
  EXPECT_EQ(told().size(), 4u) << "the ranks were not troubled";
}

TEST_F(AdminApiTest, RanksThatMayHaveDifferentWeightsStayPaused) {
  serve();
  backend_->control_results[ControlKind::kLoadWeights] = Error{ErrorCode::kUnavailable, "rank 1: no such file"};
  const std::string folder = std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama";
  const auto answer = post("/update_weights_from_disk", {{"model_path", folder}, {"flush_cache", false}});
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.json()["message"], HasSubstr("rank 1: no such file; and the old weights cannot be loaded again"));
  EXPECT_THAT(told(), ElementsAre(ControlKind::kPauseRetract, ControlKind::kLoadWeights)) << "nothing goes on";
  EXPECT_EQ(call("GET", "/model_info").json()["model_path"], "tiny");
  backend_->control_results.clear();
  EXPECT_EQ(post("/update_weights_from_disk", {{"model_path", folder}, {"flush_cache", false}}).status, 200);
  EXPECT_EQ(call("POST", "/continue_generation").status, 200);
  EXPECT_EQ(told().back(), ControlKind::kContinue);
}

TEST_F(AdminApiTest, WhereSomeRanksHaveLoadedTheOldWeightsAreLoadedAgain) {
  serve();
  const std::string first = std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama";
  const std::string second = std::string(SLUICE_FIXTURES_DIR) + "/tiny-qwen2";
  ASSERT_EQ(post("/update_weights_from_disk", {{"model_path", first}, {"flush_cache", false}}).status, 200);
  backend_->fails_once[ControlKind::kLoadWeights] = Error{ErrorCode::kUnavailable, "rank 1: no such file"};
  const auto answer = post("/update_weights_from_disk", {{"model_path", second}, {"flush_cache", false}});
  EXPECT_EQ(answer.status, 400);
  EXPECT_EQ(answer.json()["message"], "rank 1: no such file");
  ASSERT_EQ(backend_->controls().size(), 7u);
  EXPECT_EQ(backend_->controls()[4].second, second);
  EXPECT_EQ(backend_->controls()[5].second, first);
  EXPECT_EQ(told().back(), ControlKind::kContinue);
}

TEST_F(AdminApiTest, CachesThatCannotBeEmptiedForbidOtherWeights) {
  serve();
  backend_->control_results[ControlKind::kFlushCache] = Error{ErrorCode::kUnavailable, "rank 0: 1 requests run"};
  const std::string folder = std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama";
  const auto answer = post("/update_weights_from_disk", {{"model_path", folder}, {"weight_version", "v2"}});
  EXPECT_EQ(answer.status, 400);
  EXPECT_EQ(answer.json()["message"], "rank 0: 1 requests run");
  EXPECT_THAT(told(), ElementsAre(ControlKind::kPauseRetract, ControlKind::kFlushCache, ControlKind::kContinue))
      << "no weights were loaded";
  EXPECT_EQ(call("GET", "/model_info").json()["weight_version"], "default");
}

TEST_F(AdminApiTest, WeightsThatAreLoadedAreNamedWhateverFollows) {
  serve();
  backend_->control_results[ControlKind::kContinue] = Error{ErrorCode::kTimeout, "no answer from rank 1"};
  const std::string folder = std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama";
  const auto answer = post("/update_weights_from_disk", {{"model_path", folder}, {"weight_version", "v2"}});
  EXPECT_EQ(answer.json()["success"], false);
  const auto info = call("GET", "/model_info").json();
  EXPECT_EQ(info["model_path"], folder);
  EXPECT_EQ(info["weight_version"], "v2");
}

TEST_F(AdminApiTest, APauseThatFailedIsNone) {
  serve();
  backend_->control_results[ControlKind::kPauseInPlace] = Error{ErrorCode::kTimeout, "no answer from rank 1"};
  EXPECT_EQ(post("/pause_generation", {{"mode", "in_place"}}).status, 408);
  EXPECT_THAT(told(), ElementsAre(ControlKind::kPauseInPlace, ControlKind::kContinue)) << "the ranks that did pause";
  const std::string folder = std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama";
  EXPECT_EQ(post("/update_weights_from_disk", {{"model_path", folder}, {"flush_cache", false}}).status, 200);
  auto kinds = told();
  kinds.erase(kinds.begin(), kinds.begin() + 2);
  EXPECT_THAT(kinds, ElementsAre(ControlKind::kPauseRetract, ControlKind::kLoadWeights, ControlKind::kContinue));
}

TEST_F(AdminApiTest, ARankThatDoesNotGoOnIsStillPaused) {
  serve();
  ASSERT_EQ(post("/pause_generation", {{"mode", "in_place"}}).status, 200);
  backend_->control_results[ControlKind::kContinue] = Error{ErrorCode::kTimeout, "no answer from rank 1"};
  EXPECT_EQ(call("POST", "/continue_generation").status, 408);
  backend_->control_results.clear();
  const std::string folder = std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama";
  EXPECT_EQ(post("/update_weights_from_disk", {{"model_path", folder}, {"flush_cache", false}}).status, 200);
  EXPECT_THAT(told(), ElementsAre(ControlKind::kPauseInPlace, ControlKind::kContinue, ControlKind::kLoadWeights));
}

TEST_F(AdminApiTest, APauseDuringTheUpdateOutlastsIt) {
  serve();
  backend_->hold(ControlKind::kLoadWeights);
  const std::string folder = std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama";
  Client update(port_);
  update.send("POST", "/update_weights_from_disk", Json{{"model_path", folder}, {"flush_cache", false}}.dump());
  ASSERT_TRUE(backend_->wait_for([](const auto& b) { return b.controls().size() == 2; }));
  EXPECT_EQ(post("/pause_generation", {{"mode", "in_place"}}).status, 200);
  backend_->let_go();
  EXPECT_EQ(update.answer().status, 200);
  EXPECT_THAT(told(), ElementsAre(ControlKind::kPauseRetract, ControlKind::kLoadWeights, ControlKind::kPauseInPlace));
}

TEST_F(AdminApiTest, TheWeightVersionCanBeSetByItself) {
  serve();
  EXPECT_EQ(post("/update_weight_version", {{"new_version", "step-12"}}).json()["success"], true);
  EXPECT_EQ(call("GET", "/model_info").json()["weight_version"], "step-12");
  EXPECT_EQ(call("GET", "/server_info").json()["weight_version"], "step-12");
  EXPECT_EQ(post("/update_weight_version", Json::object()).status, 400);
}

TEST_F(AdminApiTest, NoOptionIsSetWhileItServes) {
  options_.dp_size = 2;
  serve();
  EXPECT_EQ(post("/set_internal_state", {{"server_args", {{"pp_max_micro_batch_size", 8}}}}).body, "[false,false]");
  EXPECT_EQ(call("PUT", "/set_internal_state", R"({"server_args":{}})").body, "[true,true]");
  EXPECT_EQ(post("/set_internal_state", {{"server_args", 3}}).status, 400);
}

}  // namespace
}  // namespace sluice::engine
