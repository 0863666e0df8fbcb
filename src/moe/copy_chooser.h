// Takes tokens to copies of their experts, on the device.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "kernels/kernels.h"
#include "moe/expert_map.h"
#include "parallel/topology.h"

namespace sluice::moe {

// With `none` every rank has all tokens and must come to the same choices: tokens take turns there, or the random
// numbers are those of the step. With `deepep` each rank chooses for its own tokens.
// Used by the rank's thread.
class CopyChooser {
 public:
  // Both outlive this.
  CopyChooser(const kernels::Backend& backend, const ExpertMap& map, const parallel::Layout& layout)
      : backend_(backend), map_(map), layout_(layout) {}
  ~CopyChooser();
  CopyChooser(const CopyChooser&) = delete;
  CopyChooser& operator=(const CopyChooser&) = delete;

  // Once. kExhausted.
  Result<void> allocate(const kernels::Context& context);
  // The map of this layer has changed.
  void place(const kernels::Context& context, int64_t layer);
  // `out` [n, top_k] are the copies that `ids` [n, top_k] go to in layer `layer` of step `step`, in which this rank has
  // chosen for `before` tokens already.
  void choose(const kernels::Context& context, int64_t layer, uint64_t step, int64_t before, const int32_t* ids,
              int32_t* out, int64_t n, int64_t top_k) const;

 private:
  std::vector<int32_t> table(int64_t layer) const;

  const kernels::Backend& backend_;
  const ExpertMap& map_;
  const parallel::Layout layout_;
  int64_t width_ = 0;         // most copies that an expert has here, or will ever have
  int32_t* table_ = nullptr;  // [layers, logical, width], -1 after an expert's last
  size_t bytes_ = 0;
};

}  // namespace sluice::moe
