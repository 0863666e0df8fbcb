// What the ranks of an instance send each other in a step, as a formula. wire_bytes_test.cc holds it to what the
// communicators count.
#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "kernels/kernels.h"
#include "models/config.h"
#include "parallel/topology.h"

namespace sluice::models {

// Of a step, by attention group.
struct StepLoad {
  std::span<const int64_t> tokens;
  std::span<const int64_t> logits;
};

// How sums to all ranks travel: everybody gets everything and adds it up where the data are at most so long, else each
// rank adds up its share.
struct SumRule {
  int64_t add_all_bytes = 32 << 10;  // that of parallel/shm
};
inline constexpr SumRule kAlwaysShare{0};                                     // that of rings
inline constexpr SumRule kAlwaysAddAll{std::numeric_limits<int64_t>::max()};  // that of parallel/inproc

// Bytes that arrive at a rank from another one, of all ranks together, and calls of one rank.
struct WireBytes {
  double attention = 0;  // sums within attention groups: embedding, attention, and norms over all heads
  double gather = 0;     // tokens of all groups, before FFNs that are divided among all ranks
  double scatter = 0;    // their sums, to whose tokens they are
  double dispatch = 0;   // rows to the ranks of their experts, with counts and routes
  double combine = 0;    // what experts make of them, back
  double head = 0;       // rows for the head, and logits
  int64_t calls = 0;
  double total() const { return attention + gather + scatter + dispatch + combine + head; }
};

// `remote_rows`: with deepep, pairs of a token and another rank that has one of its experts, of all layers together.
// `fp8`: those travel in e4m3 (moe::payload_row()).
WireBytes wire_bytes(const ModelConfig& config, const parallel::Layout& layout, kernels::DType dtype,
                     const StepLoad& load, double remote_rows, SumRule rule = {}, bool fp8 = false);

// Ranks that a token goes to in one layer, of `ranks` that have equal parts of the experts, on average where each
// choice that the router can make is as likely as any other.
double expected_ranks_of_token(const MoeConfig& moe, int64_t ranks);
// The remote rows that come of that.
double expected_remote_rows(const ModelConfig& config, const parallel::Layout& layout, int64_t tokens);

}  // namespace sluice::models
