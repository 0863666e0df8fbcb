#include "bench/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace sluice::bench {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using ::testing::Not;

Outcome answer() {
  Outcome outcome;
  outcome.ttft = 100ms;
  outcome.itl = {0.2f, 0.2f};
  outcome.output_len = 3;
  outcome.latency = 500ms;
  outcome.streamed = true;
  outcome.prompt_len = 10;
  outcome.prompt_len_reported = true;
  outcome.cached_tokens = 4;
  outcome.text = "a b c";
  return outcome;
}

Report report_of(const std::vector<Outcome>& outcomes) {
  Report report{.options = bench_option_table().defaults()};
  report.options.dataset_name = "random";
  report.summary = summarize(outcomes, 2s, {.cpu_seconds = 0.5});
  return report;
}

// Byte for byte what bench_serving prints for these figures, with the line of failed requests after the successful
// ones.
TEST(ReportTest, TableHasTheLayoutOfBenchServing) {
  EXPECT_EQ(table_of(report_of({answer()})),
            "============ Serving Benchmark Result ============\n"
            "Backend:                                 sglang    \n"
            "Traffic request rate:                    inf       \n"
            "Max request concurrency:                 not set   \n"
            "Successful requests:                     1         \n"
            "Failed requests:                         0         \n"
            "Benchmark duration (s):                  2.00      \n"
            "Total input tokens:                      10        \n"
            "Total input text tokens:                 10        \n"
            "Total generated tokens:                  3         \n"
            "Total generated tokens (retokenized):    n/a       \n"
            "Request throughput (req/s):              0.50      \n"
            "Input token throughput (tok/s):          5.00      \n"
            "Output token throughput (tok/s):         1.50      \n"
            "Peak output token throughput (tok/s):    3.00      \n"
            "Peak concurrent requests:                1         \n"
            "Total token throughput (tok/s):          6.50      \n"
            "Concurrency:                             0.25      \n"
            "----------------End-to-End Latency----------------\n"
            "Mean E2E Latency (ms):                   500.00    \n"
            "Median E2E Latency (ms):                 500.00    \n"
            "P90 E2E Latency (ms):                    500.00    \n"
            "P99 E2E Latency (ms):                    500.00    \n"
            "---------------Time to First Token----------------\n"
            "Mean TTFT (ms):                          100.00    \n"
            "Median TTFT (ms):                        100.00    \n"
            "P99 TTFT (ms):                           100.00    \n"
            "-----Time per Output Token (excl. 1st token)------\n"
            "Mean TPOT (ms):                          200.00    \n"
            "Median TPOT (ms):                        200.00    \n"
            "P99 TPOT (ms):                           200.00    \n"
            "---------------Inter-Token Latency----------------\n"
            "Mean ITL (ms):                           200.00    \n"
            "Median ITL (ms):                         200.00    \n"
            "P95 ITL (ms):                            200.00    \n"
            "P99 ITL (ms):                            200.00    \n"
            "Max ITL (ms):                            200.00    \n"
            "==================================================\n");
}

TEST(ReportTest, ShowsFailuresAndNoFigureThatWasNotMeasured) {
  Outcome failed;
  failed.error = "127.0.0.1:1: refused";
  const std::string table = table_of(report_of({failed, failed}));
  EXPECT_THAT(table, HasSubstr("Failed requests:                         2 "));
  EXPECT_THAT(table, HasSubstr("Mean TTFT (ms):                          n/a "));
  EXPECT_THAT(table, HasSubstr("Total generated tokens:                  n/a "));
  EXPECT_THAT(table, HasSubstr("2 of 2 requests failed:\n  2 x 127.0.0.1:1: refused\n"));
}

TEST(ReportTest, SaysWhichAnswersHaveNoTokenCount) {
  Outcome silent = answer();
  silent.output_len.reset();
  silent.prompt_len_reported = false;
  const std::string table = table_of(report_of({silent, answer()}));
  EXPECT_THAT(table, HasSubstr("Note: 1 of 2 answers did not say how many tokens they have"));
  EXPECT_THAT(table, HasSubstr("Note: 1 of 2 answers did not say how many tokens their prompt has"));
}

TEST(ReportTest, ShowsTheCacheAndTheDelayOfStampedChunksWhereAskedFor) {
  Outcome stamped = answer();
  stamped.chunk_delays = {0.001f, 0.003f};
  Report report = report_of({stamped});
  EXPECT_THAT(table_of(report), Not(HasSubstr("Cache Hit Details")));
  report.options.cache_report = true;
  report.options.request_rate = 4;
  report.options.max_concurrency = 16;
  const std::string table = table_of(report);
  EXPECT_THAT(table, HasSubstr("----------------Cache Hit Details-----------------\n"
                               "Total prompt tokens:                     10        \n"
                               "Total cached tokens:                     4         \n"
                               "Cache hit rate:                          40.0%\n"));
  EXPECT_THAT(table, HasSubstr("-------------Delay of Stamped Chunks--------------\n"
                               "Mean Chunk Delay (ms):                   2.00 "));
  EXPECT_THAT(table, HasSubstr("Traffic request rate:                    4.0 "));
  EXPECT_THAT(table, HasSubstr("Max request concurrency:                 16 "));
}

TEST(ReportTest, JsonHasTheKeysOfBenchServing) {
  Report report = report_of({answer()});
  report.server_info = R"({"version":"1"})";
  const auto json = json_of(report);
  for (const char* key : {"tag",
                          "backend",
                          "dataset_name",
                          "request_rate",
                          "max_concurrency",
                          "sharegpt_output_len",
                          "random_input_len",
                          "random_output_len",
                          "random_range_ratio",
                          "server_info",
                          "duration",
                          "completed",
                          "total_input_tokens",
                          "total_input_text_tokens",
                          "total_input_vision_tokens",
                          "total_output_tokens",
                          "total_output_tokens_retokenized",
                          "request_throughput",
                          "input_throughput",
                          "output_throughput",
                          "total_throughput",
                          "mean_e2e_latency_ms",
                          "median_e2e_latency_ms",
                          "std_e2e_latency_ms",
                          "p90_e2e_latency_ms",
                          "p99_e2e_latency_ms",
                          "mean_ttft_ms",
                          "median_ttft_ms",
                          "std_ttft_ms",
                          "p99_ttft_ms",
                          "mean_tpot_ms",
                          "median_tpot_ms",
                          "std_tpot_ms",
                          "p99_tpot_ms",
                          "mean_itl_ms",
                          "median_itl_ms",
                          "std_itl_ms",
                          "p95_itl_ms",
                          "p99_itl_ms",
                          "concurrency",
                          "accept_length",
                          "max_output_tokens_per_s",
                          "max_concurrent_requests"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_EQ(json["request_rate"], "inf");
  EXPECT_EQ(json["server_info"]["version"], "1");
  EXPECT_EQ(json["total_output_tokens"], 3);
  EXPECT_TRUE(json["total_output_tokens_retokenized"].is_null());
  EXPECT_DOUBLE_EQ(json["mean_ttft_ms"], 100);
  EXPECT_EQ(json["failed"], 0);
  EXPECT_EQ(json["options"]["random-input-len"], 1024);
}

TEST(ReportTest, JsonHasNullForWhatWasNotMeasured) {
  Outcome failed;
  failed.error = "refused";
  const auto json = json_of(report_of({failed}));
  EXPECT_TRUE(json["mean_ttft_ms"].is_null());
  EXPECT_TRUE(json["output_throughput"].is_null());
  EXPECT_TRUE(json["server_info"].is_null());
  EXPECT_EQ(json["error_counts"]["refused"], 1);
}

TEST(ReportTest, DetailsHaveOneValuePerRequest) {
  Outcome failed;
  failed.error = "refused";
  auto json = json_of(report_of({answer(), failed}));
  add_details(json, {answer(), failed});
  EXPECT_EQ(json["input_lens"].dump(), "[10,0]");
  EXPECT_EQ(json["output_lens"].dump(), "[3,0]");
  EXPECT_EQ(json["ttfts"].dump(), "[0.1,null]");
  EXPECT_EQ(json["itls"][0].size(), 2u);
  EXPECT_EQ(json["generated_texts"].dump(), R"(["a b c",""])");
  EXPECT_EQ(json["errors"].dump(), R"(["","refused"])");
}

TEST(ReportTest, KeepsKeysOutOfTheRecord) {
  Report report = report_of({answer()});
  report.options.header = {"Authorization=Bearer secret"};
  EXPECT_THAT(json_of(report).dump(), Not(HasSubstr("secret")));
}

}  // namespace
}  // namespace sluice::bench
