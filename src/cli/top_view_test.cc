#include "cli/top_view.h"

#include <gtest/gtest.h>

namespace sluice::cli {
namespace {

TEST(TopViewTest, ShowsTheRanksOfAnEngineAndTheirSum) {
  const auto view = top_view("http://e:1",
                             R"({"loads":[
      {"dp_rank":0,"num_running_reqs":3,"num_waiting_reqs":2,"num_used_tokens":400,"max_total_num_tokens":1000,
       "gen_throughput":12.5,"prompt_tokens_total":90,"cached_tokens_total":30},
      {"dp_rank":1,"num_running_reqs":0,"num_waiting_reqs":0,"num_used_tokens":0,"max_total_num_tokens":1000,
       "gen_throughput":0.0,"prompt_tokens_total":10,"cached_tokens_total":0}]})",
                             0);
  ASSERT_TRUE(view.ok()) << view.error().message;
  EXPECT_EQ(*view,
            "http://e:1: 2 ranks, 3 running, 2 waiting, KV 20 %, 12.5 tokens/s, 30 % of prompts cached\n"
            "\n"
            "rank  running  waiting     KV used    KV total     KV  tokens/s  cached\n"
            "   0        3        2         400        1000   40 %      12.5    33 %\n"
            "   1        0        0           0        1000    0 %       0.0     0 %\n");
}

TEST(TopViewTest, ShowsTheWorkersOfAGatewayAndDashesForWhatIsNotSaid) {
  const auto view = top_view("http://g:2", R"({"loads":[{"worker":"http://w\u001b[2J:1","num_waiting_reqs":1}]})", 40);
  ASSERT_TRUE(view.ok()) << view.error().message;
  EXPECT_EQ(*view,
            "http://g:2: 1 rank, - running, 1 waiting\n"
            "\n"
            "worker          rank  running  waiting  \n"
            "http://w?[2J:1              -        1  \n");
}

TEST(TopViewTest, WhatIsNoListOfLoadsIsSaidToBeNone) {
  for (const char* text : {"", "[]", "{}", R"({"loads":{}})"}) {
    const auto view = top_view("http://x", text, 0);
    ASSERT_FALSE(view.ok()) << text;
    EXPECT_EQ(view.error().message, "http://x/v1/loads is no list of loads");
  }
}

}  // namespace
}  // namespace sluice::cli
