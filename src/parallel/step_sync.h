// What ranks that compute steps together tell each other before each step, and what follows from it: one row of each,
// gathered, and a pure function of all rows. SGLang's counterpart is MLPSyncBatchInfo.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "parallel/topology.h"

namespace sluice::parallel {

// Of the batch of one attention group; the numbers are SGLang's.
enum class ForwardMode : int64_t { kExtend = 1, kDecode = 2, kMixed = 3, kIdle = 4 };

// A prompt could begin here in this step, and: what is held back should begin, because this group has much room.
constexpr int64_t kCanPrefill = 1, kForcePrefill = 2;

// What an exchange of rows is for.
enum class ExchangeKind : int64_t { kStep = 1 };

// 168 bytes on the wire. Seven columns are of every rank: seq, kind, plan_hash, controls, work_seen, received_bytes and
// expert_places; all others of the rank that leads its attention group and speaks for it, and 0 on the group's others.
struct StepRow {
  int64_t seq = 0;                                           // number of the exchange, from 1
  int64_t kind = static_cast<int64_t>(ExchangeKind::kStep);  // equal on all ranks
  int64_t plan_hash = 0;               // of layout, configuration and all plans before; equal on all ranks
  int64_t num_tokens = 0;              // new tokens of the batch; 0 = idle
  int64_t num_tokens_for_logprob = 0;  // rows that enter the head
  int64_t is_extend_in_batch = 0;
  int64_t local_can_run_tbo = 0;  // 1 + tokens of the first half of the batch; 0: it cannot be split
  int64_t local_forward_mode = static_cast<int64_t>(ForwardMode::kIdle);
  // A hash of the control messages for every rank that have taken effect here, in their order; equal on all ranks.
  int64_t controls = 0;
  // Number of the last piece of work that reached this rank, its own or another's; of every rank.
  int64_t work_seen = 0;
  int64_t batch_words = 0;      // size of the batch that the leader sends to its group's others, in int32
  int64_t decoding = 0;         // sequences of this group that decode in the next step
  int64_t more_to_come = 0;     // there is something to do here even if this row brings no tokens
  int64_t prefill = 0;          // kCanPrefill and kForcePrefill
  int64_t received_bytes = 0;   // that this rank has got from others since its start; of every rank
  int64_t context = 0;          // tokens of the sequences that decode in the next step
  int64_t position = 0;         // at which prompts go on in the next step
  int64_t prompt_reads = 0;     // the tokens before each prompt token of the batch, summed up
  int64_t prompt_logits = 0;    // rows that are wanted of those
  int64_t leader_controls = 0;  // as controls, of the messages for leaders alone; equal on all leaders
  int64_t expert_places = 0;    // a hash of where experts are, of every rank; equal on all
  bool operator==(const StepRow&) const = default;
};
constexpr int64_t kStepColumns = 21;
static_assert(sizeof(StepRow) == kStepColumns * sizeof(int64_t));

// What all ranks do next, the same on each.
struct StepPlan {
  bool run = false;  // a step, which groups without tokens join with empty batches
  // Nobody has work and none is on its way: all wait, at no cost, until the next piece of work reaches each of them.
  bool park = false;
  bool is_extend_in_batch = false;    // somebody prefills
  std::vector<int64_t> group_tokens;  // [attention groups]
  std::vector<int64_t> group_logits;  // [attention groups]
  std::vector<int64_t> batch_words;   // [attention groups]
  std::vector<int64_t> decoding;      // [attention groups], in the next step
  std::vector<int64_t> prefill;       // [attention groups], kCanPrefill and kForcePrefill
  // [attention groups] each, as in their rows.
  std::vector<int64_t> context, position, prompt_reads, prompt_logits;
  // [attention groups] tokens of the first of the two halves in which the step runs; empty: it is not split. All groups
  // can split their batches, and those that have one are in one mode.
  std::vector<int64_t> first_half;
  // The work of this number and all before has reached every rank. What must take effect on all of them between the
  // same two steps waits for its number here.
  uint64_t seen_by_all = 0;
  int64_t hash = 0;  // the next row's plan_hash
};

// `rows` [tp_size] by rank. kProtocol names the ranks that differ in what must be equal, and in what.
Result<StepPlan> derive_plan(std::span<const StepRow> rows, const Layout& layout);

// Rows that each attention group has in a step of a fixed shape, SGLang's MAX_LEN for graphs: as many as the group with
// most tokens, rounded up to 1, 2, 4 or a multiple of 8, and to `most` at most. 0: the step has no such shape, since
// somebody prefills, nobody has tokens or somebody more than `most`.
int64_t fixed_rows(const StepPlan& plan, int64_t most);

// The plan_hash of the first row: of what must be equal before anything happened. `configuration`: a hash of what else
// all ranks must share.
int64_t first_hash(const Layout& layout, uint64_t configuration = 0);

}  // namespace sluice::parallel
