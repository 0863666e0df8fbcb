#include "tokenizer/token_table.h"

#include <xxhash.h>

#include <bit>

#include "base/check.h"

namespace sluice::tokenizer {

TokenTable::TokenTable(const std::vector<std::string_view>& texts, bool index) {
  size_t total = 0;
  for (const auto text : texts) total += text.size();
  SLUICE_CHECK(total <= UINT32_MAX, "a vocabulary of {} bytes", total);
  block_.reserve(total);
  offsets_.reserve(texts.size() + 1);
  offsets_.push_back(0);
  for (const auto text : texts) {
    block_.append(text);
    offsets_.push_back(static_cast<uint32_t>(block_.size()));
  }
  if (!index) return;
  slots_.assign(std::bit_ceil(texts.size() * 2 + 1), -1);
  const size_t mask = slots_.size() - 1;
  for (size_t id = 0; id < texts.size(); ++id) {
    if (texts[id].empty() || find(texts[id]) >= 0) continue;
    size_t slot = XXH3_64bits(texts[id].data(), texts[id].size()) & mask;
    while (slots_[slot] >= 0) slot = (slot + 1) & mask;
    slots_[slot] = static_cast<int32_t>(id);
  }
}

int32_t TokenTable::find(std::string_view wanted) const {
  if (slots_.empty()) return -1;
  const size_t mask = slots_.size() - 1;
  for (size_t slot = XXH3_64bits(wanted.data(), wanted.size()) & mask; slots_[slot] >= 0; slot = (slot + 1) & mask) {
    if (text(slots_[slot]) == wanted) return slots_[slot];
  }
  return -1;
}

}  // namespace sluice::tokenizer
