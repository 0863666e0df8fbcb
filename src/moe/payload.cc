#include "moe/payload.h"

namespace sluice::moe {

Payload::Payload(const kernels::Backend& backend, const Sizes& sizes, bool fp8)
    : backend_(backend), dtype_(sizes.dtype), row_(payload_row(sizes.hidden, sizes.dtype, fp8)), memory_(backend) {}

Result<void> Payload::allocate(int64_t max_tokens, int64_t max_received) {
  if (!fp8()) return {};
  SLUICE_TRY(packed_, memory_.take<char>(max_tokens * row_bytes()));
  SLUICE_TRY(arrived_, memory_.take<char>(max_received * row_bytes()));
  return {};
}

const void* Payload::pack(const kernels::Context& context, const void* x, int64_t n) {
  if (!fp8()) return x;
  backend_.pack_rows(context, {.in = x, .out = packed_, .dtype = dtype_, .row = row_, .n = n});
  return packed_;
}

void Payload::unpack(const kernels::Context& context, void* x, int64_t n) const {
  if (!fp8()) return;
  backend_.unpack_rows(context, {.in = arrived_, .out = x, .dtype = dtype_, .row = row_, .n = n});
}

}  // namespace sluice::moe
