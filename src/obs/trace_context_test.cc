#include "obs/trace_context.h"

#include <gtest/gtest.h>

namespace sluice::obs {
namespace {

constexpr std::string_view kParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

TEST(TraceContextTest, ReadsAndWritesTheSame) {
  const auto context = parse_traceparent(kParent);
  ASSERT_TRUE(context);
  EXPECT_EQ(to_hex(context->trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(to_hex(context->span_id), "00f067aa0ba902b7");
  EXPECT_TRUE(context->sampled);
  EXPECT_EQ(context->to_header(), kParent);
}

TEST(TraceContextTest, ReadsTheSampledFlagAndNoOther) {
  const std::string head(kParent.substr(0, 53));
  EXPECT_FALSE(parse_traceparent(head + "00")->sampled);
  EXPECT_FALSE(parse_traceparent(head + "02")->sampled);
  EXPECT_TRUE(parse_traceparent(head + "03")->sampled);
}

TEST(TraceContextTest, RefusesWhatIsMalformed) {
  for (const char* text : {"", "00", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", "nonsense",
                           "00-00000000000000000000000000000000-00f067aa0ba902b7-01",   // no trace
                           "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",   // no span
                           "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",   // upper case
                           "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",   // no digit
                           "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",   // no dash
                           "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",   // the version that cannot be
                           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",  // version 0 has no more
                           "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x"}) {
    EXPECT_FALSE(parse_traceparent(text)) << text;
  }
}

TEST(TraceContextTest, ALaterVersionMayHaveMore) {
  const auto context = parse_traceparent("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more");
  ASSERT_TRUE(context);
  EXPECT_EQ(context->to_header(), kParent);
}

TEST(TraceContextTest, NumbersBecomeValidIds) {
  EXPECT_EQ(to_hex(span_id_of(0x0123456789abcdef)), "0123456789abcdef");
  EXPECT_EQ(to_hex(span_id_of(0)), "0000000000000001");
  EXPECT_EQ(to_hex(trace_id_of(0, 0)), "00000000000000000000000000000001");
}

}  // namespace
}  // namespace sluice::obs
