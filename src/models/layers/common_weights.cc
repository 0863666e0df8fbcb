#include "models/layers/common_weights.h"

#include <algorithm>
#include <map>
#include <set>

namespace sluice::models {
namespace {

using Key = std::pair<int64_t, int64_t>;

struct Found {
  std::vector<size_t> owners;  // ascending
  std::optional<CommonWeight> place;
  size_t packs = 0;
  bool declared_here = false;  // by the rank that asks, so far
};

}  // namespace

CommonWeights find_common(std::span<const std::vector<WeightIdentity>> declared, size_t rank) {
  std::map<Key, Found> found;
  for (size_t owner = 0; owner < declared.size(); ++owner) {
    for (const WeightIdentity& weight : declared[owner]) {
      if (weight.hash == 0) continue;
      auto& owners = found[{weight.hash, weight.bytes}].owners;
      if (owners.empty() || owners.back() != owner) owners.push_back(owner);
    }
  }
  CommonWeights common;
  std::vector<int64_t> packed(declared.size());  // by each rank
  for (const auto& weights : declared) {
    for (const WeightIdentity& weight : weights) {
      const auto at = found.find({weight.hash, weight.bytes});
      if (at == found.end() || at->second.owners.size() < 2 || at->second.place) continue;
      Found& each = at->second;
      each.packs = *std::ranges::min_element(each.owners, {}, [&](size_t owner) { return packed[owner]; });
      packed[each.packs] += weight.bytes;
      each.place = {.offset = common.bytes, .owners = std::ssize(each.owners)};
      common.bytes += aligned(static_cast<size_t>(weight.bytes));
    }
  }
  for (const WeightIdentity& weight : declared[rank]) {
    const auto at = found.find({weight.hash, weight.bytes});
    if (at == found.end()) {
      common.entries.emplace_back();
      continue;
    }
    Found& each = at->second;
    common.entries.push_back(each.place);
    if (common.entries.back()) common.entries.back()->own = each.packs == rank && !each.declared_here;
    each.declared_here = true;
  }
  return common;
}

int64_t proportional_bytes(std::span<const WeightIdentity> declared, const CommonWeights& common) {
  double bytes = 0;
  std::set<Key> counted;
  for (size_t i = 0; i < declared.size(); ++i) {
    if (declared[i].hash != 0 && !counted.insert({declared[i].hash, declared[i].bytes}).second) continue;
    const auto& place = common.entries[i];
    bytes += static_cast<double>(declared[i].bytes) / static_cast<double>(place ? place->owners : 1);
  }
  return static_cast<int64_t>(bytes);
}

}  // namespace sluice::models
