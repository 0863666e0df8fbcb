// Which experts the tokens went to whose KV is in the pool, slot by slot: a token that is found in the prefix cache was
// routed when somebody computed it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "models/runner.h"

namespace sluice::engine {

// Used by one thread; of() may run while another records what other slots had.
class RoutedExperts {
 public:
  // `shape`: what the model's steps give, without tokens. `layers`: of the model.
  RoutedExperts(int64_t slots, int64_t layers, models::Routing shape);

  static int64_t bytes_per_token(const models::Routing& shape) {
    return shape.layers * shape.top_k * static_cast<int64_t>(sizeof(Expert));
  }

  // What a step chose for tokens whose KV went to `slots`.
  void record(std::span<const int32_t> slots, const models::Routing& chosen);
  // [slots, layers of the model, top_k]; zeros in layers without experts.
  std::vector<int32_t> of(std::span<const int32_t> slots) const;

 private:
  using Expert = uint16_t;

  const int64_t layers_;
  const models::Routing shape_;
  std::vector<Expert> chosen_;  // [slots, layers with experts, top_k]
};

}  // namespace sluice::engine
