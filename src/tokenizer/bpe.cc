#include "tokenizer/bpe.h"

#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <memory>
#include <queue>

#include "base/check.h"
#include "tokenizer/utf8.h"

namespace sluice::tokenizer {

namespace {

// Words up to this many symbols are merged by scanning for the best pair each time: quadratic, and faster than a heap.
constexpr size_t kShort = 48;

// The words that a thread met lately with their ids. One slot per hash value: the newest word takes the slot.
class WordCache {
 public:
  static constexpr size_t kMaxLength = 22;
  static constexpr size_t kMaxIds = 8;

  struct Slot {
    uint32_t serial = 0;  // of the vocabulary; 0: empty
    uint32_t hash = 0;
    uint8_t length = 0;
    uint8_t n_ids = 0;
    char text[kMaxLength];
    int32_t ids[kMaxIds];
  };
  static_assert(sizeof(Slot) == 64);

  WordCache() : slots_(new Slot[kSlots]) {}

  Slot& slot(uint64_t hash) { return slots_[hash & (kSlots - 1)]; }

 private:
  static constexpr size_t kSlots = size_t{1} << 14;
  std::unique_ptr<Slot[]> slots_;
};

WordCache& word_cache() {
  thread_local WordCache instance;
  return instance;
}

uint64_t pair_key(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

uint64_t mix(uint64_t key) {
  key *= 0x9e3779b97f4a7c15;
  return key ^ (key >> 32);
}

std::atomic<uint32_t> next_serial{1};

}  // namespace

Bpe::Bpe(BpeConfig config) : config_(std::move(config)), serial_(next_serial.fetch_add(1)) {
  pairs_.assign(std::bit_ceil(config_.merges.size() * 2 + 2), Pair{kFree, 0, 0});
  const size_t mask = pairs_.size() - 1;
  for (size_t i = 0; i < config_.merges.size(); ++i) {
    const auto& merge = config_.merges[i];
    const size_t rank = merge.rank < 0 ? i : static_cast<size_t>(merge.rank);
    const uint64_t key = pair_key(merge.left, merge.right);
    size_t slot = mix(key) & mask;
    while (pairs_[slot].key != kFree && pairs_[slot].key != key) slot = (slot + 1) & mask;
    pairs_[slot] = {key, static_cast<uint32_t>(rank), merge.result};
  }
  config_.merges = {};
}

const Bpe::Pair* Bpe::find(int32_t left, int32_t right) const {
  const uint64_t key = pair_key(left, right);
  const size_t mask = pairs_.size() - 1;
  for (size_t slot = mix(key) & mask;; slot = (slot + 1) & mask) {
    const Pair& pair = pairs_[slot];
    if (pair.key == key) return &pair;
    if (pair.key == kFree) return nullptr;
  }
}

void Bpe::encode(std::string_view word, std::vector<int32_t>& ids) const {
  if (word.empty()) return;
  if (word.size() == 1 && config_.alphabet == BpeAlphabet::kBytes) {
    const int32_t id = config_.byte_ids[static_cast<unsigned char>(word[0])];
    if (id >= 0) {
      ids.push_back(id);
      return;
    }
  }
  if (word.size() > WordCache::kMaxLength) {
    encode_uncached(word, ids);
    return;
  }
  const uint64_t hash = XXH3_64bits_withSeed(word.data(), word.size(), serial_);
  auto& slot = word_cache().slot(hash);
  const auto check = static_cast<uint32_t>(hash >> 32);
  if (slot.hash == check && slot.serial == serial_ && slot.length == word.size() &&
      std::memcmp(slot.text, word.data(), word.size()) == 0) {
    ids.insert(ids.end(), slot.ids, slot.ids + slot.n_ids);
    return;
  }
  const size_t before = ids.size();
  encode_uncached(word, ids);
  const size_t n = ids.size() - before;
  if (n > WordCache::kMaxIds) return;
  slot.serial = serial_;
  slot.hash = check;
  slot.length = static_cast<uint8_t>(word.size());
  slot.n_ids = static_cast<uint8_t>(n);
  std::memcpy(slot.text, word.data(), word.size());
  std::copy_n(ids.begin() + static_cast<ptrdiff_t>(before), n, slot.ids);
}

void Bpe::encode_uncached(std::string_view word, std::vector<int32_t>& ids) const {
  if (config_.whole_words_first) {
    if (const int32_t id = config_.words.find(word); id >= 0) {
      ids.push_back(id);
      return;
    }
  }
  thread_local std::vector<int32_t> symbols;
  symbols.clear();
  symbols_of(word, symbols);
  if (symbols.size() <= kShort) {
    merge_short(symbols);
  } else {
    merge_long(symbols);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
  if (symbols.capacity() > (size_t{1} << 16)) symbols = {};  // one giant word does not hold its memory for ever
}

void Bpe::symbols_of(std::string_view word, std::vector<int32_t>& symbols) const {
  bool after_unknown = false;
  const auto unknown = [&] {
    if (config_.unknown_id >= 0 && !(after_unknown && config_.fuse_unknown)) symbols.push_back(config_.unknown_id);
    after_unknown = true;
  };
  const auto known = [&](int32_t id) {
    symbols.push_back(id);
    after_unknown = false;
  };
  if (config_.alphabet == BpeAlphabet::kBytes) {
    for (const char c : word) {
      const int32_t id = config_.byte_ids[static_cast<unsigned char>(c)];
      id >= 0 ? known(id) : unknown();
    }
    return;
  }
  while (!word.empty()) {
    const std::string_view character = word.substr(0, utf8_step(word).length);
    word.remove_prefix(character.size());
    if (const int32_t id = config_.words.find(character); id >= 0) {
      known(id);
    } else if (std::all_of(character.begin(), character.end(),
                           [&](char c) { return config_.byte_ids[static_cast<unsigned char>(c)] >= 0; })) {
      for (const char c : character) known(config_.byte_ids[static_cast<unsigned char>(c)]);
    } else {
      unknown();
    }
  }
}

void Bpe::merge_short(std::vector<int32_t>& symbols) const {
  size_t n = symbols.size();
  const Pair* pairs[kShort];  // pairs[i]: of symbols i and i + 1
  for (size_t i = 0; i + 1 < n; ++i) pairs[i] = find(symbols[i], symbols[i + 1]);
  while (n > 1) {
    uint32_t best_rank = UINT32_MAX;
    size_t best = 0;
    for (size_t i = 0; i + 1 < n; ++i) {
      if (pairs[i] != nullptr && pairs[i]->rank < best_rank) {
        best_rank = pairs[i]->rank;
        best = i;
      }
    }
    if (best_rank == UINT32_MAX) break;
    symbols[best] = pairs[best]->result;
    std::copy(symbols.begin() + static_cast<ptrdiff_t>(best) + 2, symbols.begin() + static_cast<ptrdiff_t>(n),
              symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
    std::copy(pairs + best + 1, pairs + n - 1, pairs + best);
    --n;
    if (best > 0) pairs[best - 1] = find(symbols[best - 1], symbols[best]);
    if (best + 1 < n) pairs[best] = find(symbols[best], symbols[best + 1]);
  }
  symbols.resize(n);
}

void Bpe::merge_long(std::vector<int32_t>& symbols) const {
  constexpr uint32_t kNone = UINT32_MAX;
  SLUICE_CHECK(symbols.size() < kNone, "a word of {} symbols", symbols.size());
  struct Candidate {
    uint32_t rank;
    uint32_t at;
    uint64_t key;  // of the pair as it was; another key there by now means that the candidate is out of date
    bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  const auto n = static_cast<uint32_t>(symbols.size());
  std::vector<uint32_t> next(n), previous(n);
  std::vector<Candidate> initial;
  for (uint32_t i = 0; i < n; ++i) {
    next[i] = i + 1 < n ? i + 1 : kNone;
    previous[i] = i > 0 ? i - 1 : kNone;
    if (i + 1 == n) break;
    if (const Pair* pair = find(symbols[i], symbols[i + 1])) initial.push_back({pair->rank, i, pair->key});
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>(), std::move(initial));
  const auto offer = [&](uint32_t at) {
    if (at == kNone || next[at] == kNone) return;
    if (const Pair* pair = find(symbols[at], symbols[next[at]])) queue.push({pair->rank, at, pair->key});
  };
  constexpr int32_t kGone = -1;
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    const uint32_t right = next[top.at];
    if (symbols[top.at] == kGone || right == kNone || pair_key(symbols[top.at], symbols[right]) != top.key) continue;
    symbols[top.at] = find(symbols[top.at], symbols[right])->result;
    symbols[right] = kGone;
    next[top.at] = next[right];
    if (next[right] != kNone) previous[next[right]] = top.at;
    offer(previous[top.at]);
    offer(top.at);
  }
  std::erase(symbols, kGone);
}

}  // namespace sluice::tokenizer
