#include "bench/reply_meter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/fake_clock.h"

namespace sluice::bench {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::FloatNear;
using ::testing::HasSubstr;

class ReplyMeterTest : public ::testing::Test {
 protected:
  void start(Api api, bool stream = true) {
    meter_.emplace(ReplyMeter::Options{.api = api, .stream = stream, .keep_text = true}, clock_.now());
  }
  void after(Duration wait, std::string_view bytes) {
    clock_.advance(wait);
    meter_->feed(bytes, clock_.now());
  }
  Outcome finish() {
    Outcome outcome;
    meter_->finish(clock_.now(), outcome);
    return outcome;
  }

  testing::FakeClock clock_;
  std::optional<ReplyMeter> meter_;
};

TEST_F(ReplyMeterTest, SpreadsAGapOfGenerateOverItsTokens) {
  start(Api::kGenerate);
  after(100ms, "data: {\"text\":\"\",\"meta_info\":{\"completion_tokens\":1}}\n\n");  // half a character: no text yet
  after(20ms,
        "data: "
        "{\"text\":\"a\",\"meta_info\":{\"id\":\"sim-7-1\",\"prompt_tokens\":5,\"completion_tokens\":2,\"cached_"
        "tokens\":3}}\n\n");
  after(60ms, "data: {\"text\":\"a b c\",\"meta_info\":{\"completion_tokens\":5}}\n\n");
  after(
      10ms,
      "data: {\"text\":\"a b c\",\"meta_info\":{\"completion_tokens\":5,\"finish_reason\":{\"type\":\"length\"}}}\n\n");
  after(10ms, "data: [DONE]\n\n");
  const Outcome outcome = finish();
  EXPECT_EQ(outcome.error, "");
  EXPECT_EQ(outcome.ttft, 120ms);
  EXPECT_THAT(outcome.itl, ElementsAre(FloatNear(0.02f, 1e-6f), FloatNear(0.02f, 1e-6f), FloatNear(0.02f, 1e-6f)));
  EXPECT_EQ(outcome.latency, 200ms);
  EXPECT_EQ(outcome.prompt_len, 5);
  EXPECT_EQ(outcome.answer_id, "sim-7-1");
  EXPECT_EQ(outcome.output_len, 5);
  EXPECT_EQ(outcome.cached_tokens, 3);
  EXPECT_EQ(outcome.text, "a b c");
}

TEST_F(ReplyMeterTest, CountsAChunkOfACompletionAsOneTokenAndTakesTheTotalFromUsage) {
  start(Api::kCompletions);
  after(50ms, "data: {\"choices\":[{\"index\":0,\"text\":\"a \\\"b\"}],\"usage\":null}\n\n");
  after(30ms, "data: {\"choices\":[{\"text\":\" c\",\"finish_reason\":\"length\"}]}\n\n");
  after(5ms,
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4,"
        "\"prompt_tokens_details\":{\"cached_tokens\":2}}}\n\ndata: [DONE]\n\n");
  const Outcome outcome = finish();
  EXPECT_EQ(outcome.error, "");
  EXPECT_EQ(outcome.ttft, 50ms);
  EXPECT_THAT(outcome.itl, ElementsAre(FloatNear(0.03f, 1e-6f)));
  EXPECT_EQ(outcome.latency, 85ms);
  EXPECT_EQ(outcome.prompt_len, 9);
  EXPECT_EQ(outcome.output_len, 4);
  EXPECT_EQ(outcome.cached_tokens, 2);
  EXPECT_EQ(outcome.text, "a \"b c");
}

TEST_F(ReplyMeterTest, TheRoleAndTheEndOfAChatAreNoText) {
  start(Api::kChat);
  after(10ms, "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n");
  after(10ms, "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n");
  after(10ms, "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"y\",\"content\":null}}]}\n\n");
  after(10ms, "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n");
  const Outcome outcome = finish();
  EXPECT_EQ(outcome.error, "");
  EXPECT_EQ(outcome.ttft, 20ms);
  EXPECT_EQ(outcome.itl.size(), 1u);
  EXPECT_EQ(outcome.latency, 40ms);
  EXPECT_FALSE(outcome.output_len);  // nobody said
  EXPECT_FALSE(outcome.prompt_len_reported);
}

TEST_F(ReplyMeterTest, ReadsEventsInAnySplit) {
  const std::string stream =
      "data: {\"text\":\"a\",\"meta_info\":{\"completion_tokens\":1}}\n\n"
      "data: {\"text\":\"a b\",\"meta_info\":{\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
  for (size_t split = 1; split < stream.size(); ++split) {
    start(Api::kGenerate);
    after(1ms, stream.substr(0, split));
    after(1ms, stream.substr(split));
    const Outcome outcome = finish();
    ASSERT_EQ(outcome.error, "") << split;
    ASSERT_EQ(outcome.output_len, 2) << split;
    ASSERT_EQ(outcome.text, "a b") << split;
  }
}

TEST_F(ReplyMeterTest, ReadsAWholeAnswer) {
  start(Api::kChat, /*stream=*/false);
  after(10ms, "{\"choices\":[{\"message\":{\"role\":\"assistant\",\"content\":\"hi\"},\"finish_reason\":\"stop\"}],");
  after(10ms, "\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}");
  const Outcome outcome = finish();
  EXPECT_EQ(outcome.error, "");
  EXPECT_FALSE(outcome.streamed);
  EXPECT_EQ(outcome.ttft, 20ms);
  EXPECT_EQ(outcome.latency, 20ms);
  EXPECT_EQ(outcome.output_len, 1);
  EXPECT_EQ(outcome.text, "hi");
}

TEST_F(ReplyMeterTest, AStreamThatStopsShortHasFailed) {
  start(Api::kGenerate);
  after(1ms, "data: {\"text\":\"a\",\"meta_info\":{\"completion_tokens\":1}}\n\n");
  EXPECT_EQ(finish().error, "the stream ended without [DONE]");
}

TEST_F(ReplyMeterTest, AnErrorWithinAStreamIsAFailure) {
  start(Api::kCompletions);
  after(1ms, "data: {\"error\":{\"message\":\"worker died\",\"code\":502}}\n\ndata: [DONE]\n\n");
  EXPECT_THAT(finish().error, HasSubstr("worker died"));
}

TEST_F(ReplyMeterTest, AnAbortedAnswerIsAFailure) {
  start(Api::kGenerate);
  after(1ms,
        "data: {\"text\":\"a\",\"meta_info\":{\"completion_tokens\":1,\"finish_reason\":"
        "{\"type\":\"abort\",\"message\":\"out of memory\"}}}\n\ndata: [DONE]\n\n");
  EXPECT_EQ(finish().error, "the server aborted it: out of memory");
}

TEST_F(ReplyMeterTest, WhatIsNotJsonIsAFailure) {
  start(Api::kGenerate);
  after(1ms, "data: hello\n\ndata: [DONE]\n\n");
  EXPECT_THAT(finish().error, HasSubstr("hello"));
  start(Api::kGenerate, /*stream=*/false);
  after(1ms, "<html>");
  EXPECT_THAT(finish().error, HasSubstr("<html>"));
}

TEST_F(ReplyMeterTest, MeasuresTheDelayOfStampedChunks) {
  start(Api::kGenerate);
  clock_.advance(10ms);
  const auto stamp = clock_.now().time_since_epoch().count();
  after(3ms,
        fmt::format("data: {{\"sent_at_ns\":{},\"text\":\"a\",\"meta_info\":{{\"completion_tokens\":1}}}}\n\n", stamp));
  after(1ms, "data: [DONE]\n\n");
  EXPECT_THAT(finish().chunk_delays, ElementsAre(FloatNear(0.003f, 1e-6f)));
}

}  // namespace
}  // namespace sluice::bench
