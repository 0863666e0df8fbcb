// What layers keep of every sequence, however long it is, such as the states of lightning attention.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "kernels/kernels.h"

namespace sluice::models {

// States are declared while a model is built, one of each per sequence in flight, and allocated once their number is
// known. float32: they sum up whole sequences.
class StateCache {
 public:
  struct State {
    size_t index = 0;
  };

  explicit StateCache(const kernels::Backend& backend) : backend_(backend) {}
  ~StateCache();
  StateCache(const StateCache&) = delete;
  StateCache& operator=(const StateCache&) = delete;

  State declare(int64_t values);
  size_t bytes_per_sequence() const { return static_cast<size_t>(values_per_sequence_) * sizeof(float); }
  // Once, after all declarations, with a row for each sequence in flight. kExhausted.
  Result<void> allocate(int64_t rows);

  // After allocate(): all states of one row to another one.
  void copy(const kernels::Context& context, int64_t from, int64_t to);
  // After allocate(): [rows, values].
  float* at(State state) const { return memory_ + rows_ * before_[state.index]; }

 private:
  const kernels::Backend& backend_;
  std::vector<int64_t> before_;  // values of a sequence in the states before this one
  std::vector<int64_t> values_;  // of a sequence, by state
  int64_t values_per_sequence_ = 0;
  int64_t rows_ = 0;
  float* memory_ = nullptr;
  std::vector<char> staged_;  // on the way through the host
};

}  // namespace sluice::models
