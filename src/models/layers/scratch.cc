#include "models/layers/scratch.h"

#include <algorithm>

namespace sluice::models {

Scratch::~Scratch() {
  for (const Buffer& buffer : buffers_) {
    if (buffer.memory != nullptr) backend_.release(buffer.memory, buffer.bytes);
  }
}

Scratch::Slot Scratch::declare(std::string_view name, int64_t row_bytes, int64_t rows_per_token, int64_t extra_rows) {
  const auto at = std::find_if(buffers_.begin(), buffers_.end(), [&](const Buffer& b) { return b.name == name; });
  if (at == buffers_.end()) {
    buffers_.push_back({std::string(name), row_bytes, rows_per_token, extra_rows});
    return {buffers_.size() - 1};
  }
  at->row_bytes = std::max(at->row_bytes, row_bytes);
  at->rows_per_token = std::max(at->rows_per_token, rows_per_token);
  at->extra_rows = std::max(at->extra_rows, extra_rows);
  return {static_cast<size_t>(at - buffers_.begin())};
}

size_t Scratch::bytes() const {
  size_t sum = 0;
  for (const Buffer& buffer : buffers_) sum += buffer.bytes;
  return sum;
}

Result<void> Scratch::allocate(int64_t max_tokens) {
  for (Buffer& buffer : buffers_) {
    const int64_t rows = backend_.padded_rows(max_tokens * buffer.rows_per_token) + buffer.extra_rows;
    buffer.bytes = static_cast<size_t>(rows * buffer.row_bytes);
    SLUICE_TRY(buffer.memory, backend_.allocate(buffer.bytes));
  }
  return {};
}

}  // namespace sluice::models
