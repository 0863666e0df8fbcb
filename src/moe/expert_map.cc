#include "moe/expert_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/rng.h"

namespace sluice::moe {
namespace {

using nlohmann::json;

constexpr std::string_view kFlag = "--init-expert-location";
constexpr uint64_t kSeed = 42;
constexpr int64_t kMostCount = int64_t{1} << 50;  // of a step; sums are far from the end of 64 bits

Error bad(std::string what) { return {ErrorCode::kBadOption, fmt::format("{}: {}", kFlag, what)}; }

// Converting would cut fractions off, and wrap what is too large.
Result<void> check_whole(const json& value, std::string_view name, int64_t most) {
  if (value.is_array()) {
    for (const json& inner : value) SLUICE_TRY_VOID(check_whole(inner, name, most));
    return {};
  }
  const bool fits = value.is_number_unsigned() ? value.get<uint64_t>() <= static_cast<uint64_t>(most)
                                               : value.is_number_integer() && value.get<int64_t>() >= -most;
  if (fits) return {};
  return bad(fmt::format("{} has {} where a whole number of at most {} is wanted", name, value.dump(), most));
}

// [layers][experts], or [steps][layers][experts], which are added up.
Result<ExpertLoads> read_counts(const json& counts, const ExpertSizes& sizes) {
  const bool by_step = !counts.empty() && !counts[0].empty() && counts[0][0].is_array();
  std::vector<ExpertLoads> steps;
  if (by_step) {
    steps = counts.get<std::vector<ExpertLoads>>();
  } else {
    steps.push_back(counts.get<ExpertLoads>());
  }
  ExpertLoads sum(static_cast<size_t>(sizes.layers), std::vector<int64_t>(static_cast<size_t>(sizes.experts)));
  for (const ExpertLoads& step : steps) {
    if (step.size() != sum.size()) {
      return bad(fmt::format("logical_count is of {} layers, and the model has {}", step.size(), sum.size()));
    }
    for (size_t layer = 0; layer < sum.size(); ++layer) {
      if (step[layer].size() != sum[layer].size()) {
        return bad(
            fmt::format("logical_count is of {} experts, and a layer has {}", step[layer].size(), sizes.experts));
      }
      for (size_t e = 0; e < sum[layer].size(); ++e) sum[layer][e] += step[layer][e];
    }
  }
  return sum;
}

Result<PhysicalToLogical> read_location(const ExpertPlacement& placement, const ExpertSizes& sizes) {
  const json given = json::parse(placement.location, nullptr, /*allow_exceptions=*/false);
  if (!given.is_object()) return bad("'trivial', a .json file or JSON is wanted");
  try {
    if (const auto map = given.find("physical_to_logical_map"); map != given.end()) {
      SLUICE_TRY_VOID(check_whole(*map, map.key(), std::numeric_limits<int32_t>::max()));
      return map->get<PhysicalToLogical>();
    }
    if (const auto counts = given.find("logical_count"); counts != given.end()) {
      SLUICE_TRY_VOID(check_whole(*counts, counts.key(), kMostCount));
      SLUICE_TRY(const ExpertLoads loads, read_counts(*counts, sizes));
      auto location = place_experts(loads, placement, sizes);
      if (!location.ok()) return bad(location.error().message);
      return location;
    }
  } catch (const json::exception& e) {
    return bad(e.what());
  }
  return bad("neither physical_to_logical_map nor logical_count is there");
}

// That each layer has its number of experts, and each expert is somewhere.
Result<void> check(const ExpertMap& map, int64_t layers) {
  if (std::ssize(map.location) != layers) {
    return bad(fmt::format("the map is of {} layers, and the model has {}", map.location.size(), layers));
  }
  for (int64_t layer = 0; layer < layers; ++layer) {
    const auto& of_layer = map.location[static_cast<size_t>(layer)];
    if (std::ssize(of_layer) != map.physical) {
      return bad(
          fmt::format("layer {} has {} physical experts, and {} are wanted: {} of the model and {} by "
                      "--ep-num-redundant-experts",
                      layer, of_layer.size(), map.physical, map.logical, map.physical - map.logical));
    }
    std::vector<bool> found(static_cast<size_t>(map.logical));
    for (const int32_t e : of_layer) {
      if (e < 0 || e >= map.logical) {
        return bad(fmt::format("layer {} has expert {}, and the last is {}", layer, e, map.logical - 1));
      }
      found[static_cast<size_t>(e)] = true;
    }
    if (const auto missing = std::ranges::find(found, false); missing != found.end()) {
      return bad(fmt::format("layer {} has no copy of expert {}", layer, missing - found.begin()));
    }
  }
  return {};
}

}  // namespace

int64_t ExpertMap::most_copies() const {
  if (moves) return physical - logical + 1;
  size_t most = 1;
  for (int64_t layer = 0; layer < std::ssize(location); ++layer) {
    for (const auto& of_expert : copies(layer)) most = std::max(most, of_expert.size());
  }
  return static_cast<int64_t>(most);
}

Result<PhysicalToLogical> place_experts(const ExpertLoads& loads, const ExpertPlacement& placement,
                                        const ExpertSizes& sizes) {
  const Rebalance to{.physical = sizes.experts + placement.redundant,
                     .ranks = sizes.ranks,
                     .nodes = placement.nodes,
                     .groups = sizes.groups};
  const bool hierarchical =
      placement.algorithm == "deepseek_hierarchical" || (placement.algorithm == "auto" && sizes.groups % to.nodes == 0);
  return hierarchical ? rebalance_hierarchical(loads, to) : rebalance_global(loads, to);
}

std::vector<std::vector<int32_t>> ExpertMap::copies(int64_t layer) const {
  std::vector<std::vector<int32_t>> all(static_cast<size_t>(logical));
  const auto& of_layer = location[static_cast<size_t>(layer)];
  for (size_t i = 0; i < of_layer.size(); ++i) {
    all[static_cast<size_t>(of_layer[i])].push_back(static_cast<int32_t>(i));
  }
  return all;
}

Result<ExpertMap> make_expert_map(const ExpertPlacement& placement, const ExpertSizes& sizes) {
  ExpertMap map{.logical = sizes.experts,
                .physical = sizes.experts + placement.redundant,
                .choice = placement.choice,
                .moves = placement.moves};
  if (map.physical % sizes.ranks != 0) {
    const int64_t over = map.physical % sizes.ranks;
    const int64_t more = placement.redundant + sizes.ranks - over, fewer = placement.redundant - over;
    return Error{
        ErrorCode::kBadOption,
        fmt::format("--ep-num-redundant-experts {}: {} experts and as many copies are not divided equally among "
                    "--ep-size {}; the nearest that are: {}",
                    placement.redundant, sizes.experts, sizes.ranks,
                    fewer < 0 ? fmt::format("{}", more) : fmt::format("{}, {}", fewer, more))};
  }
  if (placement.moves) {
    // What does not fit is found now, and not when there are loads.
    const ExpertLoads even(1, std::vector<int64_t>(static_cast<size_t>(sizes.experts), 1));
    if (const auto placed = place_experts(even, placement, sizes); !placed.ok()) {
      return Error{ErrorCode::kBadOption, fmt::format("--enable-eplb: {}", placed.error().message)};
    }
  }
  if (placement.location == "trivial") {
    map.location = trivial_location(sizes.layers, map.logical, map.physical);
    return map;
  }
  SLUICE_TRY(map.location, read_location(placement, sizes));
  SLUICE_TRY_VOID(check(map, sizes.layers));
  return map;
}

std::vector<int32_t> static_copies(const ExpertMap& map, int64_t layer, parallel::Place rank) {
  Rng rng(kSeed + static_cast<uint64_t>(layer));
  std::vector<int32_t> chosen;
  const int64_t per_rank = map.physical / rank.size;
  for (const auto& copies : map.copies(layer)) {
    // Who has none of them takes turns, beginning anywhere.
    size_t next = rng.below(copies.size());
    int32_t own = -1;
    for (int64_t r = 0; r <= rank.rank; ++r) {
      const auto here = std::ranges::find(copies, r, [&](int32_t copy) { return copy / per_rank; });
      own = here != copies.end() ? *here : copies[next++ % copies.size()];
    }
    chosen.push_back(own);
  }
  return chosen;
}

}  // namespace sluice::moe
