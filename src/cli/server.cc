// `sluice server`: an engine behind an HTTP API.
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <thread>

#include "base/log.h"
#include "base/ready_pipe.h"
#include "base/stop_signals.h"
#include "cli/commands.h"
#include "cli/startup_display.h"
#include "engine/front.h"
#include "engine/nodes/agent.h"

namespace sluice::cli {
namespace {

constexpr std::string_view kComponent = "cli/server";
// Below what service managers wait before they kill.
constexpr Duration kDrainGrace = std::chrono::seconds(30);

// On a terminal, one line that shows how far the start has come, with log lines scrolling above it.
class StartupLine {
 public:
  StartupLine() {
    if (!::isatty(STDERR_FILENO)) return;
    display_ = std::make_unique<StartupDisplay>(std::vector<std::string>{"loading"}, STDERR_FILENO, /*terminal=*/true);
    log::redirect([this](std::string_view line) { display_->print(line); });
  }
  ~StartupLine() { finish(); }

  void progress(double share, std::string_view what) {
    if (display_) display_->progress(0, share, what);
  }
  void print(std::string_view line) {
    if (display_) display_->print(line);
  }
  bool shown() const { return display_ != nullptr; }
  // The line stays as it is.
  void finish() {
    if (!display_) return;
    display_->finish();
    log::redirect({});
  }

 private:
  std::unique_ptr<StartupDisplay> display_;
};

// Until nothing is in flight, the grace has passed or a second signal comes, which ends the process at once; the ranks
// end with it (base/process.h, end_with_parent()).
void drain(engine::Front& front, StopSignals& signals) {
  SLUICE_LOG(info, kComponent, "draining for at most {:.0f} s", seconds(kDrainGrace));
  const int drained = ::eventfd(0, EFD_CLOEXEC);
  std::thread drainer([&] {
    const size_t cut_off = front.drain(kDrainGrace);
    if (cut_off > 0) SLUICE_LOG(warn, kComponent, "{} requests were cut off", cut_off);
    ::eventfd_write(drained, 1);
  });
  pollfd entries[2] = {{drained, POLLIN, 0}, {signals.descriptor(), POLLIN, 0}};
  while (::poll(entries, 2, -1) < 0 && errno == EINTR) {
  }
  if (entries[0].revents == 0) {
    SLUICE_LOG(warn, kComponent, "a second signal: ending at once");
    std::_Exit(1);
  }
  drainer.join();
  ::close(drained);
}

// A host of an instance beside node 0.
int run_agent(const engine::EngineOptions& options, StopSignals& signals, ReadyReporter& reporter) {
  const auto failed = [&](const Error& error) {
    reporter.failed(error.message);
    return fail(error);
  };
  if (const auto valid = engine::check_engine_options(options); !valid.ok()) return failed(valid.error());
  auto agent = engine::NodeAgent::start(options, {});
  if (!agent.ok()) return failed(agent.error());
  announce(options.host, (*agent)->port(), options.ssl_certfile.has_value());
  const auto ended = (*agent)->run(signals.descriptor());
  return ended.ok() ? 0 : failed(ended.error());
}

}  // namespace

OptionView server_options() { return view_of(engine::engine_option_table()); }

int run_server(const Arguments& arguments) {
  auto reporter = ReadyReporter::from_environment();
  const auto options = engine::engine_option_table().parse(arguments);
  if (!options.ok()) return fail(options.error());
  StopSignals signals;  // before the first thread
  const auto logging =
      log::init({.level = options->log_level == "warning" ? "warn" : options->log_level, .json = options->log_json});
  if (!logging.ok()) return fail(logging.error());

  if (options->node_rank > 0) return run_agent(*options, signals, reporter);
  StartupLine line;
  engine::FrontHooks hooks;
  hooks.stop_descriptor = signals.descriptor();
  hooks.on_progress = [&](double share, std::string_view what) {
    reporter.progress(share, what);
    line.progress(share, what);
  };
  if (line.shown()) hooks.on_rank_line = [&](std::string_view text) { line.print(text); };
  auto front = engine::Front::start(*options, hooks);
  if (!front.ok()) {
    line.finish();
    if (front.error().code == ErrorCode::kCancelled) return 0;
    reporter.failed(front.error().message);
    return fail(front.error());
  }
  line.progress(1, "ready");
  line.finish();
  const bool tls = options->ssl_certfile.has_value();
  announce(options->host, (*front)->port(), tls);
  reporter.ready(url_of(options->host, (*front)->port(), tls));

  signals.wait();
  drain(**front, signals);
  return 0;
}

}  // namespace sluice::cli
