// `sluice check-cluster`: whether the hosts of an instance can be one, before a server is started on them.
#include <cstdio>

#include "base/log.h"
#include "base/stop_signals.h"
#include "cli/commands.h"
#include "engine/nodes/check.h"

namespace sluice::cli {
namespace {

constexpr Duration kBound = std::chrono::minutes(2);  // people start it on one host after another

}  // namespace

int run_check_cluster(const Arguments& arguments) {
  const auto options = engine::engine_option_table().parse(arguments);
  if (!options.ok()) return fail(options.error());
  if (const auto valid = engine::check_engine_options(*options); !valid.ok()) return fail(valid.error());
  if (options->nnodes == 1) {
    return fail({ErrorCode::kBadOption, "--nnodes must be 2 or more: one host has nobody to check with"});
  }
  StopSignals signals;
  if (const auto logging = log::init({.level = options->log_level == "warning" ? "warn" : options->log_level});
      !logging.ok()) {
    return fail(logging.error());
  }
  const auto check = engine::check_cluster(*options, kBound, signals.descriptor());
  if (!check.ok()) return fail(check.error());
  std::fputs(check->table.c_str(), stdout);
  return check->passed ? 0 : 1;
}

}  // namespace sluice::cli
