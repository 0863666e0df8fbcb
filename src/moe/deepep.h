// An all-to-all of rows: a token goes once to each rank that has one of its experts, with their numbers and shares, and
// the weighted sum of what that rank's experts make of it comes back. The layout is by exact counts, which the host
// learns first: DeepEP's normal mode.
#pragma once

#include <vector>

#include "moe/device_memory.h"
#include "moe/dispatcher.h"
#include "moe/payload.h"

namespace sluice::moe {

class DeepEp final : public Dispatcher {
 public:
  // `groups` outlives this. Expert ranges follow Layout::experts(), one for each rank.
  DeepEp(const kernels::Backend& backend, const parallel::Groups& groups, const Sizes& sizes, bool fp8);

  Result<void> allocate(int64_t max_tokens, int64_t max_received) override;
  Result<void> agree(const kernels::Context& context, const Tokens& own, bool exact) override;
  Result<Tokens> dispatch(const kernels::Context& context) override;
  Result<void> combine(const kernels::Context& context) override;
  size_t bytes() const override { return memory_.bytes() + payload_.bytes(); }

 private:
  // Reads where tokens go, and decides on a row of the send buffer for each rank that a token goes to.
  void plan_rows(const kernels::Context& context);
  // Numbers of rows, then what is known of each.
  Result<void> exchange_counts();
  Result<void> exchange_routes(const kernels::Context& context);
  std::vector<int64_t> times(const std::vector<int64_t>& rows, int64_t width) const;

  const kernels::Backend& backend_;
  const parallel::Groups& groups_;
  const Sizes sizes_;
  const int64_t ranks_;
  int64_t max_received_ = 0;
  int64_t room_ = 0;  // pairs that are computed at once at most; 0: any number

  // Of the step, in host memory.
  std::vector<int32_t> ids_;                     // [n, top_k] of this rank's tokens
  std::vector<float> shares_;                    // [n, top_k]
  std::vector<int32_t> places_;                  // [n, ranks] row of the send buffer, -1 = not sent there
  std::vector<int64_t> sent_, received_;         // [ranks] rows
  std::vector<int64_t> all_counts_;              // [ranks, ranks]
  std::vector<int64_t> pieces_;                  // Tokens::pieces, of one too
  std::vector<int32_t> routes_out_, routes_in_;  // [rows, 2 * top_k] ids, and the bits of shares
  Tokens own_;
  int64_t rows_sent_ = 0;
  int64_t rows_received_ = 0;

  // Device memory.
  DeviceMemory memory_;
  Payload payload_;
  int32_t* device_places_ = nullptr;  // [max_tokens, ranks]
  void* send_ = nullptr;              // [rows] of payload
  void* receive_ = nullptr;           // [rows, hidden] of dtype
  int32_t* receive_ids_ = nullptr;    // [rows, top_k]
  float* receive_shares_ = nullptr;   // [rows, top_k]
  float* results_ = nullptr;          // [rows received, hidden]
  float* returned_ = nullptr;         // [rows sent, hidden]
};

}  // namespace sluice::moe
