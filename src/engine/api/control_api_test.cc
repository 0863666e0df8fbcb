#include "engine/api/control_api.h"

#include <gmock/gmock.h>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

class ControlApiTest : public ApiTest {};

TEST_F(ControlApiTest, HealthAsksEveryRankAndTakesTheFirstAnswer) {
  options_.dp_size = 2;
  serve();
  // Rank 0 hangs.
  backend_->set_script([](const GenerateRequest& request) {
    if (!request.rid.ends_with("_1")) return std::vector<Word>();
    return std::vector<Word>{{.ids = {5}, .finish = {.kind = FinishKind::kLength}}};
  });
  for (const auto* path : {"/health", "/health_generate"}) {
    const auto answer = call("GET", path);
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.body, "");
  }
  const auto sent = backend_->submitted().at(0).first;
  EXPECT_TRUE(sent.rid.starts_with("HEALTH_CHECK"));
  EXPECT_TRUE(sent.is_health_check);
  EXPECT_EQ(sent.sampling.max_new_tokens, 1);
  EXPECT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running().empty(); }));
}

TEST_F(ControlApiTest, HealthIs503WithoutAnyRank) {
  serve();
  backend_->set_ranks([](auto& ranks) { ranks[0].ready = false; });
  EXPECT_EQ(call("GET", "/health").status, 503);
  EXPECT_EQ(call("GET", "/server_info").json()["status"], "UnHealthy");
}

TEST_F(ControlApiTest, HealthIs503WhenEveryRankFails) {
  serve();
  backend_->set_script([](const GenerateRequest&) {
    return std::vector<Word>{{.ids = {}, .finish = {.kind = FinishKind::kAbort, .message = "x", .status_code = 503}}};
  });
  EXPECT_EQ(call("GET", "/health").status, 503);
}

TEST_F(ControlApiTest, ARankThatSaysNothingHasSoLongAsTheVariableSays) {
  ::setenv("SGLANG_HEALTH_CHECK_TIMEOUT", "0.1", 1);
  serve();
  ::unsetenv("SGLANG_HEALTH_CHECK_TIMEOUT");
  // Its default is longer than a test has.
  EXPECT_EQ(call("GET", "/health").status, 503);
  EXPECT_EQ(call("GET", "/server_info").json()["status"], "UnHealthy");
  EXPECT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running().empty(); })) << "it was aborted";
}

TEST_F(ControlApiTest, HealthAsksNoRankWhereTheVariableSaysSo) {
  ::setenv("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "0", 1);
  serve();
  ::unsetenv("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION");
  EXPECT_EQ(call("GET", "/health").status, 200);
  EXPECT_TRUE(backend_->submitted().empty());
  api_->set_status(ServerStatus::kDraining);
  EXPECT_EQ(call("GET", "/health").status, 503);
  api_->set_status(ServerStatus::kUp);
  answer_with("x");
  EXPECT_EQ(call("GET", "/health_generate").status, 200);
  EXPECT_EQ(backend_->submitted().size(), 1u) << "which always asks";
}

TEST_F(ControlApiTest, HealthIs503UnlessUp) {
  serve();
  answer_with("x");
  for (const auto status : {ServerStatus::kStarting, ServerStatus::kDraining}) {
    api_->set_status(status);
    EXPECT_EQ(call("GET", "/health").status, 503);
  }
  api_->set_status(ServerStatus::kUp);
  EXPECT_EQ(call("GET", "/health").status, 200);
  EXPECT_EQ(call("GET", "/ping").status, 200);
}

TEST_F(ControlApiTest, FlushSaysWhatIsInTheWay) {
  serve();
  EXPECT_EQ(call("POST", "/flush_cache").status, 200);
  EXPECT_EQ(call("GET", "/flush_cache").body, "Cache flushed.\n");
  backend_->control_results[ControlKind::kFlushCache] = Error{ErrorCode::kUnavailable, "1 requests run"};
  const auto busy = call("POST", "/flush_cache");
  EXPECT_EQ(busy.status, 400);
  EXPECT_THAT(busy.body, HasSubstr("1 requests run"));
  backend_->control_results[ControlKind::kFlushCache] = Error{ErrorCode::kTimeout, "rank 0 did not answer"};
  EXPECT_EQ(call("POST", "/flush_cache").status, 500);
}

TEST_F(ControlApiTest, AbortTakesTheRidAndItsBatchAndNothingElse) {
  serve();
  std::vector<std::unique_ptr<Client>> clients;
  for (const auto* rid : {"R", "R_1", "R_10", "R_x", "S"}) {
    clients.push_back(std::make_unique<Client>(port_));
    clients.back()->send("POST", "/generate", Json{{"text", "a"}, {"rid", rid}}.dump());
  }
  ASSERT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running().size() == 5; }));
  const auto answer = post("/abort_request", {{"rid", "R_1"}});
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body, "");
  EXPECT_THAT(backend_->aborted(), ::testing::ElementsAre("R_1"));
  EXPECT_EQ(post("/abort_request", {{"rid", "unknown"}}).status, 200);
  EXPECT_EQ(post("/abort_request", {{"rid", "R"}}).status, 200);
  EXPECT_THAT(backend_->running(), ::testing::UnorderedElementsAre("R_x", "S"));
  EXPECT_EQ(post("/abort_request", {{"abort_all", true}}).status, 200);
  EXPECT_TRUE(backend_->running().empty());
  for (auto& client : clients) EXPECT_EQ(client->answer().status, 200);
  EXPECT_EQ(post("/abort_request", {{"rid", 5}}).status, 400);
}

TEST_F(ControlApiTest, AbortTakesAListOfRids) {
  serve();
  std::vector<std::unique_ptr<Client>> clients;
  for (const auto* rid : {"A", "B", "B_0", "C", "_1"}) {
    clients.push_back(std::make_unique<Client>(port_));
    clients.back()->send("POST", "/generate", Json{{"text", "a"}, {"rid", rid}}.dump());
  }
  ASSERT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running().size() == 5; }));
  EXPECT_EQ(post("/abort_request", {{"rid", Json::array({"A", "", "unknown", "B", "B"})}}).status, 200);
  EXPECT_THAT(backend_->aborted(), ::testing::UnorderedElementsAre("A", "B", "B_0"));
  EXPECT_EQ(post("/abort_request", {{"rid", Json::array()}}).status, 200);
  EXPECT_EQ(post("/abort_request", {{"rid", ""}}).status, 200);
  EXPECT_THAT(backend_->running(), ::testing::UnorderedElementsAre("C", "_1"));
  const auto odd = post("/abort_request", {{"rid", Json::array({"C", 5})}, {"abort_all", true}});
  EXPECT_EQ(odd.status, 400);
  EXPECT_THAT(odd.body, HasSubstr("rid"));
  EXPECT_THAT(backend_->running(), ::testing::UnorderedElementsAre("C", "_1")) << "nothing of a wrong body is done";
  EXPECT_EQ(post("/abort_request", {{"abort_all", true}}).status, 200);
  for (auto& client : clients) EXPECT_EQ(client->answer().status, 200);
}

}  // namespace
}  // namespace sluice::engine
