// Which weights ranks of one host have alike: each is packed by one of them, into memory that all of them see.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace sluice::models {

// A weight by what it is: the tensors, the part of them and the form that it is packed in.
struct WeightIdentity {
  int64_t hash = 0;  // 0: not to be shared, since it changes or moves
  int64_t bytes = 0;
};

struct CommonWeight {
  size_t offset = 0;   // in the common memory
  int64_t owners = 0;  // ranks that have it, two at least
  bool own = false;    // this rank packs it
};

struct CommonWeights {
  std::vector<std::optional<CommonWeight>> entries;  // of this rank's declarations; none: its own alone
  size_t bytes = 0;                                  // of the common memory of all ranks
};
// `declared`: of each rank, in the order of declaration. Packing is spread evenly over those who have a weight. The
// same on all ranks but for what is a rank's.
CommonWeights find_common(std::span<const std::vector<WeightIdentity>> declared, size_t rank);

// Bytes of `rank`'s weights, of which each common one counts as one n-th for each of its n owners: what ranks take of
// their host's memory together is the sum.
int64_t proportional_bytes(std::span<const WeightIdentity> declared, const CommonWeights& common);

}  // namespace sluice::models
