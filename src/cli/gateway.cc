#include "gateway/gateway.h"

#include <cstdio>

#include "base/log.h"
#include "base/stop_signals.h"
#include "cli/commands.h"

namespace sluice::cli {

OptionView gateway_options() { return view_of(gateway::gateway_option_table()); }

int run_gateway(const Arguments& arguments) {
  const auto options = gateway::gateway_option_table().parse(arguments);
  if (!options.ok()) return fail(options.error());
  StopSignals signals;  // before the first thread
  const auto logging = log::init({.level = options->log_level, .json = options->log_json, .dir = options->log_dir});
  if (!logging.ok()) return fail(logging.error());
  auto gateway = gateway::Gateway::start(*options);
  if (!gateway.ok()) return fail(gateway.error());
  announce(options->host, (*gateway)->port());
  std::fputs(fmt::format("metrics on http://{}:{}\n", options->prometheus_host, (*gateway)->metrics_port()).c_str(),
             stdout);
  std::fflush(stdout);

  signals.wait();
  SLUICE_LOG(info, "cli/gateway", "draining");
  const size_t cut_off = (*gateway)->drain(std::chrono::seconds(options->shutdown_grace_period_secs));
  if (cut_off > 0) SLUICE_LOG(warn, "cli/gateway", "{} requests were cut off", cut_off);
  return 0;
}

}  // namespace sluice::cli
