// Strings by id and ids by string, for vocabularies of some hundred thousand tokens: one block of text, one flat hash
// table, no node per token.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::tokenizer {

class TokenTable {
 public:
  // `texts` by id. An empty text is a hole: it has no entry in the index. Of equal texts the lowest id is found, and
  // `index` false leaves the index out.
  explicit TokenTable(const std::vector<std::string_view>& texts, bool index);
  TokenTable() = default;

  size_t size() const { return offsets_.empty() ? 0 : offsets_.size() - 1; }
  // Empty for an id that is not there.
  std::string_view text(int32_t id) const {
    if (id < 0 || static_cast<size_t>(id) >= size()) return {};
    return std::string_view(block_).substr(offsets_[id], offsets_[id + 1] - offsets_[id]);
  }
  // The id, or -1.
  int32_t find(std::string_view text) const;

 private:
  std::string block_;
  std::vector<uint32_t> offsets_;  // size() + 1
  std::vector<int32_t> slots_;     // open addressing, a power of two; -1: free
};

}  // namespace sluice::tokenizer
