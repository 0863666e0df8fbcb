#include "cli/serve_workers.h"

#include <algorithm>

#include "base/ready_pipe.h"
#include "engine/kv_publisher.h"
#include "engine/rank.h"

namespace sluice::cli {

namespace {

// Each worker publishes at ports of its own. A configuration that is none is left as it is: the worker says what is
// wrong.
void move_kv_events(std::vector<std::string>& flags, int64_t ranks_before) {
  constexpr std::string_view kFlag = "--kv-events-config=";
  for (auto& flag : flags) {
    if (!flag.starts_with(kFlag)) continue;
    if (auto moved = engine::kv_events_config_after(std::string_view(flag).substr(kFlag.size()), ranks_before);
        moved.ok()) {
      flag = fmt::format("{}{}", kFlag, *moved);
    }
  }
}

}  // namespace

std::vector<ProcessOptions> serve_workers(const ServeCommand& command, const std::vector<uint16_t>& ports,
                                          int64_t cores, int weights_fd) {
  const auto count = static_cast<int64_t>(ports.size());
  std::vector<ProcessOptions> workers;
  for (int64_t i = 0; i < count; ++i) {
    // Cores that do not divide evenly go to the first workers; with fewer cores than ranks each has one thread.
    const int64_t ranks_here = std::max<int64_t>(1, command.engine.tp_size / command.engine.nnodes);
    const int64_t share = std::max<int64_t>(1, (cores / count + (i < cores % count ? 1 : 0)) / ranks_here);
    ProcessOptions worker;
    worker.program = own_executable();
    worker.arguments = {"server"};
    worker.arguments.insert(worker.arguments.end(), command.worker_flags.begin(), command.worker_flags.end());
    const int64_t ranks = command.dp_attention() ? command.engine.dp_size : 1;
    if (i > 0) move_kv_events(worker.arguments, i * ranks);
    worker.arguments.insert(worker.arguments.end(),
                            {fmt::format("--dp-size={}", ranks), fmt::format("--host={}", command.serve.worker_host),
                             fmt::format("--port={}", ports[static_cast<size_t>(i)]),
                             fmt::format("--threads={}", command.engine.threads.value_or(share))});
    worker.environment[engine::kHostWorkersVariable] = std::to_string(count);
    if (weights_fd >= 0) worker.descriptors[kWeightsVariable] = weights_fd;
    worker.stdout_to_stderr = true;  // our stdout says where the gateway listens, and nothing else
    workers.push_back(std::move(worker));
  }
  return workers;
}

}  // namespace sluice::cli
