#include "engine/rank_loop.h"
#include "base/pulse.h"

#include <gtest/gtest.h>
#include <unistd.h>
#include <zmq.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/pulse.h"
#include "engine/codec.h"
#include "engine/rank.h"
#include "engine/step_device.h"
#include "engine/step_trace.h"
#include "parallel/groups.h"
#include "parallel/inproc.h"

namespace sluice::engine {
namespace {

// Always predicts the token after the last one.
class CountingRunner final : public models::Runner {
 public:
  explicit CountingRunner(int64_t labels = 0) {
    info_.vocab_size = 16;
    info_.num_labels = labels;
  }
  std::vector<float> hidden(int64_t row) const override { return {3, static_cast<float>(4 * row + 4)}; }
  Result<void> reload(const std::string&, const Progress&) override { return {}; }
  const models::ModelInfo& info() const override { return info_; }
  Result<void> allocate_kv(const models::KvPlan&) override { return {}; }
  std::span<int32_t> slot_table() override { return table_; }
  void ask_between_layers(std::function<bool()> goes_on) override { goes_on_ = std::move(goes_on); }
  Result<std::span<const float>> forward(const models::StepBatch& b) override {
    // With token 14 a step has layers without end.
    for (const TimePoint end = real_clock().now() + std::chrono::seconds(20); b.token_ids[0] == 14;) {
      if (!goes_on_()) return Error{ErrorCode::kCancelled, "ended"};
      EXPECT_LT(real_clock().now(), end) << "nobody ended it";
      if (real_clock().now() >= end) break;
      std::this_thread::yield();
    }
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
  std::function<bool()> goes_on_;
  std::vector<int32_t> table_ = std::vector<int32_t>(2 * 100, 0);
  std::vector<float> logits_;
};

// Allows odd tokens only, three of them.
class OddGrammar final : public Grammar {
  class State final : public GrammarState {
    bool allowed(std::span<uint32_t> mask) override {
      mask[0] = 0xaaaa;
      return true;
    }
    bool accept(int32_t token) override {
      ++taken_;
      return token % 2 == 1;
    }
    bool finished() const override { return taken_ == 3; }
    int taken_ = 0;
  };
  std::unique_ptr<GrammarState> start() const override { return std::make_unique<State>(); }
  size_t bytes() const override { return 1; }
};

// The front's side of the link, and a rank on a thread; with steps on a thread of their own, or without.
class RankLoopTest : public ::testing::TestWithParam<bool> {
 protected:
  explicit RankLoopTest(int64_t labels = 0) : runner_(labels) {}
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
      std::optional<ThreadDevice> device;
      if (GetParam()) device.emplace();
      Scheduler scheduler(
          {.kv_slots = 100, .max_running_requests = 2, .prefill_max_requests = 1, .context_length = 100}, runner_,
          [](int32_t) { return std::string_view("x"); }, real_clock(), device ? &*device : nullptr);
      GrammarDesk desk(compile_);
      result_ = run_rank_loop({.dp_rank = 1,
                               .ends_early = device ? nullptr : &runner_,
                               .load_weights = load_weights_,
                               .record_experts = [](std::string_view command) -> Result<std::string> {
                                 // A record is written to a file, which may take its time.
                                 EXPECT_EQ(Pulse::own().where().phase, Pulse::Phase::kOutside);
                                 if (command == "dump") return std::string("a record");
                                 return Error{ErrorCode::kUnimplemented, "this model has no experts"};
                               },
                               .grammars = &desk},
                              link, scheduler, &board_);
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

  GrammarDesk::Compile compile_ = [](GrammarKind, const std::string& text) -> GrammarDesk::Compiled {
    if (text != "odd") return Error{ErrorCode::kInvalidArgument, "is even"};
    return std::shared_ptr<const Grammar>(std::make_shared<OddGrammar>());
  };
  std::function<Result<void>(const std::string&)> load_weights_ = [](const std::string& path) -> Result<void> {
    if (path == "bad") return Error{ErrorCode::kInvalidArgument, "bad weights"};
    if (path == "ruin") return Error{ErrorCode::kInternal, "half of them are new"};
    return {};
  };
  // Sends it, and returns what the rank says.
  // The rank's row once it says so, which is a moment after its answers; after 20 s as it is.
  template <class Condition>
  LoadSnapshot board_once(Condition condition) {
    const TimePoint end = real_clock().now() + std::chrono::seconds(20);
    for (;;) {
      const auto load = board_.read(1);
      if (load && (condition(*load) || real_clock().now() > end)) return *load;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  ControlReply control(ControlKind kind, std::string text = "") {
    send(ControlRequest{.id = 5, .kind = kind, .text = std::move(text)});
    return next<ControlReply>();
  }
  // The outputs of a request up to its end.
  RequestOutput outcome(const std::string& rid) {
    RequestOutput all;
    for (;;) {
      for (const auto& out : next<OutputBatch>().outputs) {
        if (out.rid != rid) continue;
        all.new_ids.insert(all.new_ids.end(), out.new_ids.begin(), out.new_ids.end());
        if (out.finish.kind == FinishKind::kNone) continue;
        all.finish = out.finish;
        all.embedding = out.embedding;
        all.retractions = out.retractions;
        return all;
      }
    }
  }

  // Likewise of several, in whatever messages.
  std::map<std::string, RequestOutput> outcomes(size_t count) {
    std::map<std::string, RequestOutput> ended;
    while (ended.size() < count) {
      auto batch = next<OutputBatch>();
      if (batch.outputs.empty()) break;  // nothing came
      for (auto& out : batch.outputs) {
        if (out.finish.kind != FinishKind::kNone) ended.emplace(out.rid, std::move(out));
      }
    }
    return ended;
  }

  void* context_ = zmq_ctx_new();
  void* push_ = zmq_socket(context_, ZMQ_PUSH);
  void* pull_ = zmq_socket(context_, ZMQ_PULL);
  CountingRunner runner_;
  LoadBoard board_ = *LoadBoard::create(2);
  Result<void> result_;
  std::thread rank_;
};

std::string steps_name(const ::testing::TestParamInfo<bool>& info) { return info.param ? "Overlapping" : "OneByOne"; }
INSTANTIATE_TEST_SUITE_P(Steps, RankLoopTest, ::testing::Bool(), steps_name);

TEST_P(RankLoopTest, AnswersARequestAndPublishesItsLoad) {
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
  const LoadSnapshot load = board_once([](const LoadSnapshot& row) { return row.generation_tokens_total == 4; });
  EXPECT_EQ(load.last_dispatch_seq, 55u);
  EXPECT_EQ(load.generation_tokens_total, 4u);
  EXPECT_FALSE(board_.read(0));
}

TEST_P(RankLoopTest, AMalformedFrameIsDroppedAndTheRankServesOn) {
  send_bytes("not a frame");
  send_bytes("");
  send_bytes(encode(ToRank(request("cut", 1, 1))).substr(0, 20));
  send(request("a", 3, 1));
  EXPECT_EQ(next<OutputBatch>().outputs.at(0).rid, "a");
}

TEST_P(RankLoopTest, AFaultOfTheModelEndsTheLoopWithItsCause) {
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

TEST_P(RankLoopTest, HoldsARequestToItsGrammar) {
  auto r = request("a", 3, 10);
  r.sampling.grammar_kind = GrammarKind::kRegex;
  r.sampling.grammar = "odd";
  send(r);
  const auto out = outcome("a");
  // 4 would follow; of the odd ones the first is as good as any other.
  EXPECT_EQ(out.new_ids, (std::vector<int32_t>{1, 1, 1}));
  EXPECT_EQ(out.finish.kind, FinishKind::kStopToken);
}

TEST_P(RankLoopTest, AGrammarThatDoesNotCompileIs400NamingItsField) {
  auto r = request("a", 3, 10);
  r.sampling.grammar_kind = GrammarKind::kRegex;
  r.sampling.grammar = "even";
  r.sampling.grammar_field = "sampling_params.regex";
  send(r);
  const auto out = outcome("a");
  EXPECT_EQ(out.finish.status_code, 400);
  EXPECT_EQ(out.finish.message, "sampling_params.regex: is even");
}

TEST_P(RankLoopTest, AnEmbeddingHasUnitLengthAndNoToken) {
  auto r = request("a", 3, 0);
  r.embed = true;
  send(r);
  const auto out = outcome("a");
  EXPECT_TRUE(out.new_ids.empty());
  ASSERT_EQ(out.embedding.size(), 2u);
  EXPECT_FLOAT_EQ(out.embedding[0], 0.6f);
  EXPECT_FLOAT_EQ(out.embedding[1], 0.8f);
}

class ClassifierRankTest : public RankLoopTest {
 protected:
  ClassifierRankTest() : RankLoopTest(/*labels=*/2) {}
};

INSTANTIATE_TEST_SUITE_P(Steps, ClassifierRankTest, ::testing::Bool(), steps_name);

TEST_P(ClassifierRankTest, ScoresOfLabelsAreLeftAsTheyAre) {
  auto r = request("a", 3, 0);
  r.embed = true;
  send(r);
  EXPECT_EQ(outcome("a").embedding, (std::vector<float>{3, 4}));
}

TEST_P(RankLoopTest, APauseHoldsWhatComesUntilItIsOver) {
  ASSERT_TRUE(control(ControlKind::kPauseRetract).ok);
  send(request("a", 3, 2));
  // The rank still listens, and the request waits.
  EXPECT_TRUE(control(ControlKind::kFlushCache).ok);
  EXPECT_EQ(board_.read(1)->num_running_reqs, 0);
  send(GenerateRequest{.rid = "HEALTH_CHECK_1", .input_ids = {0}, .is_health_check = true});
  EXPECT_EQ(outcome("HEALTH_CHECK_1").finish.kind, FinishKind::kLength);
  EXPECT_EQ(board_once([](const LoadSnapshot& load) { return load.num_paused_reqs == 1; }).num_paused_reqs, 1);
  send(ControlRequest{.id = 6, .kind = ControlKind::kContinue});
  EXPECT_EQ(next<ControlReply>().id, 6u);
  EXPECT_EQ(outcome("a").new_ids, (std::vector<int32_t>{4, 5}));
}

TEST_P(RankLoopTest, APauseThatAbortsEndsWhatIsThere) {
  ASSERT_TRUE(control(ControlKind::kPauseInPlace).ok);
  send(request("a", 3, 2));
  send(ControlRequest{.id = 6, .kind = ControlKind::kPauseAbort});
  const auto out = outcome("a");
  EXPECT_EQ(out.finish.kind, FinishKind::kAbort);
  EXPECT_EQ(out.finish.status_code, 0);
  EXPECT_TRUE(next<ControlReply>().ok);
}

TEST_P(RankLoopTest, ARecordOfExpertsIsTheAnswer) {
  const auto dumped = control(ControlKind::kRecordExperts, "dump");
  EXPECT_TRUE(dumped.ok);
  EXPECT_EQ(dumped.message, "a record");
  const auto refused = control(ControlKind::kRecordExperts, "start");
  EXPECT_FALSE(refused.ok);
  EXPECT_EQ(refused.message, "this model has no experts");
}

TEST_P(RankLoopTest, E1AStepEndsOnceNobodyWaitsForItAndWhatCameMeanwhileIsTakenInInItsOrder) {
  if (GetParam()) GTEST_SKIP() << "messages are read while steps are computed";
  send(request("long", 14, 3));
  send(request("after", 3, 3));
  send(AbortRequest{.rid = "after"});
  send(request("last", 5, 2));
  send(AbortRequest{.rid = "long"});
  auto ended = outcomes(3);
  EXPECT_EQ(ended["long"].finish.kind, FinishKind::kAbort);
  EXPECT_EQ(ended["after"].finish.kind, FinishKind::kAbort);
  EXPECT_EQ(ended["last"].finish.kind, FinishKind::kLength);
  send(request("one", 14, 3));
  send(request("other", 3, 3));
  send(AbortRequest{.all = true});
  send(request("again", 5, 2));
  ended = outcomes(3);
  EXPECT_EQ(ended["one"].finish.kind, FinishKind::kAbort);
  EXPECT_EQ(ended["other"].finish.kind, FinishKind::kAbort);
  EXPECT_EQ(ended["again"].finish.kind, FinishKind::kLength);
}

TEST_P(RankLoopTest, OtherWeightsAreLoadedInAPauseOnly) {
  EXPECT_FALSE(control(ControlKind::kLoadWeights, "good").ok);
  ASSERT_TRUE(control(ControlKind::kPauseRetract).ok);
  EXPECT_TRUE(control(ControlKind::kLoadWeights, "good").ok);
  const auto bad = control(ControlKind::kLoadWeights, "bad");
  EXPECT_FALSE(bad.ok);
  EXPECT_EQ(bad.message, "bad weights");
  EXPECT_TRUE(control(ControlKind::kContinue).ok);
}

TEST_P(RankLoopTest, ARankWhoseWeightsAreRuinedEnds) {
  ASSERT_TRUE(control(ControlKind::kPauseRetract).ok);
  EXPECT_FALSE(control(ControlKind::kLoadWeights, "ruin").ok);
  rank_.join();
  ASSERT_FALSE(result_.ok());
  EXPECT_EQ(result_.error().message, "half of them are new");
}

TEST_P(RankLoopTest, AProfileIsAFileOfItsSteps) {
  const std::string folder = ::testing::TempDir() + fmt::format("sluice-profile-{}/deep", getpid());
  EXPECT_FALSE(control(ControlKind::kStopProfile).ok);
  const auto start = to_json(StepTraceOptions{.path_prefix = folder + "/x"});
  ASSERT_TRUE(control(ControlKind::kStartProfile, start).ok);
  EXPECT_FALSE(control(ControlKind::kStartProfile, start).ok) << "one at a time";
  send(request("a", 3, 3));
  EXPECT_EQ(outcome("a").new_ids.size(), 3u);
  ASSERT_TRUE(control(ControlKind::kStopProfile).ok);

  std::ifstream file(folder + "/x-DP-1.trace.json");
  const auto trace = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(trace.is_object());
  std::vector<std::string> steps;
  double last_end = 0;
  for (const auto& event : trace["traceEvents"]) {
    if (event["ph"] == "C") {
      EXPECT_TRUE(event["args"].is_object());
    }
    if (event["ph"] != "X" || event["tid"] != 1) continue;
    steps.push_back(event["name"]);
    EXPECT_GE(event["ts"].get<double>(), last_end);
    last_end = event["ts"].get<double>() + event["dur"].get<double>();
    EXPECT_EQ(event["args"]["tokens"], 1);
  }
  EXPECT_EQ(steps, (std::vector<std::string>{"prefill", "decode", "decode"}));
  std::filesystem::remove_all(std::filesystem::path(folder).parent_path());
}

TEST_P(RankLoopTest, AProfileEndsByItselfAfterItsSteps) {
  const std::string prefix = ::testing::TempDir() + fmt::format("sluice-profile-{}", getpid());
  ASSERT_TRUE(control(ControlKind::kStartProfile, to_json({.path_prefix = prefix, .num_steps = 2})).ok);
  send(request("a", 3, 5));
  EXPECT_EQ(outcome("a").new_ids.size(), 5u);
  EXPECT_FALSE(control(ControlKind::kStopProfile).ok) << "it is over";
  EXPECT_TRUE(std::filesystem::remove(prefix + "-DP-1.trace.json"));
}

// The ranks of an instance of two, on threads: the first leads, the second computes what it plans.
class GroupLoopTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string base = fmt::format("ipc://@sluice-group-loop-test-{}", getpid());
    ASSERT_EQ(zmq_bind(pull_, (base + "-out").c_str()), 0);
    const int timeout = 20'000;
    zmq_setsockopt(pull_, ZMQ_RCVTIMEO, &timeout, sizeof(timeout));
    for (size_t i = 0; i < 2; ++i) {
      push_[i] = zmq_socket(context_, ZMQ_PUSH);
      const std::string input = fmt::format("{}-in-{}", base, i);
      ASSERT_EQ(zmq_bind(push_[i], input.c_str()), 0);
      auto link = RankLink::connect(input, base + "-out", static_cast<int64_t>(i), /*incarnation=*/1);
      ASSERT_TRUE(link.ok()) << link.error().message;
      ranks_[i] = std::thread([this, i, link = std::move(*link)]() mutable {
        result_[i] = serve(i, link);
        // The front ends all; a rank may wait for the other's row then.
        world_[i]->abort(kOver);
      });
    }
  }
  void TearDown() override {
    end();
    for (void* socket : {push_[0], push_[1], pull_}) zmq_close(socket);
    zmq_ctx_term(context_);
    size_t as_wanted = 0;
    for (const auto& result : result_) {
      const std::string message = result.ok() ? "" : result.error().message;
      const bool found = !wanted_.empty() && message.find(wanted_) != std::string::npos;
      as_wanted += found ? 1 : 0;
      EXPECT_TRUE(result.ok() || found || message.find(kOver) != std::string::npos) << message;
    }
    EXPECT_EQ(as_wanted > 0, !wanted_.empty());
  }
  // Both loops.
  void end() {
    // A rank may have ended with the other one; nobody takes what is sent to it then.
    const std::string shutdown = encode(ToRank(ControlRequest{.kind = ControlKind::kShutdown}));
    for (void* rank : push_) zmq_send(rank, shutdown.data(), shutdown.size(), ZMQ_DONTWAIT);
    for (std::thread& rank : ranks_) {
      if (rank.joinable()) rank.join();
    }
  }
  Result<void> serve(size_t i, RankLink& link) {
    const auto groups = parallel::make_groups(*world_[i], {.tp_rank = static_cast<int64_t>(i), .tp_size = 2}).value();
    GroupRunner group(std::make_unique<CountingRunner>(), groups);
    SLUICE_TRY_VOID(group.allocate_kv({.slots = 100, .table_rows = 2, .table_width = 100}));
    const RecordExperts record_experts = [&, i](std::string_view) -> Result<std::string> {
      obeyed_[i].push_back(group.member().exchanges());
      return std::string();
    };
    if (i == 1) return run_follower_loop(link, group, 1, {}, record_experts);
    Scheduler scheduler(
        {.kv_slots = 100, .max_running_requests = 2, .context_length = 100, .joint_steps = true}, group,
        [](int32_t) { return std::string_view("x"); }, real_clock());
    return run_rank_loop({.group = &group, .record_experts = record_experts}, link, scheduler, &board_);
  }
  void send(size_t rank, const ToRank& message) {
    const std::string frame = encode(message);
    ASSERT_GE(zmq_send(push_[rank], frame.data(), frame.size(), 0), 0);
  }
  void wake(uint64_t work) {
    for (const size_t i : {0, 1}) send(i, WakeRequest{.work = work});
  }
  // The next message from any rank.
  FromRank next() {
    std::string frame(1 << 16, '\0');
    const int n = zmq_recv(pull_, frame.data(), frame.size(), 0);
    EXPECT_GE(n, 0) << "no answer";
    auto decoded = decode_from_rank(std::string_view(frame).substr(0, n < 0 ? 0 : static_cast<size_t>(n)));
    EXPECT_TRUE(decoded.ok());
    return decoded.ok() ? std::move(decoded->message) : FromRank{};
  }
  // Of a request to the leader.
  std::vector<int32_t> served(uint64_t work) {
    GenerateRequest request{.rid = fmt::format("r{}", work), .input_ids = {3}};
    request.sampling.temperature = 0;
    request.sampling.max_new_tokens = 4;
    send(0, request);
    wake(work);
    std::vector<int32_t> ids;
    while (!HasFailure()) {
      const FromRank message = next();
      const auto* batch = std::get_if<OutputBatch>(&message);
      for (size_t i = 0; batch != nullptr && i < batch->outputs.size(); ++i) {
        const RequestOutput& out = batch->outputs[i];
        ids.insert(ids.end(), out.new_ids.begin(), out.new_ids.end());
        if (out.finish.kind != FinishKind::kNone) return ids;
      }
    }
    return ids;
  }

  void* context_ = zmq_ctx_new();
  void* pull_ = zmq_socket(context_, ZMQ_PULL);
  void* push_[2] = {};
  std::vector<std::unique_ptr<parallel::Communicator>> world_ = parallel::make_inproc_group(2);
  LoadBoard board_ = *LoadBoard::create(1);
  std::vector<int64_t> obeyed_[2];  // after which exchanges; read after end()
  static constexpr std::string_view kOver = "the other rank has ended";
  std::string wanted_;  // in the error that a loop ends with; empty: none ends so
  Result<void> result_[2];
  std::thread ranks_[2];
};

TEST_F(GroupLoopTest, RanksServeParkAndServeAgain) {
  for (const uint64_t work : {1, 2, 3}) EXPECT_EQ(served(work), (std::vector<int32_t>{4, 5, 6, 7}));
}

TEST_F(GroupLoopTest, AControlMessageTakesEffectOnAllRanksAfterTheSameExchange) {
  for (uint64_t work = 1; work <= 6; work += 2) {
    EXPECT_EQ(served(work), (std::vector<int32_t>{4, 5, 6, 7}));
    const ControlRequest control{.id = work, .kind = ControlKind::kRecordExperts, .text = "start"};
    send(work % 4 == 1 ? 0 : 1, control);
    send(work % 4 == 1 ? 1 : 0, control);
    wake(work + 1);
    for (int replies = 0; replies < 2 && !HasFailure();) {
      const FromRank message = next();
      const auto* reply = std::get_if<ControlReply>(&message);
      if (reply == nullptr) continue;
      EXPECT_EQ(reply->id, work);
      ++replies;
    }
  }
  end();
  EXPECT_EQ(obeyed_[0].size(), 3u);
  EXPECT_EQ(obeyed_[0], obeyed_[1]);
}

TEST_F(GroupLoopTest, ARankThatMissesAControlMessageIsOutOfStep) {
  wanted_ = ": controls is ";
  send(0, ControlRequest{.id = 1, .kind = ControlKind::kRecordExperts, .text = "start"});
  wake(1);
  for (std::thread& rank : ranks_) rank.join();
}

}  // namespace
}  // namespace sluice::engine
