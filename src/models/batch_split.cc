#include "models/batch_split.h"

#include <algorithm>
#include <cstdlib>

namespace sluice::models {

int64_t split_batch(const StepBatch& batch, double threshold) {
  const int64_t tokens = std::ssize(batch.token_ids), middle = tokens / 2;
  int64_t nearest = 0;
  for (const int32_t start : batch.query_start) {
    if (std::abs(start - middle) < std::abs(nearest - middle)) nearest = start;
  }
  const int64_t smaller = std::min(nearest, tokens - nearest);
  return static_cast<double>(smaller) >= threshold * static_cast<double>(tokens) ? nearest : middle;
}

std::array<HalfShape, 2> halves_of(std::span<const int32_t> query_start, std::span<const int32_t> seq_lens,
                                   int64_t first_half) {
  std::array<HalfShape, 2> halves;
  halves[0].tokens = halves[1].first_token = first_half;
  halves[1].tokens = query_start.back() - first_half;
  for (HalfShape& half : halves) {
    const int64_t end = half.first_token + half.tokens;
    for (size_t s = 0; s < seq_lens.size(); ++s) {
      const int64_t from = query_start[s], to = std::min<int64_t>(query_start[s + 1], end);
      if (to <= std::max(from, half.first_token)) continue;
      if (half.seq_lens.empty()) half.first_sequence = static_cast<int64_t>(s);
      half.query_start.push_back(static_cast<int32_t>(to - half.first_token));
      half.seq_lens.push_back(seq_lens[s] - static_cast<int32_t>(query_start[s + 1] - to));
    }
  }
  return halves;
}

}  // namespace sluice::models
