#include "cli/serve_workers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/ready_pipe.h"
#include "engine/rank.h"

namespace sluice::cli {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::Not;

std::vector<ProcessOptions> workers(Arguments arguments, std::vector<uint16_t> ports, int64_t cores, int fd = -1) {
  arguments.insert(arguments.begin(), {"--model-path", "m"});
  return serve_workers(parse_serve(arguments).value(), ports, cores, fd);
}

TEST(ServeWorkersTest, EachIsAServerOnItsPortWithTheEnginesFlags) {
  const auto all = workers({"--dp-size", "2", "--context-length", "64", "--port", "80", "--router-policy", "random"},
                           {31000, 31002}, 2);
  ASSERT_EQ(all.size(), 2u);
  EXPECT_THAT(all[1].arguments, ElementsAre("server", "--model-path=m", "--context-length=64", "--dp-size=1",
                                            "--host=127.0.0.1", "--port=31002", "--threads=1"));
  EXPECT_EQ(all[1].environment.at(engine::kHostWorkersVariable), "2");
  EXPECT_TRUE(all[1].stdout_to_stderr);
}

TEST(ServeWorkersTest, DividesTheCoresAndGivesTheRestToTheFirst) {
  const auto threads = [](const std::vector<ProcessOptions>& all) {
    std::vector<std::string> words;
    for (const auto& worker : all) words.push_back(worker.arguments.back());
    return words;
  };
  EXPECT_THAT(threads(workers({}, {1, 2, 3}, 8)), ElementsAre("--threads=3", "--threads=3", "--threads=2"));
  EXPECT_THAT(threads(workers({}, {1, 2}, 1)), ElementsAre("--threads=1", "--threads=1"));
  EXPECT_THAT(threads(workers({"--threads", "5"}, {1, 2}, 8)), ElementsAre("--threads=5", "--threads=5"));
}

TEST(ServeWorkersTest, OfSeveralRanksEachHasTheGroupsAndRanksDivideTheCores) {
  const auto all = workers({"--tp", "4", "--dp-size", "2", "--enable-dp-attention", "--replicas", "2"}, {1, 2}, 16);
  for (const auto& worker : all) {
    EXPECT_THAT(worker.arguments, Contains("--dp-size=2"));
    EXPECT_EQ(worker.arguments.back(), "--threads=2");
  }
}

TEST(ServeWorkersTest, EachPublishesKvEventsAtPortsOfItsOwn) {
  const auto all = workers({"--dp-size", "3", "--kv-events-config", R"({"publisher":"zmq","endpoint":"tcp://*:7000"})"},
                           {1, 2, 3}, 3);
  EXPECT_THAT(all[0].arguments, Contains(R"(--kv-events-config={"publisher":"zmq","endpoint":"tcp://*:7000"})"));
  EXPECT_THAT(all[2].arguments, Contains(R"(--kv-events-config={"publisher":"zmq","endpoint":"tcp://*:7002"})"));
}

TEST(ServeWorkersTest, AllGetTheOneFileForTheWeights) {
  for (const auto& worker : workers({}, {1, 2}, 2, 9)) EXPECT_EQ(worker.descriptors.at(kWeightsVariable), 9);
  EXPECT_TRUE(workers({}, {1}, 2)[0].descriptors.empty());
}

}  // namespace
}  // namespace sluice::cli
