// `sluice serve`: engine workers of this machine behind a gateway, as one command. The gateway is this process; the
// workers are its children. What happens to a worker comes from its ready pipe and its pidfd, and only whether it hangs
// from asking it.
#include <sys/mman.h>
#include <unistd.h>

#include <future>

#include "base/log.h"
#include "base/machine.h"
#include "base/stop_signals.h"
#include "cli/commands.h"
#include "cli/serve_options.h"
#include "cli/serve_workers.h"
#include "cli/startup_display.h"
#include "cli/supervisor.h"
#include "gateway/gateway.h"
#include "gateway/memory.h"
#include "obs/metrics.h"

namespace sluice::cli {
namespace {

constexpr std::string_view kComponent = "cli/serve";
constexpr Duration kWorkerGrace = std::chrono::seconds(30);  // for all workers together, from SIGTERM to SIGKILL
constexpr Duration kFailureGrace = std::chrono::seconds(2);  // where the launch has failed and nothing is in flight

std::vector<std::string> worker_names(size_t count) {
  std::vector<std::string> names;
  for (size_t i = 0; i < count; ++i) names.push_back(fmt::format("worker {}", i));
  return names;
}

// What people type: a wildcard address is no address to call.
std::string callable_host(const std::string& host) {
  if (host == "0.0.0.0") return "127.0.0.1";
  if (host == "::" || host == "[::]") return "[::1]";
  return host.find(':') != std::string::npos && !host.starts_with('[') ? "[" + host + "]" : host;
}

// Tells the gateway and the person at the terminal what the supervisor sees. Called on the supervisor's thread.
class Follower final : public Supervisor::Listener {
 public:
  Follower(const ServeCommand& command, gateway::Gateway& gateway, StartupDisplay& display, size_t workers)
      : command_(command), gateway_(gateway), display_(display), workers_(workers) {}

  void on_progress(size_t worker, double share, const std::string& what) override {
    display_.progress(worker, share, what);
  }

  void on_ready(size_t worker, const std::string& url) override {
    Worker& state = workers_[worker];
    state.url = url;
    state.up = true;
    gateway_.worker_started(url, command_.engine.api_key.value_or(""));
    display_.ready(worker);
    SLUICE_LOG(info, kComponent, "worker {} is ready at {}", worker, url);
    if (!complete_ && std::ranges::all_of(workers_, &Worker::up)) show_endpoints();
  }

  void on_down(size_t worker, const std::string& cause, std::optional<Duration> restart_in) override {
    Worker& state = workers_[worker];
    if (std::exchange(state.up, false)) gateway_.worker_ended(state.url);
    display_.down(worker, cause);
    if (!restart_in && !command_.serve.router_disable_worker_restart)
      return;  // the launch ends, with this as its error
    const std::string next = restart_in ? fmt::format("started again in {:.0f} s", seconds(*restart_in)) : "left down";
    SLUICE_LOG(error, kComponent, "worker {} ended: {}; {}", worker, cause, next);
  }

  bool heard_within(size_t worker, Duration time) override { return gateway_.heard_within(workers_[worker].url, time); }

 private:
  struct Worker {
    std::string url;
    bool up = false;
  };

  void show_endpoints() {
    complete_ = true;
    display_.finish();
    const std::string base = fmt::format("http{}://{}:{}", command_.gateway.tls_cert_path ? "s" : "",
                                         callable_host(command_.engine.host), gateway_.port());
    // The key itself would end up in logs.
    const std::string key = command_.gateway.api_key ? " -H \"Authorization: Bearer $API_KEY\"" : "";
    display_.print(fmt::format(
        "\nReady.\n"
        "  OpenAI API  {}/v1\n"
        "  workers     {}/workers\n"
        "  metrics     http://{}:{}/metrics\n\n"
        "  curl {}/v1/chat/completions{} -H 'Content-Type: application/json' \\\n"
        R"(    -d '{{"model": "{}", "temperature": 0, "max_tokens": 32, "messages": [{{"role": "user", "content": "Name the capital of France."}}]}}')"
        "\n",
        base, base, callable_host(command_.gateway.prometheus_host), gateway_.metrics_port(), base, key,
        command_.engine.served_model_name.value_or(command_.engine.model_path)));
  }

  const ServeCommand& command_;
  gateway::Gateway& gateway_;
  StartupDisplay& display_;
  std::vector<Worker> workers_;
  bool complete_ = false;
};

// Log lines of this process go through the display while it lives.
class LogThrough {
 public:
  explicit LogThrough(StartupDisplay& display) {
    log::redirect([&display](std::string_view line) { display.print(line); });
  }
  ~LogThrough() { log::redirect({}); }
};

// Drains the gateway, then ends the workers. A second signal meanwhile cuts everything short.
void shut_down(const ServeCommand& command, gateway::Gateway& gateway, Supervisor& supervisor, StopSignals& signals) {
  SLUICE_LOG(info, kComponent, "draining; a second signal ends everything at once");
  auto ended = std::async(std::launch::async, [&] {
    const size_t cut_off = gateway.drain(std::chrono::seconds(command.gateway.shutdown_grace_period_secs));
    if (cut_off > 0) SLUICE_LOG(warn, kComponent, "{} requests were cut off", cut_off);
    supervisor.stop(kWorkerGrace);
  });
  while (ended.wait_for(Duration{0}) != std::future_status::ready) {
    if (!signals.wait(std::chrono::milliseconds(100))) continue;
    SLUICE_LOG(warn, kComponent, "stopped at once");
    std::_Exit(1);  // the workers end with this process
  }
}

Result<void> serve(const ServeCommand& command, StopSignals& signals) {
  SLUICE_TRY(const auto gateway, gateway::Gateway::start(command.gateway));
  const auto& serve = command.serve;
  const auto count = static_cast<size_t>(command.workers());
  SLUICE_TRY(const auto ports, free_ports(serve.worker_host, static_cast<uint16_t>(serve.router_dp_worker_base_port),
                                          count, gateway->port()));
  const int weights = ::memfd_create("sluice-weights", MFD_CLOEXEC);
  if (weights < 0) return Error{ErrorCode::kExhausted, "cannot make a memory file for the weights"};
  std::vector<uint16_t> numbers;
  for (const PortClaim& port : ports) numbers.push_back(port.port());
  auto workers = serve_workers(command, numbers, usable_cores(), weights);

  announce(command.engine.host, gateway->port(), command.gateway.tls_cert_path.has_value());
  StartupDisplay display(worker_names(count), STDERR_FILENO, ::isatty(STDERR_FILENO) == 1);
  const LogThrough log_through(display);
  for (size_t i = 0; i < count; ++i) {
    workers[i].on_stderr_line = [&display, i](std::string_view line) {
      display.print(fmt::format("[worker {}] {}", i, line));
    };
  }
  Follower follower(command, *gateway, display, count);
  Supervisor supervisor(std::move(workers),
                        {.restart = !serve.router_disable_worker_restart,
                         .startup_timeout = std::chrono::seconds(serve.worker_startup_timeout),
                         .answer_timeout = std::chrono::seconds(serve.worker_answer_timeout)},
                        follower);
  const auto ended = supervisor.run(signals.descriptor());
  if (ended.ok()) {
    signals.wait(Duration{0});
    display.finish();
    shut_down(command, *gateway, supervisor, signals);
  } else {
    display.finish();
    supervisor.stop(kFailureGrace);
  }
  ::close(weights);
  return ended;
}

}  // namespace

int run_serve(const Arguments& arguments) {
  const auto command = parse_serve(arguments);
  if (!command.ok()) return fail(command.error());
  if (const auto valid = engine::check_engine_options(command->engine); !valid.ok()) return fail(valid.error());
  gateway::keep_freed_memory();
  StopSignals signals;  // before the first thread
  const auto& options = command->gateway;
  const auto logging = log::init({.level = options.log_level, .json = options.log_json, .dir = options.log_dir});
  if (!logging.ok()) return fail(logging.error());
  const auto ended = serve(*command, signals);
  return ended.ok() ? 0 : fail(ended.error());
}

}  // namespace sluice::cli
