// Which weights ranks of one host have alike: each is packed by one of them, into memory that all of them see.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace sluice::models {

// Bytes that a weight takes where others follow it: it begins at a line of its own.
constexpr size_t aligned(size_t bytes) {
  constexpr size_t kLine = 64;
  return (bytes + kLine - 1) / kLine * kLine;
}

// A weight by what it is: the tensors, the part of them and the form that it is packed in.
struct WeightIdentity {
  int64_t hash = 0;  // 0: not to be shared, since it changes or moves
  int64_t bytes = 0;
};

struct CommonWeight {
  size_t offset = 0;   // in the common memory
  int64_t owners = 0;  // ranks that have it, two at least
  bool own = false;    // this rank packs it, where it is declared first
};

struct CommonWeights {
  std::vector<std::optional<CommonWeight>> entries;  // of this rank's declarations; none: its own alone
  size_t bytes = 0;                                  // of the common memory of all ranks
};
// `declared`: of each rank, in the order of declaration. Packing is spread evenly over those who have a weight. The
// same on all ranks but for what is a rank's.
CommonWeights find_common(std::span<const std::vector<WeightIdentity>> declared, size_t rank);

// Bytes of the weights that a rank has declared, `common` being its own of find_common(): each is counted once, and of
// those in common with others one n-th for each of n owners. The sum over ranks is what they take of their host's
// memory together.
int64_t proportional_bytes(std::span<const WeightIdentity> declared, const CommonWeights& common);

}  // namespace sluice::models
