#include "engine/routed_experts.h"

#include <utility>

#include "base/check.h"

namespace sluice::engine {

RoutedExperts::RoutedExperts(int64_t slots, int64_t layers, models::Routing shape)
    : layers_(layers), shape_(std::move(shape)), chosen_(static_cast<size_t>(slots * shape_.layers * shape_.top_k)) {}

void RoutedExperts::record(std::span<const int32_t> slots, const models::Routing& chosen) {
  const int64_t tokens = std::ssize(slots), top_k = shape_.top_k;
  SLUICE_CHECK(std::ssize(chosen.experts) == shape_.layers * tokens * top_k,
               "{} choices of {} layers for {} tokens of {} experts each", chosen.experts.size(), shape_.layers, tokens,
               top_k);
  const int32_t* from = chosen.experts.data();
  for (int64_t layer = 0; layer < shape_.layers; ++layer) {
    for (const int32_t slot : slots) {
      Expert* to = chosen_.data() + (slot * shape_.layers + layer) * top_k;
      for (int64_t k = 0; k < top_k; ++k) *to++ = static_cast<Expert>(*from++);
    }
  }
}

std::vector<int32_t> RoutedExperts::of(std::span<const int32_t> slots) const {
  const int64_t top_k = shape_.top_k;
  std::vector<int32_t> out(slots.size() * static_cast<size_t>(layers_ * top_k));
  for (size_t i = 0; i < slots.size(); ++i) {
    int32_t* token = out.data() + static_cast<int64_t>(i) * layers_ * top_k;
    for (int64_t layer = 0; layer < shape_.layers; ++layer) {
      const Expert* from = chosen_.data() + (slots[i] * shape_.layers + layer) * top_k;
      for (int64_t k = 0; k < top_k; ++k) token[shape_.numbers[static_cast<size_t>(layer)] * top_k + k] = from[k];
    }
  }
  return out;
}

}  // namespace sluice::engine
