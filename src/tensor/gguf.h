// GGUF files (version 2 and 3, little endian): metadata and tensors.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "tensor/mapped_file.h"
#include "tensor/stored_tensor.h"

namespace sluice::tensor {

// A metadata value. Every integer type is widened to int64, both float types to double; arrays are of one kind.
using GgufValue = std::variant<int64_t, double, bool, std::string, std::vector<int64_t>, std::vector<double>,
                               std::vector<bool>, std::vector<std::string>>;

// Immutable after open; any thread.
class GgufFile {
 public:
  static Result<std::shared_ptr<const GgufFile>> open(const std::string& path);

  const std::string& path() const { return file_->path(); }
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  // The value if the key is there and has that kind.
  template <class T>
  const T* get(std::string_view key) const {
    const auto at = metadata_.find(key);
    return at == metadata_.end() ? nullptr : std::get_if<T>(&at->second);
  }
  // Names as in the file ("blk.0.attn_q.weight"); shapes outermost first.
  const std::map<std::string, StoredTensor, std::less<>>& tensors() const { return tensors_; }

 private:
  GgufFile() = default;

  std::shared_ptr<const MappedFile> file_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::map<std::string, StoredTensor, std::less<>> tensors_;
};

}  // namespace sluice::tensor
