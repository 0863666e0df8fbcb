// The controller against ranks that the test plays: real processes that do nothing, for their ids and ends, and the
// real link, codec and sockets spoken from here.
#include "engine/dp_controller.h"

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

#include <condition_variable>
#include <csignal>
#include <deque>
#include <future>
#include <map>
#include <thread>

#include "engine/codec.h"
#include "engine/rank_loop.h"
#include "testing/fake_clock.h"

namespace sluice::engine {
namespace {

using namespace std::chrono_literals;

constexpr auto kWait = 20s;

// What came back of the requests of a test.
class Sink {
 public:
  Backend::OnOutput of(const std::string& rid) {
    return [this, rid](RequestOutput output) {
      std::lock_guard lock(mutex_);
      EXPECT_EQ(output.rid, rid);
      EXPECT_TRUE(outputs_[rid].empty() || outputs_[rid].back().finish.kind == FinishKind::kNone)
          << "news of " << rid << " after its last";
      outputs_[rid].push_back(std::move(output));
      changed_.notify_all();
    };
  }
  // The last output.
  RequestOutput end_of(const std::string& rid) {
    std::unique_lock lock(mutex_);
    const bool came = changed_.wait_for(
        lock, kWait, [&] { return !outputs_[rid].empty() && outputs_[rid].back().finish.kind != FinishKind::kNone; });
    EXPECT_TRUE(came) << rid << " has not ended";
    return came ? outputs_[rid].back() : RequestOutput{};
  }
  void wait_for_first(const std::string& rid) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, kWait, [&] { return !outputs_[rid].empty(); }));
  }
  size_t ended() {
    std::lock_guard lock(mutex_);
    size_t count = 0;
    for (const auto& [rid, outputs] : outputs_) {
      for (const auto& output : outputs) count += output.finish.kind != FinishKind::kNone;
    }
    return count;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::vector<RequestOutput>> outputs_;
};

Result<Process> run_shell(const std::string& script) {
  return Process::start({.program = "/bin/sh", .arguments = {"-c", script}, .keep_stderr_tail = true});
}

class DpControllerTest : public ::testing::Test {
 protected:
  // ---- launching

  auto launch(int64_t ranks, std::string_view method = "round_robin", int stop = -1) {
    board_.emplace(*LoadBoard::create(ranks));
    // What stands for the ranks here does not end by itself.
    DataParallelControllerOptions options{.method = find_load_balance(method), .tp_size = tp_size_, .stop_grace = 0s};
    options.start_rank = [this](RankSpec spec, int) -> Result<std::unique_ptr<RankHandle>> {
      std::lock_guard lock(mutex_);
      started_.push_back(spec);
      changed_.notify_all();
      SLUICE_TRY(auto process, run_shell(scripts_.contains(spec.dp_rank) ? scripts_[spec.dp_rank] : "exec sleep 600"));
      last_pid_ = process.pid();
      return handle_of(std::move(process));
    };
    return std::async(std::launch::async, [this, stop, options = std::move(options)]() mutable {
      const auto on_progress = [this](int64_t, double, std::string_view) {
        std::lock_guard lock(mutex_);
        ++progress_;
        changed_.notify_all();
      };
      return DataParallelController::start(std::move(options), *board_, clock_, on_progress, stop);
    });
  }
  void wait_for_progress() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, kWait, [&] { return progress_ > 0; })) << "no news of the start";
  }
  void start(int64_t ranks, std::string_view method = "round_robin") {
    auto launched = launch(ranks, method);
    for (int64_t i = 0; i < ranks; ++i) become_ready();
    auto controller = launched.get();
    ASSERT_TRUE(controller.ok()) << controller.error().message;
    controller_ = std::move(*controller);
  }
  std::optional<RankSpec> next_start() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kWait, [&] { return !started_.empty(); })) {
      ADD_FAILURE() << "no rank was started";
      return std::nullopt;
    }
    RankSpec spec = started_.front();
    started_.pop_front();
    return spec;
  }
  size_t waiting_starts() {
    std::lock_guard lock(mutex_);
    return started_.size();
  }
  RankLink& connect(const RankSpec& spec) {
    auto link = RankLink::connect(spec.input_endpoint, spec.output_endpoint, spec.dp_rank, spec.incarnation);
    links_[spec.dp_rank].push_back(std::make_unique<RankLink>(std::move(*link)));
    return rank(spec.dp_rank);
  }
  // The next rank that is started says that it is ready.
  int64_t become_ready() {
    const auto spec = next_start();
    if (!spec) return 0;
    connect(*spec).send(RankReady{.max_total_num_tokens = 100 + spec->dp_rank});
    return spec->dp_rank;
  }

  void stop_while_loading(int64_t tp_size);

  // ---- the ranks

  RankLink& rank(int64_t i) { return *links_[i].back(); }
  template <class T>
  T next(int64_t i) {
    auto message = rank(i).receive(kWait);
    if (!message || !std::holds_alternative<T>(*message)) {
      ADD_FAILURE() << "rank " << i << (message ? " got another message" : " got nothing");
      return {};
    }
    return std::get<T>(std::move(*message));
  }
  void answer(int64_t i, const std::string& rid, FinishKind finish) {
    rank(i).send(OutputBatch{{{.rid = rid, .new_ids = {1}, .finish = {.kind = finish}, .completion_tokens = 1}}});
  }
  void kill_rank(int64_t i) {
    ::kill(static_cast<pid_t>(controller_->ranks().at(static_cast<size_t>(i)).pid), SIGKILL);
  }
  // Returns once the controller has seen the end of the rank.
  void kill_and_wait(int64_t i) {
    const std::string rid = fmt::format("sentinel-{}", sentinels_++);
    ASSERT_TRUE(submit(rid, i).ok());
    kill_rank(i);
    EXPECT_EQ(sink_.end_of(rid).finish.status_code, 503);
  }

  // ---- the client's side

  Result<int64_t> submit(const std::string& rid, std::optional<int64_t> pinned = {}, size_t tokens = 3) {
    return controller_->submit({.rid = rid, .input_ids = std::vector<int32_t>(tokens, 7)}, pinned, sink_.of(rid));
  }
  // A whole turn of the controller: what it does by the clock is done when a request has gone to a rank and back.
  void turn() {
    const std::string rid = fmt::format("turn-{}", turns_++);
    ASSERT_TRUE(submit(rid).ok());
    ASSERT_EQ(next<GenerateRequest>(0).rid, rid);
    answer(0, rid, FinishKind::kLength);
    sink_.end_of(rid);
  }
  template <class Condition>
  void let_time_pass_until(Condition condition) {
    const TimePoint end = real_clock().now() + kWait;
    while (!condition()) {
      ASSERT_LT(real_clock().now(), end) << "it did not happen";
      clock_.advance(100ms);
      nudge();
      std::this_thread::sleep_for(1ms);
    }
  }
  // Makes the controller look at the clock.
  void nudge() { controller_->abort("nobody"); }

  sluice::testing::FakeClock clock_;
  std::optional<LoadBoard> board_;
  Sink sink_;
  std::map<int64_t, std::string> scripts_;  // what a rank's process runs instead of sleeping
  std::map<int64_t, std::vector<std::unique_ptr<RankLink>>> links_;
  int64_t tp_size_ = 1;
  int sentinels_ = 0;
  int turns_ = 0;
  std::atomic<pid_t> last_pid_{0};  // of a process that was started

  std::mutex mutex_;  // guards the two below
  std::condition_variable changed_;
  std::deque<RankSpec> started_;
  int progress_ = 0;

  std::unique_ptr<DataParallelController> controller_;  // ends first
};

// ---- dispatch

TEST_F(DpControllerTest, SendsInTurnAndBringsTheOutputBack) {
  start(2);
  EXPECT_EQ(*submit("a"), 0);
  EXPECT_EQ(*submit("b"), 1);
  EXPECT_EQ(*submit("c"), 0);
  const auto a = next<GenerateRequest>(0);
  EXPECT_EQ(a.rid, "a");
  EXPECT_EQ(a.input_ids, (std::vector<int32_t>{7, 7, 7}));
  const auto c = next<GenerateRequest>(0);
  EXPECT_EQ(c.rid, "c");
  EXPECT_LT(a.dispatch_seq, c.dispatch_seq);
  EXPECT_EQ(next<GenerateRequest>(1).rid, "b");
  answer(0, "a", FinishKind::kNone);
  answer(0, "a", FinishKind::kLength);
  EXPECT_EQ(sink_.end_of("a").finish.kind, FinishKind::kLength);
  auto left = controller_->running();
  std::ranges::sort(left);
  EXPECT_EQ(left, (std::vector<std::string>{"b", "c"}));
  EXPECT_TRUE(controller_->submit({.rid = "a", .input_ids = {1}}, {}, [](const RequestOutput&) {}).ok())
      << "a rid is free again after its end";
}

TEST_F(DpControllerTest, ReportsItsRanks) {
  start(2);
  board_->publish(1, {.unix_nanos = 5, .num_running_reqs = 4});
  const auto ranks = controller_->ranks();
  ASSERT_EQ(ranks.size(), 2u);
  for (const auto& rank : ranks) {
    EXPECT_TRUE(rank.ready);
    EXPECT_GT(rank.pid, 0);
    EXPECT_EQ(rank.restarts, 0);
  }
  EXPECT_EQ(ranks[1].info.max_total_num_tokens, 101);
  EXPECT_EQ(ranks[1].load.num_running_reqs, 4);
  EXPECT_EQ(ranks[0].load.num_running_reqs, 0);
}

TEST_F(DpControllerTest, AnExplicitRankIsTakenOrRefusedWithTheRange) {
  start(2);
  EXPECT_EQ(*submit("a", 1), 1);
  EXPECT_EQ(next<GenerateRequest>(1).rid, "a");
  for (const int64_t wrong : {-1, 2}) {
    const auto refused = submit("b", wrong);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(refused.error().message.find("0 to 1"), std::string::npos) << refused.error().message;
  }
}

TEST_F(DpControllerTest, ARidInUseIsRefused) {
  start(1);
  ASSERT_TRUE(submit("a").ok());
  const auto again = submit("a");
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.error().code, ErrorCode::kInvalidArgument);
}

TEST_F(DpControllerTest, TotalTokensFollowsWordsAndWhatWasSentSince) {
  start(2, "total_tokens");
  EXPECT_EQ(*submit("a", {}, 100), 0);
  EXPECT_EQ(*submit("b", {}, 60), 1);
  EXPECT_EQ(*submit("c", {}, 60), 1) << "60 against 100";
  // Rank 0 has taken "a" in and is through with it.
  board_->publish(0, {.unix_nanos = 1, .last_dispatch_seq = next<GenerateRequest>(0).dispatch_seq});
  clock_.advance(20ms);
  EXPECT_EQ(*submit("d", {}, 150), 0) << "0 against 120";
  EXPECT_EQ(*submit("e", {}, 10), 1) << "150 against 120";
}

TEST_F(DpControllerTest, WhatARankCannotTakeYetWaitsForIt) {
  auto launched = launch(1);
  const auto spec = next_start();
  ASSERT_TRUE(spec);
  {
    // Ready on its output, while nobody is connected to its input.
    auto half = RankLink::connect("inproc://nobody", spec->output_endpoint, 0, spec->incarnation);
    ASSERT_TRUE(half.ok()) << half.error().message;
    half->send(RankReady{});
    controller_ = *launched.get();
  }
  ASSERT_TRUE(submit("a").ok());
  nudge();
  connect(*spec);
  EXPECT_EQ(next<GenerateRequest>(0).rid, "a");
}

// ---- death

TEST_F(DpControllerTest, ADeadRanksRequestsMoveIfNothingWasAnswered) {
  start(2);
  ASSERT_EQ(*submit("fresh"), 0);
  ASSERT_EQ(*submit("elsewhere"), 1);
  ASSERT_EQ(*submit("started"), 0);
  ASSERT_EQ(*submit("pinned", 0), 0);
  ASSERT_EQ(*submit("aborted", 0), 0);
  controller_->abort("aborted");
  for (int i = 0; i < 4; ++i) next<GenerateRequest>(0);
  EXPECT_EQ(next<AbortRequest>(0).rid, "aborted");
  answer(0, "started", FinishKind::kNone);
  sink_.wait_for_first("started");
  kill_rank(0);

  const auto started = sink_.end_of("started");
  EXPECT_EQ(started.finish.kind, FinishKind::kAbort);
  EXPECT_EQ(started.finish.status_code, 500);
  EXPECT_EQ(started.finish.message, "data-parallel rank 0 ended: killed by SIGKILL");
  EXPECT_TRUE(started.finish.rank_ended);
  EXPECT_EQ(started.completion_tokens, 1);
  const auto pinned = sink_.end_of("pinned");
  EXPECT_EQ(pinned.finish.kind, FinishKind::kAbort);
  EXPECT_EQ(pinned.finish.status_code, 503);
  EXPECT_TRUE(pinned.finish.rank_ended);
  EXPECT_EQ(pinned.prompt_tokens, 3);
  EXPECT_EQ(sink_.end_of("aborted").finish.status_code, 0);
  EXPECT_FALSE(sink_.end_of("aborted").finish.rank_ended);

  EXPECT_EQ(next<GenerateRequest>(1).rid, "elsewhere");
  const auto moved = next<GenerateRequest>(1);
  EXPECT_EQ(moved.rid, "fresh");
  EXPECT_EQ(moved.input_ids.size(), 3u);
  answer(1, "fresh", FinishKind::kLength);
  EXPECT_EQ(sink_.end_of("fresh").finish.kind, FinishKind::kLength);
  EXPECT_EQ(sink_.ended(), 4u);
}

TEST_F(DpControllerTest, LateWordsOfADeadRankAreDropped) {
  start(2);
  ASSERT_EQ(*submit("a"), 0);
  kill_and_wait(0);
  answer(0, "a", FinishKind::kLength);  // the dead one's link still works here
  EXPECT_EQ(next<GenerateRequest>(1).rid, "a");
  rank(1).send(OutputBatch{{{.rid = "a", .new_ids = {5, 6}, .finish = {.kind = FinishKind::kStopToken}}}});
  EXPECT_EQ(sink_.end_of("a").finish.kind, FinishKind::kStopToken);
}

TEST_F(DpControllerTest, ARequestThatSawTwoRanksDieGetsNoThird) {
  start(3);
  ASSERT_EQ(*submit("poison"), 0);
  kill_and_wait(0);
  EXPECT_EQ(next<GenerateRequest>(1).rid, "poison");
  kill_rank(1);
  const FinishReason end = sink_.end_of("poison").finish;
  EXPECT_EQ(end.status_code, 500) << "503 asks for another attempt";
  EXPECT_TRUE(end.rank_ended && end.ended_two);
  EXPECT_NE(end.message.find("not tried again"), std::string::npos) << end.message;
}

TEST_F(DpControllerTest, WithoutAnyRankRequestsAreRefusedAtOnce) {
  start(1);
  ASSERT_TRUE(submit("a").ok());
  kill_rank(0);
  EXPECT_EQ(sink_.end_of("a").finish.status_code, 503);
  EXPECT_EQ(submit("b").error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(submit("b", 0).error().code, ErrorCode::kUnavailable);
  EXPECT_FALSE(controller_->ranks()[0].ready);
  EXPECT_EQ(controller_->ranks()[0].pid, 0);
}

TEST_F(DpControllerTest, ARankRestartsWithBackoffWhileTheOthersServe) {
  start(2);
  int served = 0;
  // A whole turn of the controller: what it does by the clock is done when the request arrives.
  const auto rank_1_serves = [&] {
    const std::string rid = fmt::format("served-{}", served++);
    ASSERT_EQ(*submit(rid), 1);
    ASSERT_EQ(next<GenerateRequest>(1).rid, rid);
    answer(1, rid, FinishKind::kLength);
    EXPECT_EQ(sink_.end_of(rid).finish.kind, FinishKind::kLength);
  };
  uint64_t incarnation = 1;
  for (const Duration delay : {1s, 2s, 4s}) {
    kill_and_wait(0);
    clock_.advance(delay - 1ms);
    rank_1_serves();
    EXPECT_EQ(waiting_starts(), 0u) << seconds(delay);
    clock_.advance(1ms);
    nudge();
    const auto spec = next_start();
    ASSERT_TRUE(spec);
    EXPECT_EQ(spec->dp_rank, 0);
    EXPECT_EQ(spec->incarnation, ++incarnation);
    rank_1_serves();
    connect(*spec).send(RankReady{});
    // It is back when requests reach it.
    for (int i = 0;; ++i) {
      const std::string rid = fmt::format("back-{}-{}", incarnation, i);
      if (submit(rid, 0).ok()) {
        EXPECT_EQ(next<GenerateRequest>(0).rid, rid);
        answer(0, rid, FinishKind::kLength);
        sink_.end_of(rid);
        break;
      }
      std::this_thread::yield();
    }
    EXPECT_EQ(controller_->ranks()[0].restarts, static_cast<int64_t>(incarnation) - 1);
  }
}

TEST_F(DpControllerTest, ARestartThatFailsIsTriedAgainAndEndsNothingElse) {
  start(2);
  kill_and_wait(0);
  clock_.advance(1s);
  nudge();
  connect(*next_start()).send(RankFailed{"no such file"});
  // Its end is seen when the next start is due later: 2 s after it.
  while (waiting_starts() == 0) {
    clock_.advance(100ms);
    nudge();
    std::this_thread::yield();
  }
  EXPECT_EQ(next_start()->incarnation, 3u);
  ASSERT_EQ(*submit("a"), 1);
  EXPECT_EQ(next<GenerateRequest>(1).rid, "a");
}

TEST_F(DpControllerTest, MalformedFramesAreDroppedAndTheOthersCount) {
  auto launched = launch(1);
  const auto spec = next_start();
  ASSERT_TRUE(spec);
  connect(*spec).send(RankReady{});
  controller_ = *launched.get();
  ASSERT_TRUE(submit("a").ok());
  void* context = zmq_ctx_new();
  void* push = zmq_socket(context, ZMQ_PUSH);
  ASSERT_EQ(zmq_connect(push, spec->output_endpoint.c_str()), 0);
  const OutputBatch batch{{{.rid = "a", .finish = {.kind = FinishKind::kLength}}}};
  const std::string whole = encode(RankFrame{0, 1, batch});
  for (const std::string& frame :
       {std::string(), std::string("not a frame"), whole.substr(0, whole.size() / 2), encode(RankFrame{9, 1, batch}),
        encode(RankFrame{-1, 1, batch}), encode(RankFrame{0, 77, batch}), whole}) {
    ASSERT_GE(zmq_send(push, frame.data(), frame.size(), 0), 0);
  }
  EXPECT_EQ(sink_.end_of("a").finish.kind, FinishKind::kLength);
  EXPECT_EQ(sink_.ended(), 1u);
  zmq_close(push);
  zmq_ctx_term(context);
}

// ---- ranks that hang (R24, R25)

TEST_F(DpControllerTest, ARankThatIsStoppedIsEndedAndWhatItHadNotBegunGoesOn) {
  start(2);
  ASSERT_EQ(*submit("fresh"), 0);
  ASSERT_EQ(*submit("elsewhere"), 1);
  ASSERT_EQ(*submit("started"), 0);
  answer(0, "started", FinishKind::kNone);
  sink_.wait_for_first("started");
  answer(1, "elsewhere", FinishKind::kLength);
  sink_.end_of("elsewhere");
  board_->pulse(0).set({.phase = Pulse::Phase::kStep, .step = 40, .layer = 3});
  ::kill(static_cast<pid_t>(controller_->ranks()[0].pid), SIGSTOP);
  let_time_pass_until([&] { return sink_.ended() == 2; });
  const auto started = sink_.end_of("started").finish;
  EXPECT_EQ(started.status_code, 500);
  EXPECT_TRUE(started.message.starts_with("data-parallel rank 0 ended: no progress for ")) << started.message;
  EXPECT_TRUE(started.message.ends_with(" s in step 40, layer 3; its process is stopped")) << started.message;
  EXPECT_EQ(next<GenerateRequest>(1).rid, "elsewhere");
  EXPECT_EQ(next<GenerateRequest>(1).rid, "fresh");
  answer(1, "fresh", FinishKind::kLength);
  EXPECT_EQ(sink_.end_of("fresh").dp_rank, 1) << "who answered, not who had it first";
  let_time_pass_until([&] { return waiting_starts() == 1; });
  EXPECT_EQ(next_start()->incarnation, 2u);
}

TEST_F(DpControllerTest, ASlowStepThatGetsOnIsLeftAlone) {
  start(1);
  ASSERT_TRUE(submit("slow").ok());
  next<GenerateRequest>(0);
  Pulse& pulse = board_->pulse(0);
  pulse.set({.phase = Pulse::Phase::kStep, .step = 1, .layer = 0});
  // Half a minute of pieces that take two seconds each.
  for (int i = 0; i < 15; ++i) {
    pulse.beats[0].count += 1;
    for (int half = 0; half < 4; ++half) {
      clock_.advance(500ms);
      turn();
    }
  }
  EXPECT_TRUE(controller_->ranks()[0].ready);
  EXPECT_EQ(waiting_starts(), 0u);
  answer(0, "slow", FinishKind::kLength);
  EXPECT_EQ(sink_.end_of("slow").finish.kind, FinishKind::kLength);
}

TEST_F(DpControllerTest, OneThatNothingIsAskedOfIsNotLookedAt) {
  start(1);
  board_->pulse(0).set({.phase = Pulse::Phase::kBetweenSteps, .step = 1});
  for (int i = 0; i < 40; ++i) {
    clock_.advance(500ms);
    nudge();
  }
  ASSERT_TRUE(submit("a").ok());
  answer(0, next<GenerateRequest>(0).rid, FinishKind::kLength);
  EXPECT_EQ(sink_.end_of("a").finish.kind, FinishKind::kLength);
  EXPECT_EQ(waiting_starts(), 0u);
}

// Of two ranks that load together too: they have not met yet, and may take as long as it takes.
TEST_F(DpControllerTest, R23ARankThatIsStoppedWhileItLoadsFailsTheStart) {
  for (const int64_t tp_size : {1, 2}) stop_while_loading(tp_size);
}

void DpControllerTest::stop_while_loading(int64_t tp_size) {
  tp_size_ = tp_size;
  last_pid_ = 0;
  auto launched = launch(1);
  const auto spec = next_start();
  ASSERT_TRUE(spec);
  for (int64_t i = 1; i < tp_size; ++i) ASSERT_TRUE(next_start());
  RankLink& link = connect(*spec);
  const TimePoint end = real_clock().now() + kWait;
  while (last_pid_ == 0) ASSERT_LT(real_clock().now(), end);
  ::kill(last_pid_, SIGSTOP);
  while (launched.wait_for(1ms) != std::future_status::ready) {
    ASSERT_LT(real_clock().now(), end) << "it did not happen";
    clock_.advance(100ms);
    link.send(RankProgress{0.1, "reading"});  // makes the controller look at the clock
  }
  const auto controller = launched.get();
  ASSERT_FALSE(controller.ok());
  const std::string& message = controller.error().message;
  EXPECT_TRUE(message.starts_with(fmt::format("rank {} failed to start: no progress for ", tp_size - 1))) << message;
  EXPECT_TRUE(message.ends_with(" s while it loads; its process is stopped")) << message;
}

// ---- control

TEST_F(DpControllerTest, AbortsReachTheRanksThatHaveTheRequests) {
  start(2);
  ASSERT_EQ(*submit("a"), 0);
  ASSERT_EQ(*submit("b"), 1);
  controller_->abort("b");
  controller_->abort_all();
  EXPECT_EQ(next<GenerateRequest>(1).rid, "b");
  EXPECT_EQ(next<AbortRequest>(1).rid, "b");
  EXPECT_TRUE(next<AbortRequest>(1).all);
  EXPECT_EQ(next<GenerateRequest>(0).rid, "a");
  EXPECT_TRUE(next<AbortRequest>(0).all);
}

class FlushTest : public DpControllerTest {
 protected:
  std::future<Result<Backend::RankAnswers>> control(ControlKind kind, const std::string& text) {
    auto promise = std::make_shared<std::promise<Result<Backend::RankAnswers>>>();
    controller_->control(kind, text, 30s, [promise](auto result) { promise->set_value(std::move(result)); });
    return promise->get_future();
  }
  std::future<Result<Backend::RankAnswers>> flush() {
    auto promise = std::make_shared<std::promise<Result<Backend::RankAnswers>>>();
    controller_->flush_cache([promise](auto result) { promise->set_value(std::move(result)); });
    return promise->get_future();
  }
};

TEST_F(FlushTest, IsDoneWhenEveryRankHasAnswered) {
  start(2);
  auto done = flush();
  for (const int64_t i : {0, 1}) {
    const auto request = next<ControlRequest>(i);
    EXPECT_EQ(request.kind, ControlKind::kFlushCache);
    rank(i).send(ControlReply{.id = request.id, .ok = true});
  }
  ASSERT_EQ(done.wait_for(kWait), std::future_status::ready);
  EXPECT_TRUE(done.get().ok());
}

TEST_F(FlushTest, HandsOnWhatRanksAnswer) {
  start(2);
  auto done = control(ControlKind::kRecordExperts, "dump");
  rank(1).send(ControlReply{.id = next<ControlRequest>(1).id, .ok = true, .message = "of rank 1"});
  rank(0).send(ControlReply{.id = next<ControlRequest>(0).id, .ok = true, .message = "of rank 0"});
  ASSERT_EQ(done.wait_for(kWait), std::future_status::ready);
  EXPECT_EQ(done.get().value(), (Backend::RankAnswers{{0, "of rank 0"}, {1, "of rank 1"}}));
}

TEST_F(FlushTest, SaysWhichRankRefusedAndWhy) {
  start(2);
  auto done = flush();
  rank(0).send(ControlReply{.id = next<ControlRequest>(0).id, .ok = true});
  rank(1).send(ControlReply{.id = next<ControlRequest>(1).id, .ok = false, .message = "2 requests are running"});
  ASSERT_EQ(done.wait_for(kWait), std::future_status::ready);
  EXPECT_EQ(done.get().error().message, "rank 1: 2 requests are running");
}

TEST_F(FlushTest, ADeadRanksCacheIsEmpty) {
  start(2);
  auto done = flush();
  rank(0).send(ControlReply{.id = next<ControlRequest>(0).id, .ok = true});
  kill_rank(1);
  ASSERT_EQ(done.wait_for(kWait), std::future_status::ready);
  EXPECT_TRUE(done.get().ok());
}

TEST_F(FlushTest, EndsAfter30SecondsNamingTheSilentRank) {
  start(2);
  auto done = flush();
  rank(0).send(ControlReply{.id = next<ControlRequest>(0).id, .ok = true});
  ASSERT_TRUE(submit("after", 0).ok());
  answer(0, "after", FinishKind::kLength);
  sink_.end_of("after");  // so the reply before it has come
  clock_.advance(30s);
  nudge();
  ASSERT_EQ(done.wait_for(kWait), std::future_status::ready);
  const auto result = done.get();
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kTimeout);
  EXPECT_NE(result.error().message.find("rank 1"), std::string::npos) << result.error().message;
}

TEST_F(FlushTest, APauseAndOtherWeightsHoldForARankThatRestarts) {
  start(2);
  const auto do_all = [this](ControlKind kind, const std::string& text) {
    auto done = control(kind, text);
    for (const int64_t i : {0, 1}) {
      const auto request = next<ControlRequest>(i);
      EXPECT_EQ(request.kind, kind);
      EXPECT_EQ(request.text, text);
      rank(i).send(ControlReply{.id = request.id, .ok = true});
    }
    EXPECT_EQ(done.wait_for(kWait), std::future_status::ready);
    EXPECT_TRUE(done.get().ok());
  };
  do_all(ControlKind::kPauseInPlace, "");
  do_all(ControlKind::kLoadWeights, "/new/model");
  kill_and_wait(0);
  clock_.advance(1s);
  nudge();
  const auto spec = next_start();
  ASSERT_TRUE(spec);
  EXPECT_EQ(spec->model_file, "/new/model");
  connect(*spec).send(RankReady{});
  EXPECT_EQ(next<ControlRequest>(0).kind, ControlKind::kPauseRetract);
}

TEST_F(FlushTest, ARankThatWasLoadingWhenOthersGotOtherWeightsStartsAgainWithThose) {
  start(2);
  kill_and_wait(1);
  clock_.advance(1s);
  nudge();
  const auto loading = next_start();
  ASSERT_TRUE(loading);
  EXPECT_EQ(loading->model_file, "");
  auto done = control(ControlKind::kLoadWeights, "/new/model");
  rank(0).send(ControlReply{.id = next<ControlRequest>(0).id, .ok = true});
  ASSERT_EQ(done.wait_for(kWait), std::future_status::ready);
  EXPECT_TRUE(done.get().ok());

  connect(*loading).send(RankReady{});
  let_time_pass_until([&] { return waiting_starts() > 0; });
  const auto again = next_start();
  ASSERT_TRUE(again);
  EXPECT_EQ(again->dp_rank, 1);
  EXPECT_EQ(again->model_file, "/new/model");
  connect(*again).send(RankReady{});
  int tries = 0;
  let_time_pass_until([&] { return submit(fmt::format("try-{}", tries++), 1).ok(); });
  EXPECT_EQ(next<GenerateRequest>(1).rid, fmt::format("try-{}", tries - 1)) << "and serves";
}

// ---- start and end

TEST_F(DpControllerTest, ALaunchEndsWithTheLastWordsOfARankThatDies) {
  scripts_[1] = "echo loading >&2; echo 'the disk is gone' >&2; exit 3";
  auto launched = launch(2);
  const auto result = launched.get();
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().message, "rank 1 failed to start: exit 3: the disk is gone");
}

TEST_F(DpControllerTest, ALaunchEndsWithTheSignalThatKilledARank) {
  scripts_[0] = "kill -SEGV $$";
  auto launched = launch(1);
  EXPECT_EQ(launched.get().error().message, "rank 0 failed to start: killed by SIGSEGV");
}

TEST_F(DpControllerTest, ALaunchEndsWithTheInvariantThatARankBroke) {
  scripts_[0] = "echo 'row 9 of a load board of 1' >&2; kill -ABRT $$";
  auto launched = launch(1);
  EXPECT_EQ(launched.get().error().message, "rank 0 failed to start: killed by SIGABRT: row 9 of a load board of 1");
}

TEST_F(DpControllerTest, ALaunchEndsWithTheCauseThatARankGives) {
  auto launched = launch(2);
  for (int i = 0; i < 2; ++i) {
    const auto spec = next_start();
    ASSERT_TRUE(spec);
    if (spec->dp_rank == 1) connect(*spec).send(RankFailed{"tensor 'lm_head' is missing"});
  }
  EXPECT_EQ(launched.get().error().message, "rank 1 failed to start: tensor 'lm_head' is missing");
}

TEST_F(DpControllerTest, ALaunchEndsWhenARankTakesTooLong) {
  auto launched = launch(1);
  auto& slow = connect(*next_start());
  slow.send(RankProgress{0.5, "packing weights"});
  wait_for_progress();
  clock_.advance(30min);
  slow.send(RankProgress{0.5, "packing weights"});  // wakes the controller, whose clock is not the kernel's
  EXPECT_EQ(launched.get().error().message,
            "rank 0 failed to start: not ready within 1800 s (last news: packing weights, 50 %)");
}

TEST_F(DpControllerTest, ALaunchCanBeStopped) {
  const int stop = ::eventfd(0, EFD_CLOEXEC);
  auto launched = launch(1, "round_robin", stop);
  ASSERT_TRUE(next_start());
  ::eventfd_write(stop, 1);
  EXPECT_EQ(launched.get().error().code, ErrorCode::kCancelled);
  ::close(stop);
}

TEST_F(DpControllerTest, ItsEndEndsWhatIsInFlightAndTheRanks) {
  start(2);
  ASSERT_TRUE(submit("a").ok());
  ASSERT_TRUE(submit("b").ok());
  const auto ranks = controller_->ranks();
  std::thread([&] { controller_.reset(); }).join();
  EXPECT_EQ(sink_.end_of("a").finish.status_code, 503);
  EXPECT_EQ(sink_.end_of("b").finish.status_code, 503);
  EXPECT_EQ(sink_.ended(), 2u);
  for (const auto& rank : ranks) EXPECT_NE(::kill(static_cast<pid_t>(rank.pid), 0), 0) << "a rank is left";
}

// ---- many at once

// A rank that answers every request with one token, on a thread of its own, until its link is told to stop.
class EchoRank {
 public:
  EchoRank(RankSpec spec) : thread_([this, spec = std::move(spec)] { run(spec); }) {}
  ~EchoRank() {
    stop_ = true;
    thread_.join();
  }

 private:
  void run(const RankSpec& spec) {
    auto link = RankLink::connect(spec.input_endpoint, spec.output_endpoint, spec.dp_rank, spec.incarnation);
    link->send(RankReady{});
    while (!stop_) {
      const auto message = link->receive(50ms);
      const auto* request = message ? std::get_if<GenerateRequest>(&*message) : nullptr;
      if (request == nullptr) continue;
      link->send(OutputBatch{{{.rid = request->rid, .new_ids = {1}}}});
      link->send(OutputBatch{{{.rid = request->rid, .new_ids = {2}, .finish = {.kind = FinishKind::kLength}}}});
    }
  }

  std::atomic<bool> stop_{false};
  std::thread thread_;
};

TEST_F(DpControllerTest, EachOfManyRequestsFromManyThreadsEndsOnceThoughARankDies) {
  constexpr int kThreads = 4;
  constexpr int kEach = 250;
  auto launched = launch(3, "total_requests");
  std::vector<std::unique_ptr<EchoRank>> ranks;
  for (int i = 0; i < 3; ++i) ranks.push_back(std::make_unique<EchoRank>(*next_start()));
  controller_ = *launched.get();
  std::atomic<int> accepted{0};
  std::vector<std::thread> clients;
  for (int t = 0; t < kThreads; ++t) {
    clients.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        if (t == 0 && i == kEach / 2) kill_rank(1);
        if (submit(fmt::format("{}-{}", t, i)).ok()) ++accepted;
      }
    });
  }
  for (auto& client : clients) client.join();
  EXPECT_EQ(accepted, kThreads * kEach) << "two ranks were up all the time";
  for (int t = 0; t < kThreads; ++t) {
    for (int i = 0; i < kEach; ++i) sink_.end_of(fmt::format("{}-{}", t, i));
  }
  EXPECT_EQ(sink_.ended(), static_cast<size_t>(accepted));
  EXPECT_TRUE(controller_->running().empty());
}

// Takes requests in and says so on the board, as a rank whose steps are long, until it is told to answer them all.
class BusyRank {
 public:
  BusyRank(RankSpec spec, LoadBoard& board, const std::atomic<bool>& answering)
      : board_(board), answering_(answering), thread_([this, spec = std::move(spec)] { run(spec); }) {}
  ~BusyRank() {
    stop_ = true;
    thread_.join();
  }
  // Once all have ended.
  int64_t taken() const { return taken_; }

 private:
  void run(const RankSpec& spec) {
    auto link = RankLink::connect(spec.input_endpoint, spec.output_endpoint, spec.dp_rank, spec.incarnation);
    link->send(RankReady{});
    std::vector<std::string> held;
    LoadSnapshot word;
    while (!stop_) {
      const auto message = link->receive(20ms);
      if (const auto* request = message ? std::get_if<GenerateRequest>(&*message) : nullptr) {
        held.push_back(request->rid);
        ++taken_;
        word.unix_nanos += 1;
        word.last_dispatch_seq = request->dispatch_seq;
        word.num_waiting_reqs += 1;
        word.num_waiting_tokens += std::ssize(request->input_ids);
        board_.publish(spec.dp_rank, word);
      }
      if (!answering_) continue;
      for (const auto& rid : std::exchange(held, {})) {
        link->send(OutputBatch{{{.rid = rid, .new_ids = {2}, .finish = {.kind = FinishKind::kLength}}}});
      }
    }
  }

  LoadBoard& board_;
  const std::atomic<bool>& answering_;
  std::atomic<int64_t> taken_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

class DpBurstTest : public DpControllerTest, public ::testing::WithParamInterface<LoadBalanceRow> {};

// Words reach the board whenever the ranks get to it, and are read every 20 ms: none may count twice or be missed.
TEST_P(DpBurstTest, TenThousandRequestsIn50MsOver64RanksAreWithinOneOfEven) {
  constexpr int64_t kRanks = 64;
  constexpr int kRequests = 10'000;
  constexpr size_t kPrompt = 16;
  auto launched = launch(kRanks, GetParam().name);
  std::atomic<bool> answering{false};
  std::map<int64_t, std::unique_ptr<BusyRank>> ranks;
  for (int64_t i = 0; i < kRanks; ++i) {
    auto spec = next_start();
    ASSERT_TRUE(spec);
    const int64_t number = spec->dp_rank;
    ranks[number] = std::make_unique<BusyRank>(std::move(*spec), *board_, answering);
  }
  controller_ = *launched.get();
  std::vector<int64_t> sent(kRanks);
  for (int32_t i = 0; i < kRequests; ++i) {
    // Of equal length, and without a prefix that another has.
    std::vector<int32_t> ids(kPrompt, i);
    const auto rid = std::to_string(i);
    const auto rank = controller_->submit({.rid = rid, .input_ids = std::move(ids)}, {}, sink_.of(rid));
    ASSERT_TRUE(rank.ok()) << rank.error().message;
    ++sent[static_cast<size_t>(*rank)];
    clock_.advance(50ms / kRequests);
  }
  const auto [least, most] = std::ranges::minmax(sent);
  EXPECT_LE(most - least, 1) << fmt::format("{}", fmt::join(sent, " "));
  answering = true;
  for (int i = 0; i < kRequests; ++i) ASSERT_EQ(sink_.end_of(std::to_string(i)).finish.kind, FinishKind::kLength);
  EXPECT_EQ(sink_.ended(), static_cast<size_t>(kRequests));
  EXPECT_TRUE(controller_->running().empty());
  for (const auto& [number, rank] : ranks) EXPECT_EQ(rank->taken(), sent[static_cast<size_t>(number)]) << number;
}

INSTANTIATE_TEST_SUITE_P(Registry, DpBurstTest, ::testing::ValuesIn(load_balance_methods()),
                         [](const auto& row) { return std::string(row.param.name); });

}  // namespace
}  // namespace sluice::engine
