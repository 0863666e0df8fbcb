// Memory of a step that holds nothing from one step to the next.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "kernels/kernels.h"

namespace sluice::models {

// Buffers are declared by name while a model is built, then allocated for the largest step and kept at their addresses.
// Who declares the same name gets the same memory: the layers of a model run one after another.
class Scratch {
 public:
  struct Slot {
    size_t index = 0;
  };

  explicit Scratch(const kernels::Backend& backend) : backend_(backend) {}
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Rows of `row_bytes`, as many as a product of rows_per_token * n_tokens rows may touch, and extra_rows more.
  Slot declare(std::string_view name, int64_t row_bytes, int64_t rows_per_token = 1, int64_t extra_rows = 0);
  // The same as another's, before allocate() of either.
  void declare_all_of(const Scratch& other) { buffers_ = other.buffers_; }
  // Once, after all declarations. Memory is taken only as it is touched.
  Result<void> allocate(int64_t max_tokens);
  size_t bytes() const;  // that it took

  // After allocate().
  template <class T>
  T* at(Slot slot) const {
    return static_cast<T*>(buffers_[slot.index].memory);
  }

 private:
  struct Buffer {
    std::string name;
    int64_t row_bytes;
    int64_t rows_per_token;
    int64_t extra_rows;
    void* memory = nullptr;
    size_t bytes = 0;
  };

  const kernels::Backend& backend_;
  std::vector<Buffer> buffers_;
};

}  // namespace sluice::models
