// What the ranks of an instance send each other in a step, as a formula. wire_bytes_test.cc holds it to what the
// communicators count.
#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "kernels/kernels.h"
#include "models/config.h"
#include "moe/expert_map.h"
#include "parallel/topology.h"

namespace sluice::models {

// Of a step, by attention group.
struct StepLoad {
  std::span<const int64_t> tokens;
  std::span<const int64_t> logits;
  int64_t padded_rows = 0;  // of each group where those of all are together (StepBatch::padded_rows)
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
  int64_t head_calls = 0;  // of those
  double total() const { return attention + gather + scatter + dispatch + combine + head; }
};

// Tokens' rows to their experts with deepep.
struct RowsToExperts {
  // That go to another rank, of all layers together: a row for each pair of a token and a rank that has some of its
  // experts, or, with low_latency, of a token and an expert.
  double remote = 0;
  bool fp8 = false;          // in e4m3 (moe::payload_row())
  bool low_latency = false;  // through moe/low_latency
  int64_t physical = 0;      // experts of a layer, copies included; 0: those of the model
};

WireBytes wire_bytes(const ModelConfig& config, const parallel::Layout& layout, kernels::DType dtype,
                     const StepLoad& load, const RowsToExperts& rows = {}, SumRule rule = {});

// Where a token goes in one layer, on the mean over the rank that it comes from and over the choices that the router
// can make, each as likely as any other.
struct TokenReach {
  double ranks = 0;           // that it goes to
  double remote_ranks = 0;    // of those, others than its own
  double remote_experts = 0;  // of its experts, those of other ranks
};
// On `ranks` with equal parts of the experts, each once and in order, or as in `map`; then the mean over its layers.
TokenReach expected_reach(const MoeConfig& moe, int64_t ranks, const moe::ExpertMap* map = nullptr);

}  // namespace sluice::models
