#include "parallel/groups.h"

#include "base/check.h"

namespace sluice::parallel {

Result<Groups> make_groups(Communicator& world, const Layout& layout) {
  SLUICE_CHECK(world.size() == layout.tp_size && world.rank() == layout.tp_rank, "rank {} of {} in a group of {}",
               layout.tp_rank, layout.tp_size, world.size());
  Groups groups{.layout = layout, .all = &world};
  const Place tp = layout.attention_tp(), dp = layout.attention_dp();
  SLUICE_TRY(groups.attention_tp, world.split(dp.rank, tp.rank, "attention_tp"));
  SLUICE_TRY(groups.attention_dp, world.split(tp.rank, dp.rank, "attention_dp"));
  return groups;
}

}  // namespace sluice::parallel
