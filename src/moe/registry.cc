#include "moe/deepep.h"
#include "moe/deepep_auto.h"
#include "moe/low_latency.h"
#include "moe/none.h"

namespace sluice::moe {

std::unique_ptr<Dispatcher> make_dispatcher(const kernels::Backend& backend, const parallel::Groups* groups,
                                            const Sizes& sizes, const DeepEpOptions& options) {
  if (groups == nullptr || groups->layout.a2a == parallel::MoeAllToAll::kNone) return std::make_unique<NoDispatch>();
  switch (options.mode) {
    case DeepEpMode::kLowLatency:
      return std::make_unique<LowLatency>(backend, *groups, sizes, options.capacity, options.fp8);
    case DeepEpMode::kAuto:
      return std::make_unique<DeepEpAuto>(backend, *groups, sizes, options);
    case DeepEpMode::kNormal:
      break;
  }
  return std::make_unique<DeepEp>(backend, *groups, sizes, options.fp8);
}

}  // namespace sluice::moe
