// Brings experts' weights from the ranks that have them to those that are to have them, as they lie in memory.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "base/result.h"
#include "models/layers/decoder.h"
#include "models/layers/weights.h"
#include "moe/expert_moves.h"
#include "parallel/groups.h"

namespace sluice::models {

// A layer's new experts are put together in spare memory, so that until all ranks know that all of them are there, and
// as they were sent, the layer is what it was. Used by the rank's thread; all ranks make the same calls.
class ExpertMover {
 public:
  // Declares the spare memory, that of one layer, and that of an expert which leaves. All layers have experts of the
  // same sizes.
  ExpertMover(WeightStore& weights, std::span<const ExpertLayer> layers);

  // Once, after the weights were materialised: whether all ranks have packed their experts alike. kBadOption names the
  // layer.
  Result<void> check_alike() const;

  struct Moved {
    std::optional<std::string> damage;  // why the layer is what it was, the same on all ranks
    uint64_t bytes = 0;                 // from rank to rank, of all ranks
  };
  // An error is that of the group; the layer is what it was then too, on this rank. `fingerprint` is of what must be
  // equal on all ranks, kProtocol where it is not.
  Result<Moved> move(const kernels::Context& context, const ExpertLayer& layer, std::span<const moe::ExpertMove> moves,
                     uint64_t fingerprint);

 private:
  // Of a copy.
  struct Place {
    int64_t rank = 0;  // of the world
    int64_t slot = 0;  // among its rank's
  };
  Place place_of(int32_t copy) const;
  bool is_here(const Place& place) const;
  size_t bytes_of(const ExpertLayer& layer) const { return layer.gate_up.stride + layer.down.stride; }
  char* spare(const ExpertLayer& layer, int64_t slot) const;
  // Both matrices one after another.
  void copy_out(const kernels::Context& context, const ExpertLayer& layer, int64_t slot, char* to) const;
  uint64_t checksum(const kernels::Context& context, const ExpertLayer& layer, const char* gate_up,
                    const char* down) const;

  Result<uint64_t> stage(const kernels::Context& context, const ExpertLayer& layer,
                         std::span<const moe::ExpertMove> moves);
  // Of each rank one expert leaves at most, and one comes.
  Result<void> exchange(const kernels::Context& context, const ExpertLayer& layer,
                        std::span<const moe::ExpertMove> moves);
  Result<std::optional<std::string>> compare(const kernels::Context& context, const ExpertLayer& layer,
                                             std::span<const moe::ExpertMove> moves, uint64_t fingerprint) const;

  WeightStore& weights_;
  const std::span<const ExpertLayer> layers_;
  const parallel::Groups& groups_;
  const parallel::Layout& layout_;
  const int64_t own_;  // copies of a layer on each rank
  size_t spare_ = 0;
  size_t outbox_ = 0;
};

}  // namespace sluice::models
