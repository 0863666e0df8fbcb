// Routes that ask every worker, and those whose answer is rebuilt or refused, over real sockets.
#include "gateway/gateway_fixture.h"
#include "gateway/scripted_worker_fixture.h"

namespace sluice::gateway {
namespace {

using ::testing::HasSubstr;

class RoutesTest : public GatewayFixture {
 protected:
  using Received = ScriptedWorker::Received;

  template <class F>
  ScriptedWorker& scripted(F answer) {
    scripted_.push_back(std::make_unique<ScriptedWorker>(loops_, ScriptedWorker::Answer(std::move(answer))));
    return *scripted_.back();
  }
  void start_all(const std::vector<std::string>& flags = {}) {
    start(flags);
    for (const auto& one : scripted_) gateway_->worker_started(one->url());
  }

  std::vector<std::unique_ptr<ScriptedWorker>> scripted_;
};

// --- rerank --------------------------------------------------------------------------------------------------------

TEST_F(RoutesTest, RerankIsRebuiltOnBothPaths) {
  const auto rank = [](const Received&) {
    return net::Response::json(200,
                               R"([{"score":0.9,"document":"b","index":1},{"score":0.1,"document":"a","index":0}])");
  };
  ScriptedWorker& one = scripted(rank);
  start_all();
  const std::string body = R"({"model":"m", "query":"q","documents":["a","b"],"top_n":1,"return_documents":false})";
  for (const char* path : {"/v1/rerank", "/rerank"}) {
    ++sent_;
    const auto answer = call("POST", std::string(path) + "?x=1", body, {{"Accept-Encoding", "gzip"}});
    ASSERT_EQ(answer->status, 200) << answer->body;
    const auto document = Json::parse(answer->body);
    EXPECT_EQ(document["results"], Json::parse(R"([{"score":0.9,"index":1}])"));
    EXPECT_EQ(document["model"], "m");
    EXPECT_EQ(document["object"], "rerank");
    EXPECT_EQ(document["id"], answer->headers.get("x-request-id").value());
    EXPECT_EQ(document["created"], clock_.unix_nanos() / 1'000'000'000);
    const auto got = one.received().back();
    EXPECT_EQ(got.target, "/v1/rerank?x=1");
    EXPECT_EQ(got.body, body);
    EXPECT_FALSE(got.headers.has("accept-encoding")) << "its answer is read by the gateway";
  }
  EXPECT_EQ(metric("smg_router_requests_total", {"endpoint=\"rerank\""}), 2);
  expect_settled();
}

TEST_F(RoutesTest, RerankErrorsAreSaid) {
  const auto nonsense = [](const Received& received) {
    return received.body.find("bad") == std::string::npos ? net::Response::json(200, "{}")
                                                          : net::Response::json(422, R"({"error":"theirs"})");
  };
  scripted(nonsense);
  start_all();
  EXPECT_EQ(code_of(call("POST", "/rerank", R"({"query":"q"})")), "rerank_response_build_failed");
  const auto theirs = call("POST", "/rerank", R"({"query":"bad"})");
  EXPECT_EQ(theirs->status, 422);
  EXPECT_EQ(theirs->body, R"({"error":"theirs"})");
  const auto wrong = call("POST", "/rerank", R"({"query":"q","top_k":0})");
  EXPECT_EQ(wrong->status, 400);
  EXPECT_THAT(wrong->body, HasSubstr("top_k must be an integer of at least 1"));
}

}  // namespace
}  // namespace sluice::gateway
