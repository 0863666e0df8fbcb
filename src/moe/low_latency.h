// DeepEP's low-latency mode: a token goes once to each of its experts, whose rows lie in a slab that has room for what
// all ranks may send at most. The experts' kernels take the number of rows from device memory, and all addresses stay
// the same from step to step. The transport is told exact counts by the host all the same, so that no empty row is
// sent.
#pragma once

#include <vector>

#include "moe/device_memory.h"
#include "moe/dispatcher.h"
#include "moe/payload.h"

namespace sluice::moe {

class LowLatency final : public Dispatcher {
 public:
  // `groups` outlives this. Expert ranges follow Layout::experts(), one for each rank.
  LowLatency(const kernels::Backend& backend, const parallel::Groups& groups, const Sizes& sizes, int64_t capacity,
             bool fp8);

  Result<void> allocate(int64_t max_tokens, int64_t max_received) override;
  // kExhausted on all ranks, if one of them has more tokens than its capacity.
  Result<void> agree(const kernels::Context& context, const Tokens& own, bool exact) override;
  Result<Tokens> dispatch(const kernels::Context& context) override;
  Result<void> combine(const kernels::Context& context) override;
  size_t bytes() const override { return memory_.bytes() + payload_.bytes(); }
  int64_t slab_rows() const override { return own_experts_.count * expert_rows_; }

 private:
  // A row of the send buffer for each pair of a token and an expert, in the order of the experts.
  void plan_rows(const kernels::Context& context);
  // How many rows come for each expert from each rank, and how many tokens it has.
  Result<void> exchange_counts();
  // The row of the slab for each row that comes.
  void plan_slab(const kernels::Context& context);

  const kernels::Backend& backend_;
  const parallel::Groups& groups_;
  const Sizes sizes_;
  const int64_t ranks_;
  const int64_t capacity_;
  const parallel::Slice own_experts_;
  const int64_t expert_rows_;  // of the slab

  // Of the step, in host memory.
  std::vector<int32_t> ids_;                     // [n, top_k]
  std::vector<int32_t> places_;                  // [n, top_k] row of the send buffer, -1 = none
  std::vector<int64_t> expert_counts_;           // [experts] rows that this rank sends to each
  std::vector<int64_t> counts_out_, counts_in_;  // [ranks, experts of the receiver + 1] rows, and the sender's tokens
  std::vector<int64_t> sent_, received_;         // [ranks] rows
  std::vector<int32_t> slab_places_, slab_ids_;  // [rows received]
  int64_t rows_received_ = 0;
  Tokens own_;

  // Device memory, at the same addresses in all steps.
  DeviceMemory memory_;
  Payload payload_;
  int32_t* device_places_ = nullptr;       // [capacity, top_k]
  int32_t* device_slab_places_ = nullptr;  // [rows received]
  int32_t* device_slab_ids_ = nullptr;     // [rows received] expert of each
  int32_t* starts_ = nullptr;              // [own experts] first row of each in the slab
  void* send_ = nullptr;                   // [rows sent] of payload
  void* arrived_ = nullptr;                // [rows received, hidden] of dtype, as they came
  void* slab_ = nullptr;                   // [own experts, expert_rows, hidden] of dtype
  float* results_ = nullptr;               // [own experts, expert_rows, hidden]
  float* leaving_ = nullptr;               // [rows received, hidden]
  float* returned_ = nullptr;              // [rows sent, hidden]
};

}  // namespace sluice::moe
