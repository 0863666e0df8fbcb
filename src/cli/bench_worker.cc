// `sluice bench worker`: the simulated worker of testing/sim_worker.h as a process, to load gateways without a model.
#include "base/log.h"
#include "base/stop_signals.h"
#include "cli/bench_worker_options.h"
#include "cli/commands.h"

namespace sluice::cli {

OptionView bench_worker_options() { return view_of(bench_worker_option_table()); }

int run_bench_worker(const Arguments& arguments) {
  const auto options = bench_worker_option_table().parse(arguments);
  if (!options.ok()) return fail(options.error());
  const auto settings = simulation(*options);
  if (!settings.ok()) return fail(settings.error());
  StopSignals signals;  // before the first thread
  const auto logging = log::init({.level = options->log_level, .json = false, .dir = ""});
  if (!logging.ok()) return fail(logging.error());
  net::LoopGroup loops(static_cast<int>(options->threads), "sim");
  const auto worker = testing::SimWorker::start(loops, settings->worker);
  if (!worker.ok()) return fail(worker.error());
  (*worker)->set_fault(settings->fault);
  (*worker)->set_health(settings->health);
  announce(options->host, (*worker)->port());
  signals.wait();
  (*worker)->stop();
  const testing::SimCounters counters = (*worker)->counters();
  SLUICE_LOG(info, "cli/bench_worker", "ends after {} requests, {} of them for tokens", counters.requests,
             counters.generations);
  return 0;
}

}  // namespace sluice::cli
