#include "cli/supervisor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "testing/raw_listener.h"

namespace sluice::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ProcessOptions shell(std::string script) { return {.program = "/bin/sh", .arguments = {"-c", std::move(script)}}; }

const std::string kReady = R"(echo '{"status":"ready","url":"http://w"}' > /dev/fd/$SLUICE_READY_FD; )";

// Records events, and ends run() when it has seen what the test waits for.
class Recorder final : public Supervisor::Listener {
 public:
  Recorder() : stop_(::eventfd(0, EFD_CLOEXEC)) {}
  ~Recorder() override { ::close(stop_); }

  void on_progress(size_t worker, double share, const std::string& what) override {
    add(fmt::format("{} {} {}", worker, share, what));
  }
  void on_ready(size_t worker, const std::string& url) override { add(fmt::format("{} ready {}", worker, url)); }
  void on_down(size_t worker, const std::string& cause, std::optional<Duration> restart_in) override {
    add(fmt::format("{} down {} {}", worker, cause, restart_in ? "restarts" : "never"));
  }

  void stop_after(size_t events) { wanted_ = events; }
  int descriptor() const { return stop_; }
  std::vector<std::string> events;

 private:
  void add(std::string event) {
    if (events.size() == wanted_ && wanted_ != 0) return;  // run() may see one more before it looks at the descriptor
    events.push_back(std::move(event));
    const uint64_t one = 1;
    if (events.size() != wanted_) return;
    EXPECT_EQ(::write(stop_, &one, sizeof one), 8);
  }

  int stop_;
  size_t wanted_ = 0;
};

Supervisor::Options quick() {
  return {.answer_timeout = Duration{0},  // most of the URLs are none
          .backoff = {.first = std::chrono::milliseconds(1), .max = std::chrono::milliseconds(4)}};
}

TEST(SupervisorTest, ReportsProgressAndReadiness) {
  Recorder recorder;
  recorder.stop_after(2);
  Supervisor supervisor(
      {shell(R"(echo '{"status":"progress","share":0.5,"what":"loading"}' > /dev/fd/$SLUICE_READY_FD; )" + kReady +
             "exec sleep 100")},
      quick(), recorder);
  ASSERT_TRUE(supervisor.run(recorder.descriptor()).ok());
  EXPECT_THAT(recorder.events, ElementsAre("0 0.5 loading", "0 ready http://w"));
}

TEST(SupervisorTest, RestartsAWorkerThatEnds) {
  Recorder recorder;
  recorder.stop_after(5);
  Supervisor supervisor({shell(kReady + "echo out of luck >&2; exit 3")}, quick(), recorder);
  ASSERT_TRUE(supervisor.run(recorder.descriptor()).ok());
  EXPECT_THAT(recorder.events,
              ElementsAre("0 ready http://w", "0 down exit 3: out of luck restarts", "0 ready http://w",
                          "0 down exit 3: out of luck restarts", "0 ready http://w"));
}

TEST(SupervisorTest, LeavesItDownWhereRestartIsOff) {
  Recorder recorder;
  recorder.stop_after(2);
  auto options = quick();
  options.restart = false;
  Supervisor supervisor({shell(kReady + "echo all is well >&2; kill -9 $$")}, options, recorder);
  ASSERT_TRUE(supervisor.run(recorder.descriptor()).ok());
  EXPECT_THAT(recorder.events, ElementsAre("0 ready http://w", "0 down killed by SIGKILL never"));
}

TEST(SupervisorTest, AWorkerThatCannotStartEndsTheLaunchWithItsCause) {
  Recorder recorder;
  Supervisor supervisor({shell("exec sleep 100"), shell("echo no such model >&2; exit 1")}, quick(), recorder);
  const auto result = supervisor.run(recorder.descriptor());
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().message, "worker 1 did not start: exit 1: no such model");
}

TEST(SupervisorTest, AWorkerThatIsNotReadyInTimeEndsTheLaunch) {
  Recorder recorder;
  auto options = quick();
  options.startup_timeout = std::chrono::milliseconds(30);
  Supervisor supervisor({shell("exec sleep 100")}, options, recorder);
  const auto result = supervisor.run(recorder.descriptor());
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(result.error().message, HasSubstr("not ready within"));
}

TEST(SupervisorTest, AWorkerKilledFromOutsideWhileItStartsIsStartedAgain) {
  Recorder recorder;
  recorder.stop_after(2);
  Supervisor supervisor({shell("kill -9 $$")}, quick(), recorder);
  ASSERT_TRUE(supervisor.run(recorder.descriptor()).ok());
  EXPECT_EQ(recorder.events[0], "0 down killed by SIGKILL restarts");
}

TEST(SupervisorTest, AWorkerThatAbortsBeforeAnyWasReadyEndsTheLaunch) {
  Recorder recorder;
  Supervisor supervisor({shell("echo a broken invariant >&2; kill -ABRT $$")}, quick(), recorder);
  const auto result = supervisor.run(recorder.descriptor());
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().message, "worker 0 did not start: killed by SIGABRT: a broken invariant");
}

// Says that it is ready at an address where connections are taken and nobody reads.
ProcessOptions deaf(const sluice::testing::RawListener& listener) {
  return shell(fmt::format(R"(echo '{{"status":"ready","url":"{}"}}' > /dev/fd/$SLUICE_READY_FD; exec sleep 100)",
                           listener.url()));
}

TEST(SupervisorTest, AWorkerThatAnswersNothingIsKilledAndStartedAgain) {
  const sluice::testing::RawListener listener;
  Recorder recorder;
  recorder.stop_after(3);
  auto options = quick();
  options.answer_timeout = std::chrono::milliseconds(30);
  Supervisor supervisor({deaf(listener)}, options, recorder);
  ASSERT_TRUE(supervisor.run(recorder.descriptor()).ok());
  const std::string ready = "0 ready " + listener.url();
  EXPECT_THAT(recorder.events,
              ElementsAre(ready, "0 down it has answered nothing for 0.03 s and was killed restarts", ready));
}

TEST(SupervisorTest, AWorkerFromWhichOthersHearIsLeftAlone) {
  class Ears final : public Supervisor::Listener {
   public:
    explicit Ears(Recorder& recorder) : recorder_(recorder) {}
    void on_progress(size_t, double, const std::string&) override {}
    void on_ready(size_t worker, const std::string& url) override { recorder_.on_ready(worker, url); }
    void on_down(size_t worker, const std::string& cause, std::optional<Duration> restart_in) override {
      recorder_.on_down(worker, cause, restart_in);
    }
    bool heard_within(size_t worker, Duration time) override {
      recorder_.on_progress(worker, seconds(time), "asked");
      return true;
    }

   private:
    Recorder& recorder_;
  };
  const sluice::testing::RawListener listener;
  Recorder recorder;
  recorder.stop_after(3);
  Ears ears(recorder);
  auto options = quick();
  options.answer_timeout = std::chrono::milliseconds(30);
  Supervisor supervisor({deaf(listener)}, options, ears);
  ASSERT_TRUE(supervisor.run(recorder.descriptor()).ok());
  EXPECT_THAT(recorder.events, ElementsAre("0 ready " + listener.url(), "0 0.03 asked", "0 0.03 asked"));
}

TEST(FreePortsTest, SkipsPortsThatAreTakenAndTheReservedOne) {
  const sluice::testing::RawListener taken;
  const uint16_t busy = taken.port();
  if (busy > 65000) GTEST_SKIP() << "too close to the last port";

  const auto ports = free_ports("127.0.0.1", busy, 2, static_cast<uint16_t>(busy + 1));
  ASSERT_TRUE(ports.ok());
  EXPECT_GT((*ports)[0].port(), busy + 1);
  EXPECT_GT((*ports)[1].port(), (*ports)[0].port());
  EXPECT_FALSE(free_ports("127.0.0.1", 65535, 2, 0).ok());
}

TEST(FreePortsTest, TwoLaunchesAtOnceGetDifferentPorts) {
  const auto first = free_ports("127.0.0.1", 31700, 2, 0);
  ASSERT_TRUE(first.ok());
  uint16_t second_port = 0;
  {
    const auto second = free_ports("127.0.0.1", 31700, 1, 0);
    ASSERT_TRUE(second.ok());
    second_port = (*second)[0].port();
    EXPECT_GT(second_port, (*first)[1].port());
  }
  EXPECT_TRUE(PortClaim::take(second_port)) << "given back";
}

}  // namespace
}  // namespace sluice::cli
