#include "engine/codec.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "base/rng.h"

namespace sluice::engine {
namespace {

std::string draw_text(Rng& rng) {
  std::string text(rng.below(12), '\0');
  for (char& c : text) c = static_cast<char>(rng.below(256));
  return text;
}

std::vector<int32_t> draw_ids(Rng& rng) {
  std::vector<int32_t> ids(rng.below(20));
  for (auto& id : ids) id = static_cast<int32_t>(rng.next());
  return ids;
}

TokenLogprob draw_logprob(Rng& rng) {
  return {static_cast<float>(-10 * rng.uniform()), static_cast<int32_t>(rng.below(1000))};
}

std::vector<PositionLogprobs> draw_positions(Rng& rng) {
  std::vector<PositionLogprobs> positions(rng.below(4));
  for (auto& position : positions) {
    if (rng.below(2)) position.chosen = draw_logprob(rng);
    for (size_t i = rng.below(4); i > 0; --i) position.top.push_back(draw_logprob(rng));
    for (size_t i = rng.below(4); i > 0; --i) position.requested.push_back(draw_logprob(rng));
  }
  return positions;
}

ToRank draw_to_rank(Rng& rng) {
  switch (rng.below(3)) {
    case 0: {
      GenerateRequest m;
      m.rid = draw_text(rng);
      m.input_ids = draw_ids(rng);
      m.sampling.temperature = rng.uniform();
      m.sampling.max_new_tokens = static_cast<int64_t>(rng.next());
      for (size_t i = rng.below(3); i > 0; --i) m.sampling.stop.push_back(draw_text(rng));
      m.sampling.stop_token_ids = draw_ids(rng);
      m.sampling.ignore_eos = rng.below(2);
      if (rng.below(2)) m.sampling.seed = rng.next();
      for (size_t i = rng.below(3); i > 0; --i) m.sampling.logit_bias[static_cast<int32_t>(rng.next())] = rng.uniform();
      m.return_logprob = rng.below(2);
      m.token_ids_logprob = draw_ids(rng);
      m.extra_key = draw_text(rng);
      if (rng.below(2)) m.priority = static_cast<int64_t>(rng.next());
      m.routing_key = draw_text(rng);
      m.return_hidden_states = rng.below(2);
      m.return_routed_experts = rng.below(2);
      m.is_health_check = rng.below(2);
      m.input_embeds.resize(rng.below(9), static_cast<float>(rng.uniform()));
      m.dispatch_seq = rng.next();
      return m;
    }
    case 1:
      return AbortRequest{draw_text(rng), rng.below(2) == 1};
    default:
      return ControlRequest{rng.next(), static_cast<ControlKind>(rng.below(9)), draw_text(rng)};
  }
}

RankFrame draw_from_rank(Rng& rng) {
  RankFrame frame{.process = static_cast<int64_t>(rng.below(64)), .incarnation = rng.next()};
  switch (rng.below(7)) {
    case 0: {
      OutputBatch batch;
      batch.outputs.resize(rng.below(5));
      for (auto& out : batch.outputs) {
        out.rid = draw_text(rng);
        out.new_ids = draw_ids(rng);
        out.finish = {static_cast<FinishKind>(rng.below(5)), static_cast<int32_t>(rng.next()), draw_text(rng),
                      draw_text(rng), static_cast<int32_t>(rng.below(600))};
        out.cached_tokens = static_cast<int64_t>(rng.next());
        out.input_logprobs = draw_positions(rng);
        out.output_logprobs = draw_positions(rng);
        out.hidden_states.resize(rng.below(9), static_cast<float>(rng.uniform()));
        out.routed_experts = draw_ids(rng);
      }
      frame.message = batch;
      break;
    }
    case 1:
      frame.message = RankReady{.max_total_num_tokens = 7, .vocab_size = 49152, .weight_bytes = 1, .dtype = "f32"};
      break;
    case 2:
      frame.message = RankProgress{rng.uniform(), draw_text(rng)};
      break;
    case 3:
      frame.message = RankFailed{draw_text(rng)};
      break;
    case 4:
      frame.message = LoadReport{{.num_running_reqs = static_cast<int64_t>(rng.next()), .steps_total = rng.next()}};
      break;
    case 5:
      frame.message =
          moe::RankTokens{.layers = {1, 3}, .ranks = 2, .tokens = {4, static_cast<int64_t>(rng.next()), 0, 1}};
      break;
    default:
      frame.message = ControlReply{rng.next(), rng.below(2) == 1, draw_text(rng)};
  }
  return frame;
}

TEST(CodecTest, LoadReportKeepsEveryField) {
  LoadReport report;
  std::array<uint64_t, sizeof(LoadSnapshot) / 8> words;
  for (size_t i = 0; i < words.size(); ++i) words[i] = i + 1;
  std::memcpy(static_cast<void*>(&report.load), words.data(), sizeof(LoadSnapshot));
  const auto decoded = decode_from_rank(encode(RankFrame{.process = 3, .incarnation = 2, .message = report}));
  ASSERT_TRUE(decoded.ok()) << decoded.error().message;
  EXPECT_EQ(std::memcmp(&std::get<LoadReport>(decoded->message).load, words.data(), sizeof(LoadSnapshot)), 0);
}

TEST(CodecTest, RankTokensKeepEveryField) {
  const auto decoded = decode_from_rank(
      encode(RankFrame{.message = moe::RankTokens{.layers = {1, 3}, .ranks = 2, .tokens = {4, 5, 0, 1}}}));
  ASSERT_TRUE(decoded.ok()) << decoded.error().message;
  const auto& tokens = std::get<moe::RankTokens>(decoded->message);
  EXPECT_EQ(tokens.layers, (std::vector<int64_t>{1, 3}));
  EXPECT_EQ(tokens.ranks, 2);
  EXPECT_EQ(tokens.tokens, (std::vector<int64_t>{4, 5, 0, 1}));
}

TEST(CodecTest, GenerateRequestKeepsEveryField) {
  GenerateRequest m{.rid = "r",
                    .input_ids = {1, 2, 3},
                    .stream_interval = 5,
                    .return_logprob = true,
                    .logprob_start_len = 2,
                    .top_logprobs_num = 4,
                    .token_ids_logprob = {9},
                    .extra_key = "tenant",
                    .priority = -3,
                    .routing_key = "session",
                    .embed = true,
                    .dispatch_seq = 77};
  m.sampling = {.max_new_tokens = 11,
                .min_new_tokens = 2,
                .temperature = 0.25,
                .top_p = 0.5,
                .top_k = 40,
                .min_p = 0.125,
                .frequency_penalty = 0.75,
                .presence_penalty = -0.5,
                .repetition_penalty = 1.5,
                .stop = {"a", "bc"},
                .stop_token_ids = {5, 6},
                .ignore_eos = true,
                .seed = 99,
                .logit_bias = {{3, -1.5}, {4, 2.0}},
                .grammar_kind = GrammarKind::kEbnf,
                .grammar = "root ::= \"a\"",
                .grammar_field = "ebnf",
                .grammar_after = 17,
                .stop_regex = {"a+"}};
  auto decoded = decode_to_rank(encode(ToRank(m)));
  ASSERT_TRUE(decoded.ok());
  const auto& got = std::get<GenerateRequest>(*decoded);
  EXPECT_EQ(got.rid, m.rid);
  EXPECT_EQ(got.input_ids, m.input_ids);
  EXPECT_EQ(got.stream_interval, 5);
  EXPECT_TRUE(got.return_logprob);
  EXPECT_EQ(got.logprob_start_len, 2);
  EXPECT_EQ(got.top_logprobs_num, 4);
  EXPECT_EQ(got.token_ids_logprob, m.token_ids_logprob);
  EXPECT_EQ(got.extra_key, "tenant");
  EXPECT_EQ(got.priority, -3);
  EXPECT_EQ(got.routing_key, "session");
  EXPECT_EQ(got.dispatch_seq, 77u);
  EXPECT_EQ(got.sampling.max_new_tokens, 11);
  EXPECT_EQ(got.sampling.min_new_tokens, 2);
  EXPECT_EQ(got.sampling.temperature, 0.25);
  EXPECT_EQ(got.sampling.top_p, 0.5);
  EXPECT_EQ(got.sampling.top_k, 40);
  EXPECT_EQ(got.sampling.min_p, 0.125);
  EXPECT_EQ(got.sampling.frequency_penalty, 0.75);
  EXPECT_EQ(got.sampling.presence_penalty, -0.5);
  EXPECT_EQ(got.sampling.repetition_penalty, 1.5);
  EXPECT_EQ(got.sampling.stop, m.sampling.stop);
  EXPECT_EQ(got.sampling.stop_token_ids, m.sampling.stop_token_ids);
  EXPECT_TRUE(got.sampling.ignore_eos);
  EXPECT_EQ(got.sampling.seed, 99u);
  EXPECT_EQ(got.sampling.logit_bias, m.sampling.logit_bias);
  EXPECT_EQ(got.sampling.grammar_kind, GrammarKind::kEbnf);
  EXPECT_EQ(got.sampling.grammar, m.sampling.grammar);
  EXPECT_EQ(got.sampling.grammar_field, "ebnf");
  EXPECT_EQ(got.sampling.grammar_after, 17);
  EXPECT_EQ(got.sampling.stop_regex, m.sampling.stop_regex);
  EXPECT_TRUE(got.embed);
}

TEST(CodecTest, OutputsKeepEveryField) {
  RequestOutput out{.rid = "r",
                    .new_ids = {4},
                    .finish = {FinishKind::kStopString, 3, "stop", "why", 503},
                    .prompt_tokens = 10,
                    .completion_tokens = 1,
                    .cached_tokens = 9,
                    .retractions = 2,
                    .times = {11, 12, 0.5, 0.25},
                    .embedding = {0.5f, -0.25f}};
  out.input_logprobs.resize(2);
  out.output_logprobs.push_back(
      {.chosen = TokenLogprob{-0.5f, 4}, .top = {{-0.5f, 4}, {-2.f, 6}}, .requested = {{-3.f, 7}}});
  auto decoded = decode_from_rank(encode(RankFrame{3, 8, OutputBatch{{out}}}));
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded->process, 3);
  EXPECT_EQ(decoded->incarnation, 8u);
  const auto& got = std::get<OutputBatch>(decoded->message).outputs.at(0);
  EXPECT_EQ(got.rid, "r");
  EXPECT_EQ(got.new_ids, out.new_ids);
  EXPECT_EQ(got.finish.kind, FinishKind::kStopString);
  EXPECT_EQ(got.finish.matched_token, 3);
  EXPECT_EQ(got.finish.matched_string, "stop");
  EXPECT_EQ(got.finish.message, "why");
  EXPECT_EQ(got.finish.status_code, 503);
  EXPECT_EQ(got.embedding, out.embedding);
  EXPECT_EQ(got.prompt_tokens, 10);
  EXPECT_EQ(got.completion_tokens, 1);
  EXPECT_EQ(got.cached_tokens, 9);
  EXPECT_EQ(got.retractions, 2);
  EXPECT_EQ(got.times.begun_unix_nanos, 11);
  EXPECT_EQ(got.times.prefilled_unix_nanos, 12);
  EXPECT_EQ(got.times.queue, 0.5);
  EXPECT_EQ(got.times.prefill, 0.25);
  ASSERT_EQ(got.input_logprobs.size(), 2u);
  EXPECT_FALSE(got.input_logprobs[0].chosen);
  ASSERT_EQ(got.output_logprobs.size(), 1u);
  EXPECT_EQ(got.output_logprobs[0].chosen->token_id, 4);
  EXPECT_EQ(got.output_logprobs[0].top[1].token_id, 6);
  EXPECT_EQ(got.output_logprobs[0].requested[0].logprob, -3.f);
}

TEST(CodecTest, WhatIsDecodedEncodesToTheSameBytes) {
  Rng rng(/*seed=*/11);
  for (int i = 0; i < 3000; ++i) {
    const std::string to = encode(draw_to_rank(rng));
    auto decoded_to = decode_to_rank(to);
    ASSERT_TRUE(decoded_to.ok()) << decoded_to.error().message;
    EXPECT_EQ(encode(*decoded_to), encode(*decode_to_rank(encode(*decoded_to))));
    const std::string from = encode(draw_from_rank(rng));
    auto decoded_from = decode_from_rank(from);
    ASSERT_TRUE(decoded_from.ok()) << decoded_from.error().message;
    EXPECT_EQ(encode(*decoded_from), from);
  }
}

TEST(CodecTest, EveryTruncationAndEveryTailIsAnError) {
  Rng rng(/*seed=*/12);
  for (int i = 0; i < 300; ++i) {
    const std::string to = encode(draw_to_rank(rng));
    for (size_t n = 0; n < to.size(); ++n) ASSERT_FALSE(decode_to_rank(std::string_view(to).substr(0, n)).ok());
    EXPECT_FALSE(decode_to_rank(to + '\0').ok());
    const std::string from = encode(draw_from_rank(rng));
    for (size_t n = 0; n < from.size(); ++n) ASSERT_FALSE(decode_from_rank(std::string_view(from).substr(0, n)).ok());
    EXPECT_FALSE(decode_from_rank(from + '\0').ok());
  }
}

TEST(CodecTest, DamagedFramesNeitherCrashNorAskForMoreMemoryThanTheyJustify) {
  Rng rng(/*seed=*/13);
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string frame = i % 2 ? encode(draw_to_rank(rng)) : encode(draw_from_rank(rng));
    for (size_t flips = 1 + rng.below(4); flips > 0; --flips) {
      frame[rng.below(frame.size())] ^= static_cast<char>(1 << rng.below(8));
    }
    if (rng.below(4) == 0) frame.resize(rng.below(frame.size() + 1));
    if (i % 2 ? !decode_to_rank(frame).ok() : !decode_from_rank(frame).ok()) ++refused;
  }
  EXPECT_GT(refused, 1000);
}

TEST(CodecTest, AnotherVersionIsNamed) {
  std::string frame = encode(ToRank(AbortRequest{"x"}));
  frame[2] = 9;
  auto decoded = decode_to_rank(frame);
  ASSERT_FALSE(decoded.ok());
  EXPECT_EQ(decoded.error().code, ErrorCode::kProtocol);
  EXPECT_NE(decoded.error().message.find("version 9"), std::string::npos);
}

}  // namespace
}  // namespace sluice::engine
