#include "models/layers/routing.h"

#include "base/check.h"

namespace sluice::models {

RoutingRecord::~RoutingRecord() {
  for (const auto& [memory, bytes] : owned_) backend_.release(memory, bytes);
}

RoutingRecord::Layer RoutingRecord::declare(int64_t experts, int64_t top_k) {
  SLUICE_CHECK(layers_ == 0 || (experts == experts_ && top_k == top_k_), "layers of {} and of {} experts", experts_,
               experts);
  experts_ = experts;
  top_k_ = top_k;
  return {layers_++};
}

template <class T>
Result<T*> RoutingRecord::take(int64_t count) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(T);
  SLUICE_TRY(void* memory, backend_.allocate(bytes));
  owned_.emplace_back(memory, bytes);
  return static_cast<T*>(memory);
}

Result<void> RoutingRecord::allocate(const kernels::Context& context, int64_t max_tokens, bool choices) {
  if (layers_ == 0) return {};
  max_tokens_ = max_tokens;
  SLUICE_TRY(loads_, take<int64_t>(layers_ * experts_));
  const std::vector<int64_t> zeros(static_cast<size_t>(layers_ * experts_));
  backend_.copy_to_device(context, loads_, zeros.data(), zeros.size() * sizeof(int64_t));
  backend_.synchronize(context);
  if (!choices) return {};
  SLUICE_TRY(chosen_, take<int32_t>(layers_ * max_tokens * top_k_));
  SLUICE_TRY(margins_, take<float>(layers_ * max_tokens));
  SLUICE_TRY(forced_, take<int32_t>(layers_ * max_tokens * top_k_));
  return {};
}

size_t RoutingRecord::bytes() const {
  size_t sum = 0;
  for (const auto& [memory, bytes] : owned_) sum += bytes;
  return sum;
}

void RoutingRecord::force(const kernels::Context& context, std::span<const int32_t> experts) {
  forcing_ = !experts.empty();
  if (!forcing_) return;
  SLUICE_CHECK(forced_ != nullptr, "routing is forced where it is not kept");
  const int64_t of_layer = std::ssize(experts) / layers_;
  for (int64_t layer = 0; layer < layers_; ++layer) {
    const auto own = experts.subspan(static_cast<size_t>(layer * of_layer), static_cast<size_t>(of_layer));
    backend_.copy_to_device(context, forced_ + layer * max_tokens_ * top_k_, own.data(), own.size_bytes());
  }
}

}  // namespace sluice::models
