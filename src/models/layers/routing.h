// What the routers of a model did.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "kernels/kernels.h"

namespace sluice::models {

// Layers with experts are declared while a model is built, all with as many experts, copies of experts counted each.
// Kept in device memory.
class RoutingRecord {
 public:
  struct Layer {
    int64_t index = 0;
  };

  explicit RoutingRecord(const kernels::Backend& backend) : backend_(backend) {}
  ~RoutingRecord();
  RoutingRecord(const RoutingRecord&) = delete;
  RoutingRecord& operator=(const RoutingRecord&) = delete;

  Layer declare(int64_t experts, int64_t top_k);
  int64_t layers() const { return layers_; }
  int64_t experts() const { return experts_; }
  int64_t top_k() const { return top_k_; }

  // Once, after all declarations; counts begin at zero. With `choices`, what the last step chose is kept as well.
  Result<void> allocate(const kernels::Context& context, int64_t max_tokens, bool choices);

  size_t bytes() const;

  // After allocate().
  int64_t* loads(Layer layer) const { return loads_ + layer.index * experts_; }  // [experts] tokens since the start
  // Null unless kept. From a row of the step on.
  int32_t* chosen(Layer layer, int64_t row = 0) const {
    return chosen_ == nullptr ? nullptr : chosen_ + (layer.index * max_tokens_ + row) * top_k_;
  }
  // What the tokens of the next steps go to in place of what the routers choose; null = they choose.
  const int32_t* forced(Layer layer, int64_t row = 0) const {
    return forcing_ ? forced_ + (layer.index * max_tokens_ + row) * top_k_ : nullptr;
  }
  // Where kept: `experts` [layers, n_tokens, top_k] in host memory, for each of the next steps; empty = none.
  void force(const kernels::Context& context, std::span<const int32_t> experts);
  float* margins(Layer layer, int64_t row = 0) const {
    return margins_ == nullptr ? nullptr : margins_ + layer.index * max_tokens_ + row;
  }

 private:
  template <class T>
  Result<T*> take(int64_t count);

  const kernels::Backend& backend_;
  int64_t layers_ = 0;
  int64_t experts_ = 0;
  int64_t top_k_ = 0;
  int64_t max_tokens_ = 0;
  int64_t* loads_ = nullptr;   // [layers, experts]
  int32_t* chosen_ = nullptr;  // [layers, max_tokens, top_k]
  float* margins_ = nullptr;   // [layers, max_tokens]
  int32_t* forced_ = nullptr;  // [layers, max_tokens, top_k]
  bool forcing_ = false;
  std::vector<std::pair<void*, size_t>> owned_;
};

}  // namespace sluice::models
