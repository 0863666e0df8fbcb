#include "gateway/gateway.h"

#include <cstdio>

#include "base/log.h"
#include "base/ready_pipe.h"
#include "base/stop_signals.h"
#include "cli/commands.h"
#include "cli/upgrade.h"
#include "gateway/memory.h"

namespace sluice::cli {

OptionView gateway_options() { return view_of(gateway::gateway_option_table()); }

namespace {

// Until a signal to stop, or a successor that serves: true for the latter.
bool serve_until_told(gateway::Gateway& gateway, StopSignals& signals, const CommandLine& command) {
  while (signals.wait() == SIGUSR2) {
    const auto taken_over = start_successor(command, gateway, signals);
    if (taken_over.ok()) return true;
    gateway.keep_fleet();
    SLUICE_LOG(error, "cli/gateway", "the successor could not take over, this process goes on: {}",
               taken_over.error().message);
  }
  return false;
}

}  // namespace

int run_gateway(const Arguments& arguments) {
  ReadyReporter reporter = ReadyReporter::from_environment();
  const auto failed = [&](const Error& error) {
    reporter.failed(error.message);
    return fail(error);
  };
  const CommandLine command = CommandLine::own();
  auto inherited = inheritance();
  if (!inherited.ok()) return failed(inherited.error());
  const bool is_successor = inherited->fleet.has_value();
  const auto options = gateway::gateway_option_table().parse(arguments);
  if (!options.ok()) return failed(options.error());
  gateway::keep_freed_memory();
  StopSignals signals({SIGUSR2});  // before the first thread
  const auto logging = log::init({.level = options->log_level, .json = options->log_json, .dir = options->log_dir});
  if (!logging.ok()) return failed(logging.error());
  auto gateway = gateway::Gateway::start(*options, real_clock(), std::move(inherited).value());
  if (!gateway.ok()) return failed(gateway.error());
  announce(options->host, (*gateway)->port(), options->tls_cert_path.has_value());
  std::fputs(fmt::format("metrics on {}\n", url_of(options->prometheus_host, (*gateway)->metrics_port())).c_str(),
             stdout);
  std::fflush(stdout);
  if (is_successor) announce_main_process();
  reporter.ready(url_of(options->host, (*gateway)->port()));

  const bool succeeded = serve_until_told(**gateway, signals, command);
  SLUICE_LOG(info, "cli/gateway", "{}", succeeded ? "a successor serves, what is under way ends here" : "draining");
  const Duration grace = std::chrono::seconds(options->shutdown_grace_period_secs);
  const size_t cut_off = succeeded ? (*gateway)->retire(grace) : (*gateway)->drain(grace);
  if (cut_off > 0) SLUICE_LOG(warn, "cli/gateway", "{} requests were cut off", cut_off);
  return 0;
}

}  // namespace sluice::cli
