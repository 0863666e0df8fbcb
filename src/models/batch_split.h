// Two halves of a step's batch, of which one computes while rows of the other are on their way.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "models/runner.h"

namespace sluice::models {

// Tokens of the first half; 0: the batch cannot be split. One that decodes is split in the middle. Else sequences stay
// whole where the smaller half then has at least `threshold` of the tokens, and one is cut where it has not: its second
// part then needs what the first part puts into the cache.
int64_t split_batch(const StepBatch& batch, double threshold);

// A half, as a part of the batch that sequences follow each other in.
struct HalfShape {
  int64_t first_token = 0;
  int64_t tokens = 0;
  int64_t first_sequence = 0;
  std::vector<int32_t> query_start{0};  // as in StepBatch, but of the half's tokens
  std::vector<int32_t> seq_lens;        // after the half's tokens
  int64_t end_sequence() const { return first_sequence + std::ssize(seq_lens); }
};
std::array<HalfShape, 2> halves_of(std::span<const int32_t> query_start, std::span<const int32_t> seq_lens,
                                   int64_t first_half);

}  // namespace sluice::models
