#include "engine/rank_loop.h"

#include <gtest/gtest.h>
#include <unistd.h>
#include <zmq.h>

#include <thread>

#include "engine/codec.h"
#include "engine/rank.h"

namespace sluice::engine {
namespace {

// Always predicts the token after the last one.
class CountingRunner final : public models::Runner {
 public:
  CountingRunner() { info_.vocab_size = 16; }
  const models::ModelInfo& info() const override { return info_; }
  Result<void> allocate_kv(const models::KvPlan&) override { return {}; }
  std::span<int32_t> slot_table() override { return table_; }
  Result<std::span<const float>> forward(const models::StepBatch& b) override {
    logits_.assign(b.logit_rows.size() * 16, 0);
    for (size_t i = 0; i < b.logit_rows.size(); ++i) {
      const int32_t token = b.token_ids[static_cast<size_t>(b.logit_rows[i])];
      if (token == 13) return Error{ErrorCode::kInternal, "the device is on fire"};
      logits_[i * 16 + static_cast<size_t>((token + 1) % 16)] = 1;
    }
    return std::span<const float>(logits_);
  }

 private:
  models::ModelInfo info_;
  std::vector<int32_t> table_ = std::vector<int32_t>(2 * 100, 0);
  std::vector<float> logits_;
};

// The front's side of the link, and a rank on a thread.
class RankLoopTest : public ::testing::Test {
 protected:
  void SetUp() override {
    static int instance = 0;
    const std::string base = fmt::format("ipc://@sluice-test-{}-{}", getpid(), instance++);
    ASSERT_EQ(zmq_bind(push_, (base + "-in").c_str()), 0);
    ASSERT_EQ(zmq_bind(pull_, (base + "-out").c_str()), 0);
    const int timeout = 20'000;
    zmq_setsockopt(pull_, ZMQ_RCVTIMEO, &timeout, sizeof(timeout));
    auto link = RankLink::connect(base + "-in", base + "-out", /*process=*/1, /*incarnation=*/7);
    ASSERT_TRUE(link.ok()) << link.error().message;
    rank_ = std::thread([this, link = std::move(*link)]() mutable {
      Scheduler scheduler(
          {.kv_slots = 100, .max_running_requests = 2, .context_length = 100}, runner_,
          [](int32_t) { return std::string_view("x"); }, real_clock());
      result_ = run_rank_loop({.dp_rank = 1}, link, scheduler, board_);
    });
  }
  void TearDown() override {
    if (rank_.joinable()) {
      send(ControlRequest{.id = 1000, .kind = ControlKind::kShutdown});
      rank_.join();
    }
    zmq_close(push_);
    zmq_close(pull_);
    zmq_ctx_term(context_);
  }
  void send_bytes(const std::string& frame) { ASSERT_GE(zmq_send(push_, frame.data(), frame.size(), 0), 0); }
  void send(const ToRank& message) { send_bytes(encode(message)); }
  template <class T>
  T next() {
    std::string frame(1 << 16, '\0');
    const int n = zmq_recv(pull_, frame.data(), frame.size(), 0);
    EXPECT_GE(n, 0) << "no answer";
    auto decoded = decode_from_rank(std::string_view(frame).substr(0, n < 0 ? 0 : static_cast<size_t>(n)));
    EXPECT_TRUE(decoded.ok());
    if (!decoded.ok() || !std::holds_alternative<T>(decoded->message)) {
      ADD_FAILURE() << "another kind of answer";
      return {};
    }
    EXPECT_EQ(decoded->process, 1);
    EXPECT_EQ(decoded->incarnation, 7u);
    return std::get<T>(decoded->message);
  }
  static GenerateRequest request(std::string rid, int32_t token, int64_t max_new) {
    GenerateRequest r{.rid = std::move(rid), .input_ids = {token}, .stream_interval = 100};
    r.sampling.temperature = 0;
    r.sampling.max_new_tokens = max_new;
    return r;
  }

  void* context_ = zmq_ctx_new();
  void* push_ = zmq_socket(context_, ZMQ_PUSH);
  void* pull_ = zmq_socket(context_, ZMQ_PULL);
  CountingRunner runner_;
  LoadBoard board_ = *LoadBoard::create(2);
  Result<void> result_;
  std::thread rank_;
};

TEST_F(RankLoopTest, AnswersARequestAndPublishesItsLoad) {
  auto r = request("a", 3, 4);
  r.dispatch_seq = 55;
  send(r);
  std::vector<int32_t> ids;
  for (bool finished = false; !finished;) {
    const auto batch = next<OutputBatch>();
    ASSERT_FALSE(batch.outputs.empty());
    for (const auto& out : batch.outputs) {
      ids.insert(ids.end(), out.new_ids.begin(), out.new_ids.end());
      finished |= out.finish.kind == FinishKind::kLength;
    }
  }
  EXPECT_EQ(ids, (std::vector<int32_t>{4, 5, 6, 7}));
  send(ControlRequest{.id = 9});
  const auto reply = next<ControlReply>();
  EXPECT_EQ(reply.id, 9u);
  EXPECT_TRUE(reply.ok);
  // The step's row was written before the rank came to the control message.
  EXPECT_EQ(board_.read(1)->last_dispatch_seq, 55u);
  EXPECT_EQ(board_.read(1)->generation_tokens_total, 4u);
  EXPECT_FALSE(board_.read(0));
}

TEST_F(RankLoopTest, AMalformedFrameIsDroppedAndTheRankServesOn) {
  send_bytes("not a frame");
  send_bytes("");
  send_bytes(encode(ToRank(request("cut", 1, 1))).substr(0, 20));
  send(request("a", 3, 1));
  EXPECT_EQ(next<OutputBatch>().outputs.at(0).rid, "a");
}

TEST_F(RankLoopTest, AFaultOfTheModelEndsTheLoopWithItsCause) {
  send(request("a", 13, 4));
  rank_.join();
  ASSERT_FALSE(result_.ok());
  EXPECT_EQ(result_.error().message, "the device is on fire");
}

TEST(RankSpecTest, JsonCarriesEverythingButTheSecrets) {
  RankSpec spec{.dp_rank = 3,
                .incarnation = 2,
                .model_file = "/m",
                .tokenizer_file = "/t",
                .input_endpoint = "ipc://a",
                .output_endpoint = "ipc://b"};
  spec.options = *engine_option_table().parse({"--model", "m", "--api-key", "secret", "--dp-size", "4"});
  const std::string json = rank_spec_to_json(spec);
  EXPECT_EQ(json.find("secret"), std::string::npos);
  auto back = rank_spec_from_json(json);
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->dp_rank, 3);
  EXPECT_EQ(back->incarnation, 2u);
  EXPECT_EQ(back->model_file, "/m");
  EXPECT_EQ(back->tokenizer_file, "/t");
  EXPECT_EQ(back->input_endpoint, "ipc://a");
  EXPECT_EQ(back->output_endpoint, "ipc://b");
  EXPECT_EQ(back->options.dp_size, 4);
  EXPECT_FALSE(rank_spec_from_json("{}").ok());
  EXPECT_FALSE(rank_spec_from_json("{").ok());
}

}  // namespace
}  // namespace sluice::engine
