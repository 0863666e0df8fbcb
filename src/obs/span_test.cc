#include "obs/span.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace sluice::obs {
namespace {

using std::chrono::milliseconds;

// A stream whose first attempt was refused.
RequestRecord retried() {
  RequestRecord record;
  record.id = "mine";
  record.method = "POST";
  record.route = "/v1/chat/completions";
  record.model = "m";
  record.outcome = "ok";
  record.status = 200;
  record.attempts = 2;
  record.started_unix_nanos = 1'000'000'000;
  record.took = milliseconds(90);
  record.output_tokens = 7;
  record.phases = {{"admitted", milliseconds(1)}, {"read", milliseconds(2)},  {"chosen", milliseconds(3)},
                   {"chosen", milliseconds(10)},  {"sent", milliseconds(12)}, {"first_byte", milliseconds(30)},
                   {"finished", milliseconds(80)}};
  record.tries.resize(2);
  record.tries[0].worker = "http://a";
  record.tries[0].failed_at = milliseconds(5);
  record.tries[0].error = "refused";
  record.tries[1].worker = "http://b";
  record.trace = parse_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
  record.parent_span = span_id_of(5);
  return record;
}

std::vector<std::string> names_of(const std::vector<Span>& spans) {
  std::vector<std::string> names;
  for (const Span& span : spans) names.push_back(span.name);
  return names;
}

const std::variant<std::string, int64_t, double>* find(const Span& span, std::string_view key) {
  const auto at = std::ranges::find(span.attributes, key, &Attribute::key);
  return at == span.attributes.end() ? nullptr : &at->value;
}

TEST(SpanTest, ARequestIsOneSpanWithOneForEachPhaseOfEachAttempt) {
  const auto spans = spans_of(retried());
  EXPECT_THAT(names_of(spans), testing::ElementsAre("POST /v1/chat/completions", "queue", "read", "choose", "connect",
                                                    "choose", "connect", "first byte", "stream"));
  const Span& root = spans[0];
  EXPECT_EQ(root.kind, Span::Kind::kServer);
  EXPECT_EQ(to_hex(root.parent), "0000000000000005");
  EXPECT_EQ(to_hex(root.id), "00f067aa0ba902b7");
  EXPECT_EQ(root.end_unix_nanos - root.begin_unix_nanos, 90'000'000);
  EXPECT_EQ(root.status, Span::Status::kUnset);
  EXPECT_EQ(std::get<std::string>(*find(root, "gen_ai.operation.name")), "chat");
  EXPECT_EQ(std::get<std::string>(*find(root, "url.scheme")), "http");
  EXPECT_EQ(std::get<int64_t>(*find(root, "gen_ai.usage.output_tokens")), 7);
  EXPECT_EQ(find(root, "gen_ai.usage.input_tokens"), nullptr) << "the worker did not say";
  EXPECT_EQ(find(root, "error.type"), nullptr);
  std::set<SpanId> ids;
  for (const Span& span : spans) {
    EXPECT_EQ(span.trace_id, root.trace_id);
    if (&span != &root) {
      EXPECT_EQ(span.parent, root.id);
    }
    EXPECT_TRUE(ids.insert(span.id).second);
  }
}

TEST(SpanTest, AnAttemptThatFailedIsAnErrorOfItsLastPhase) {
  const auto spans = spans_of(retried());
  const Span& refused = spans[4];
  EXPECT_EQ(refused.begin_unix_nanos, 1'003'000'000);
  EXPECT_EQ(refused.end_unix_nanos, 1'005'000'000);
  EXPECT_EQ(refused.status, Span::Status::kError);
  EXPECT_EQ(refused.message, "refused");
  EXPECT_EQ(std::get<std::string>(*find(refused, "sluice.worker")), "http://a");
  const Span& again = spans[5];
  EXPECT_EQ(again.begin_unix_nanos, refused.end_unix_nanos);
  EXPECT_EQ(std::get<std::string>(*find(again, "sluice.worker")), "http://b");
}

TEST(SpanTest, ErrorsOfTheServerAreErrorsAndThoseOfClientsAreNot) {
  RequestRecord record = retried();
  record.status = 503;
  record.error_code = "no_available_workers";
  EXPECT_EQ(spans_of(record)[0].status, Span::Status::kError);
  EXPECT_EQ(std::get<std::string>(*find(spans_of(record)[0], "error.type")), "no_available_workers");
  record.status = 400;
  EXPECT_EQ(spans_of(record)[0].status, Span::Status::kUnset);
  record.status = 200;
  record.error_code = "stream_error";
  EXPECT_EQ(spans_of(record)[0].status, Span::Status::kError);
}

TEST(SpanTest, AClientThatLeavesEndsThePhaseThatItLeft) {
  RequestRecord record = retried();
  record.phases.resize(5);  // sent
  record.status = 0;
  record.outcome = "client_gone";
  const auto spans = spans_of(record);
  EXPECT_EQ(spans.back().name, "first byte");
  EXPECT_EQ(spans.back().end_unix_nanos, 1'090'000'000);
  EXPECT_EQ(std::get<std::string>(*find(spans[0], "error.type")), "client_gone");
}

TEST(SpanTest, ARequestThatWasTurnedAwayHasItsQueueOnly) {
  RequestRecord record = retried();
  record.phases.clear();
  record.tries.clear();
  record.status = 429;
  EXPECT_THAT(names_of(spans_of(record)), testing::ElementsAre("POST /v1/chat/completions", "queue"));
}

}  // namespace
}  // namespace sluice::obs
