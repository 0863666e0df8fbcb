#include "gateway/access_log.h"

#include <filesystem>
#include <fstream>

#include "gateway/gateway_fixture.h"

namespace sluice::gateway {
namespace {

using Form = AccessLog::Form;
using ::testing::HasSubstr;
using ::testing::Not;

obs::RequestRecord record() {
  obs::RequestRecord record;
  record.id = "mine";
  record.status = 200;
  record.outcome = "ok";
  record.attempts = 1;
  record.model = "m";
  record.started_unix_nanos = 1'700'000'000'123'456'789;
  record.took = std::chrono::milliseconds(250);
  record.phases = {{"first_byte", std::chrono::milliseconds(40)}};
  record.tries.resize(1);
  record.tries[0].worker = "http://w:1";
  record.answer_bytes = 12;
  record.prompt_bytes = 34;
  return record;
}

net::RequestHead head(std::string target) {
  net::RequestHead head;
  head.method = "POST";
  head.target = std::move(target);
  return head;
}

TEST(AccessLogLineTest, IsWords) {
  EXPECT_EQ(AccessLog::line_of(Form::kText, record(), head("/generate"), "10.0.0.1"),
            "time=2023-11-14T22:13:20.123456Z client=10.0.0.1 method=POST path=/generate status=200 outcome=ok "
            "took=0.250000 first_byte=0.040000 bytes=12 id=mine model=m worker=http://w:1 attempts=1 prompt_bytes=34");
}

TEST(AccessLogLineTest, OrJson) {
  auto with_usage = record();
  with_usage.prompt_tokens = 9;
  with_usage.cached_tokens = 8;
  with_usage.output_tokens = 7;
  const std::string line = AccessLog::line_of(Form::kJson, with_usage, head("/generate"), "10.0.0.1");
  const auto fields = nlohmann::json::parse(line);
  EXPECT_EQ(fields["took"], 0.25);
  EXPECT_EQ(fields["status"], 200);
  EXPECT_EQ(fields["worker"], "http://w:1");
  EXPECT_EQ(fields["cached_tokens"], 8);
  EXPECT_EQ(fields["time"], "2023-11-14T22:13:20.123456Z");
}

TEST(AccessLogLineTest, WhatAClientChoseStaysOneValue) {
  auto hostile = record();
  hostile.id = "a b\n\"status=500 \xff";
  const auto target = head("/x\x01y?api_key=secret");
  const std::string text = AccessLog::line_of(Form::kText, hostile, target, "c");
  EXPECT_THAT(text, HasSubstr(R"(id="a b\n\"status=500 )"));
  EXPECT_THAT(text, HasSubstr("path=\"/x\\u0001y\""));
  for (const std::string& line : {text, AccessLog::line_of(Form::kJson, hostile, target, "c")}) {
    EXPECT_THAT(line, Not(HasSubstr("secret")));
    EXPECT_EQ(line.find('\n'), std::string::npos);
  }
  EXPECT_EQ(nlohmann::json::parse(AccessLog::line_of(Form::kJson, hostile, target, "c"))["path"], "/x\x01y");
  hostile.id = std::string(100'000, 'x');
  EXPECT_LT(AccessLog::line_of(Form::kText, hostile, target, "c").size(), 1000u);
}

class AccessLogTest : public GatewayFixture {
 protected:
  AccessLogTest() {
    std::string name = ::testing::TempDir() + "access_log_XXXXXX";
    folder_ = mkdtemp(name.data());
    path_ = folder_ + "/access";
  }
  ~AccessLogTest() override { std::filesystem::remove_all(folder_); }

  std::vector<Json> lines() const {
    std::vector<Json> all;
    std::ifstream in(path_);
    for (std::string line; std::getline(in, line) && !in.eof();) all.push_back(Json::parse(line));
    return all;
  }

  std::string folder_, path_;
};

TEST_F(AccessLogTest, HasALineForEveryAnswer) {
  const SimWorker& one = worker();
  start({"--access-log", "json", "--access-log-file", path_, "--api-key", "k"});
  const net::Headers key{{"Authorization", "Bearer k"}};
  ++sent_;
  net::Headers named = key;
  named.add("x-request-id", "mine");
  ASSERT_EQ(call("POST", "/generate", body_of("the prompt", true), named)->status, 200);
  ASSERT_TRUE(eventually([&] { return lines().size() == 1; }));
  ASSERT_EQ(call("POST", "/generate", body_of("x"))->status, 401);
  ASSERT_EQ(call("GET", "/nowhere?q=secret", "", key)->status, 404);
  ASSERT_TRUE(eventually([&] { return lines().size() == 3; }));
  const auto all = lines();
  EXPECT_EQ(all[0]["id"], "mine");
  EXPECT_EQ(all[0]["path"], "/generate");
  EXPECT_EQ(all[0]["client"], "127.0.0.1");
  EXPECT_EQ(all[0]["worker"], one.url());
  EXPECT_EQ(all[0]["prompt_bytes"], std::string("the prompt").size());
  EXPECT_GT(all[0]["bytes"], 0);
  EXPECT_GE(all[0]["took"], all[0]["first_byte"]);
  EXPECT_EQ(all[0]["output_tokens"], 4);
  EXPECT_EQ(all[1]["status"], 401);
  EXPECT_EQ(all[2]["path"], "/nowhere");
  EXPECT_EQ(all[2]["error"], "unknown_url");
  std::ifstream in(path_);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  for (const char* hidden : {"the prompt", "secret", "Bearer"}) EXPECT_THAT(text, Not(HasSubstr(hidden)));
  EXPECT_EQ(metric("smg_log_dropped_lines"), 0);
  EXPECT_EQ(std::filesystem::status(path_).permissions() & std::filesystem::perms::others_write,
            std::filesystem::perms::none);
}

TEST_F(AccessLogTest, R29AFullDiskIsCountedAndTheServiceGoesOn) {
  worker();
  start({"--access-log", "text", "--access-log-file", "/dev/full"});
  for (int i = 0; i < 20; ++i) ASSERT_EQ(generate("x")->status, 200);
  EXPECT_TRUE(eventually([&] { return metric("smg_log_dropped_lines") >= 20; }));
  expect_settled();
}

TEST_F(AccessLogTest, AFileThatCannotBeOpenedEndsTheStart) {
  const auto options = gateway_option_table()
                           .parse({"--access-log", "text", "--access-log-file", folder_ + "/none/x", "--port", "0",
                                   "--prometheus-port", "0"})
                           .value();
  const auto gateway = Gateway::start(options, clock_);
  ASSERT_FALSE(gateway.ok());
  EXPECT_THAT(gateway.error().message, HasSubstr("--access-log-file: cannot write to"));
}

TEST(AccessLogOptionsTest, AFileWithoutALogIsAMistake) {
  const auto options = gateway_option_table().parse({"--access-log-file", "x"}).value();
  EXPECT_THAT(validate(options).error().message, HasSubstr("--access-log-file needs --access-log"));
}

}  // namespace
}  // namespace sluice::gateway
