// What the routers of a model did.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "kernels/kernels.h"

namespace sluice::models {

// Layers with experts are declared while a model is built, all with as many experts. Kept in device memory.
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

  // After allocate().
  int64_t* loads(Layer layer) const { return loads_ + layer.index * experts_; }  // [experts] tokens since the start
  // Null unless kept.
  int32_t* chosen(Layer layer) const {
    return chosen_ == nullptr ? nullptr : chosen_ + layer.index * max_tokens_ * top_k_;
  }
  float* margins(Layer layer) const { return margins_ == nullptr ? nullptr : margins_ + layer.index * max_tokens_; }

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
  std::vector<std::pair<void*, size_t>> owned_;
};

}  // namespace sluice::models
