#include "gateway/engine_metrics.h"

#include <gtest/gtest.h>

namespace sluice::gateway {
namespace {

TEST(EngineMetricsTest, FamiliesAreMergedAndNamedAnew) {
  EngineMetrics metrics;
  metrics.add("http://a:1",
              "# HELP sglang:hits Hits: of all.\n# TYPE sglang:hits counter\nsglang:hits_total{m=\"x:y\"} 3\n"
              "# TYPE sglang:t histogram\nsglang:t_bucket{le=\"+Inf\"} 2\nsglang:t_sum 1.50\nsglang:t_count 2\n");
  metrics.add("http://b:2",
              "# TYPE sglang:t histogram\nsglang:t_sum 7\n# TYPE sglang:hits counter\nsglang:hits_total 4 99\n");
  EXPECT_EQ(metrics.text(),
            "# HELP sglang_hits Hits: of all.\n# TYPE sglang_hits counter\n"
            "sglang_hits_total{m=\"x:y\",worker_addr=\"http://a:1\"} 3\n"
            "sglang_hits_total{worker_addr=\"http://b:2\"} 4 99\n"
            "# TYPE sglang_t histogram\n"
            "sglang_t_bucket{le=\"+Inf\",worker_addr=\"http://a:1\"} 2\n"
            "sglang_t_sum{worker_addr=\"http://a:1\"} 1.50\n"
            "sglang_t_count{worker_addr=\"http://a:1\"} 2\n"
            "sglang_t_sum{worker_addr=\"http://b:2\"} 7\n");
}

TEST(EngineMetricsTest, LabelValuesMayHoldAnything) {
  EngineMetrics metrics;
  metrics.add("w", "m{a=\"}\",b=\"\\\"}\",c=\"x, y\",} 1\r\n");
  EXPECT_EQ(metrics.text(), "m{a=\"}\",b=\"\\\"}\",c=\"x, y\",worker_addr=\"w\"} 1\n");
}

TEST(EngineMetricsTest, WhatIsNoSampleIsLeftOut) {
  EngineMetrics metrics;
  metrics.add("w", "<html>\n{}\n9x 1\nm\nm{a=\"b\" 1\nm{a=\"\\\nok 1\n# EOF\n#\n# TYPE\n# TYPE empty gauge\nmé 1\n");
  EXPECT_EQ(metrics.text(), "ok{worker_addr=\"w\"} 1\n");
}

TEST(EngineMetricsTest, OneSeriesOfTwoSpellingsComesOnce) {
  EngineMetrics metrics;
  metrics.add("w", "a:b 1\na_b 2\n");
  EXPECT_EQ(metrics.text(), "a_b{worker_addr=\"w\"} 1\n");
}

}  // namespace
}  // namespace sluice::gateway
