#include "moe/deepep.h"
#include "moe/none.h"

namespace sluice::moe {

std::unique_ptr<Dispatcher> make_dispatcher(const kernels::Backend& backend, const parallel::Groups* groups,
                                            const Sizes& sizes) {
  if (groups == nullptr || groups->layout.a2a == parallel::MoeAllToAll::kNone) return std::make_unique<NoDispatch>();
  return std::make_unique<DeepEp>(backend, *groups, sizes);
}

}  // namespace sluice::moe
