#include "gateway/outcome.h"

#include <gtest/gtest.h>

#include "protocol/errors.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;

TEST(OutcomeTest, TellsBusyFromFault) {
  EXPECT_EQ(classify(429), Outcome::kBusy);
  EXPECT_EQ(classify(503, {{"Retry-After", "1"}}), Outcome::kBusy);
  EXPECT_EQ(classify(503, {}, R"({"object":"error","message":"The request queue is full.","code":503})"),
            Outcome::kBusy);
  EXPECT_EQ(classify(503), Outcome::kFault);
  EXPECT_EQ(classify(503, {}, "loading"), Outcome::kFault);
}

TEST(OutcomeTest, ReadsTheReasonOfAnErrorAndNotItsText) {
  EXPECT_EQ(ended_ranks(R"({"object":"error","message":"x","type":"500","code":500,"reason":"rank_ended"})"),
            EndedRanks::kOne);
  EXPECT_EQ(ended_ranks(R"({"error":{"message":"x","reason":"rank_ended"}})"), EndedRanks::kOne);
  EXPECT_EQ(ended_ranks(protocol::error_body(500, std::string(5000, '"'), protocol::kRankEndedReason)),
            EndedRanks::kOne);
  EXPECT_EQ(ended_ranks(protocol::error_event(503, "x", protocol::kRankEndedReason)), EndedRanks::kOne);
  for (const char* other :
       {"", "rank_ended", "[]", R"({"reason":"rank_ended")", R"({"reason":7})", R"({"reason":"queue_full"})",
        R"({"error":{"error":{"reason":"rank_ended"}}})", R"({"error":"rank_ended"})",
        R"({"message":"data-parallel rank 0 ended: killed by SIGKILL"})", R"({"message":""reason":"rank_ended""})"}) {
    EXPECT_EQ(ended_ranks(other), EndedRanks::kNone) << other;
  }
}

TEST(OutcomeTest, WhatEndedTwoRanksIsTheRequestsFault) {
  const auto outcome_of = [](std::string_view reason) {
    const std::string body = protocol::error_body(500, "x", reason);
    return classify(500, {}, body, ended_ranks(body));
  };
  EXPECT_EQ(outcome_of(protocol::kTwoRanksEndedReason), Outcome::kClientError);
  EXPECT_EQ(outcome_of(protocol::kRankEndedReason), Outcome::kFault);
}

TEST(OutcomeTest, OfAVeryLongErrorNoReasonIsRead) {
  for (const std::string_view reason : {protocol::kRankEndedReason, protocol::kTwoRanksEndedReason}) {
    const auto body_of = [&](size_t size) {
      const size_t rest = protocol::error_body(500, "", reason).size();
      return protocol::error_body(500, std::string(size - rest, 'x'), reason);
    };
    ASSERT_EQ(body_of(kLongestReasoned).size(), kLongestReasoned);
    EXPECT_NE(ended_ranks(body_of(kLongestReasoned)), EndedRanks::kNone);
    EXPECT_EQ(ended_ranks(body_of(kLongestReasoned + 1)), EndedRanks::kNone);
  }
}

TEST(OutcomeTest, TellsAnErrorThatTheRequestDeservesFromAFault) {
  for (const int status : {500, 502, 504}) EXPECT_EQ(classify(status), Outcome::kFault) << status;
  for (const int status : {400, 401, 404, 408, 413, 422, 501}) {
    EXPECT_EQ(classify(status), Outcome::kClientError) << status;
  }
  for (const int status : {200, 201, 204, 302}) EXPECT_EQ(classify(status), Outcome::kOk) << status;
}

TEST(OutcomeTest, RepeatsWhatTheReferenceRepeats) {
  for (int status = 200; status < 600; ++status) {
    const bool listed = status == 408 || status == 429 || status == 500 || (status >= 502 && status <= 504);
    EXPECT_EQ(is_retryable(status), listed) << status;
  }
}

TEST(OutcomeTest, ReadsRetryAfterInSecondsOnly) {
  EXPECT_EQ(retry_after({{"Retry-After", "7"}}), 7s);
  for (const char* odd : {"", "-1", "1.5", "7 s", "Wed, 21 Oct 2015 07:28:00 GMT", "99999999999999999999"}) {
    EXPECT_EQ(retry_after({{"Retry-After", odd}}), std::nullopt) << odd;
  }
  EXPECT_EQ(retry_after({}), std::nullopt);
}

TEST(OutcomeTest, NamesTheKindOfAnError) {
  EXPECT_EQ(error_type(400), "validation_error");
  EXPECT_EQ(error_type(404), "no_workers");
  EXPECT_EQ(error_type(504), "timeout");
  EXPECT_EQ(error_type(502), "backend_error");
  EXPECT_EQ(error_type(429), "internal_error");
}

}  // namespace
}  // namespace sluice::gateway
