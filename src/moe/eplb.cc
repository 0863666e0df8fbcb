#include "moe/eplb.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace sluice::moe {
namespace {

size_t at(int64_t i) { return static_cast<size_t>(i); }

Error misfit(std::string_view what, int64_t count, std::string_view parts, int64_t of) {
  return {ErrorCode::kInvalidArgument,
          fmt::format("{} {} cannot be divided equally among {} {}", count, what, of, parts)};
}

Result<void> check(const ExpertLoads& loads, const Rebalance& to) {
  const int64_t logical = loads.empty() ? 0 : std::ssize(loads[0]);
  for (const auto& layer : loads) {
    if (std::ssize(layer) != logical) {
      return Error{ErrorCode::kInvalidArgument, fmt::format("layers of {} and of {} experts", logical, layer.size())};
    }
    if (std::ranges::any_of(layer, [](int64_t load) { return load < 0; })) {
      return Error{ErrorCode::kInvalidArgument, "an expert with less than 0 tokens"};
    }
  }
  if (logical == 0) return Error{ErrorCode::kInvalidArgument, "no layer has experts"};
  if (to.physical < logical) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("{} physical experts are too few for {} logical ones", to.physical, logical)};
  }
  if (to.ranks < 1 || to.physical % to.ranks != 0) return misfit("physical experts", to.physical, "ranks", to.ranks);
  if (to.nodes < 1 || to.ranks % to.nodes != 0) return misfit("ranks", to.ranks, "nodes", to.nodes);
  if (to.groups < 1 || logical % to.groups != 0) return misfit("experts", logical, "groups", to.groups);
  if (to.groups % to.nodes != 0) return misfit("groups", to.groups, "nodes", to.nodes);
  return {};
}

// The places of items that were packed: pack p has places [p * size, (p + 1) * size), in the order in which they came.
std::vector<int64_t> places_of(std::span<const double> weights, int64_t packs) {
  const std::vector<int64_t> pack = pack_evenly(weights, packs);
  std::vector<int64_t> order(weights.size()), next(at(packs)), places(weights.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int64_t a, int64_t b) { return weights[at(a)] > weights[at(b)]; });
  const int64_t size = std::ssize(weights) / packs;
  if (size == 1) return pack;  // an item to each
  for (const int64_t item : order) places[at(item)] = pack[at(item)] * size + next[at(pack[at(item)])]++;
  return places;
}

// Logical experts in the order of the nodes that their groups go to.
std::vector<int32_t> experts_by_node(const std::vector<int64_t>& loads, const Rebalance& to) {
  const int64_t size = std::ssize(loads) / to.groups;
  std::vector<double> groups(at(to.groups));
  for (int64_t e = 0; e < std::ssize(loads); ++e) groups[at(e / size)] += static_cast<double>(loads[at(e)]);
  const std::vector<int64_t> places = places_of(groups, to.nodes);
  std::vector<int32_t> experts(loads.size());
  for (int64_t e = 0; e < std::ssize(loads); ++e) {
    experts[at(places[at(e / size)] * size + e % size)] = static_cast<int32_t>(e);
  }
  return experts;
}

std::vector<int32_t> place_layer(const std::vector<int64_t>& loads, const Rebalance& to) {
  const std::vector<int32_t> ordered = experts_by_node(loads, to);
  const int64_t per_node = std::ssize(loads) / to.nodes, copies_per_node = to.physical / to.nodes;
  std::vector<int32_t> out(at(to.physical));
  for (int64_t node = 0; node < to.nodes; ++node) {
    const auto experts = std::span(ordered).subspan(at(node * per_node), at(per_node));
    std::vector<double> weights;
    for (const int32_t e : experts) weights.push_back(static_cast<double>(loads[at(e)]));
    const std::vector<int32_t> copies = replicate(weights, copies_per_node);
    std::vector<int64_t> counts(at(per_node));
    for (const int32_t e : copies) ++counts[at(e)];
    std::vector<double> copy_weights;
    for (const int32_t e : copies) copy_weights.push_back(weights[at(e)] / static_cast<double>(counts[at(e)]));
    const std::vector<int64_t> places = places_of(copy_weights, to.ranks / to.nodes);
    for (size_t i = 0; i < copies.size(); ++i) {
      out[at(node * copies_per_node + places[i])] = experts[at(copies[i])];
    }
  }
  return out;
}

}  // namespace

std::vector<int64_t> pack_evenly(std::span<const double> weights, int64_t packs) {
  const int64_t size = std::ssize(weights) / packs;
  SLUICE_CHECK(size * packs == std::ssize(weights), "{} items in {} packs", weights.size(), packs);
  std::vector<int64_t> order(weights.size()), pack(weights.size());
  std::iota(order.begin(), order.end(), 0);
  if (size == 1) return order;
  std::ranges::stable_sort(order, [&](int64_t a, int64_t b) { return weights[at(a)] > weights[at(b)]; });
  std::vector<double> total(at(packs));
  std::vector<int64_t> items(at(packs));
  for (const int64_t item : order) {
    int64_t lightest = -1;
    for (int64_t p = 0; p < packs; ++p) {
      if (items[at(p)] < size && (lightest < 0 || total[at(p)] < total[at(lightest)])) lightest = p;
    }
    pack[at(item)] = lightest;
    total[at(lightest)] += weights[at(item)];
    ++items[at(lightest)];
  }
  return pack;
}

std::vector<int32_t> replicate(std::span<const double> loads, int64_t physical) {
  std::vector<int32_t> out(at(physical));
  std::iota(out.begin(), out.begin() + std::ssize(loads), 0);
  std::vector<double> copies(loads.size(), 1);
  for (int64_t i = std::ssize(loads); i < physical; ++i) {
    size_t most = 0;
    for (size_t e = 1; e < loads.size(); ++e) {
      if (loads[e] / copies[e] > loads[most] / copies[most]) most = e;
    }
    out[at(i)] = static_cast<int32_t>(most);
    ++copies[most];
  }
  return out;
}

Result<PhysicalToLogical> rebalance_hierarchical(const ExpertLoads& loads, const Rebalance& to) {
  SLUICE_TRY_VOID(check(loads, to));
  PhysicalToLogical location;
  for (const auto& layer : loads) location.push_back(place_layer(layer, to));
  return location;
}

Result<PhysicalToLogical> rebalance_global(const ExpertLoads& loads, const Rebalance& to) {
  return rebalance_hierarchical(loads, {.physical = to.physical, .ranks = to.ranks});
}

PhysicalToLogical trivial_location(int64_t layers, int64_t logical, int64_t physical) {
  std::vector<int32_t> layer(at(physical));
  for (int64_t i = 0; i < physical; ++i) layer[at(i)] = static_cast<int32_t>(i % logical);
  return PhysicalToLogical(at(layers), layer);
}

double balancedness(std::span<const int64_t> rank_tokens) {
  const int64_t most = rank_tokens.empty() ? 0 : *std::ranges::max_element(rank_tokens);
  if (most == 0) return 1;
  const int64_t sum = std::accumulate(rank_tokens.begin(), rank_tokens.end(), int64_t{0});
  return static_cast<double>(sum) / static_cast<double>(rank_tokens.size()) / static_cast<double>(most);
}

double expected_balancedness(const ExpertLoads& loads, const PhysicalToLogical& location, int64_t ranks) {
  double sum = 0;
  int64_t layers = 0;
  for (size_t layer = 0; layer < loads.size(); ++layer) {
    const auto& of_rank = location[layer];
    std::vector<int64_t> copies(loads[layer].size());
    for (const int32_t e : of_rank) ++copies[at(e)];
    std::vector<double> tokens(at(ranks));
    const int64_t per_rank = std::ssize(of_rank) / ranks;
    for (int64_t i = 0; i < std::ssize(of_rank); ++i) {
      const int32_t e = of_rank[at(i)];
      tokens[at(i / per_rank)] += static_cast<double>(loads[layer][at(e)]) / static_cast<double>(copies[at(e)]);
    }
    const double most = *std::ranges::max_element(tokens);
    if (most <= 0) continue;
    ++layers;
    sum += std::accumulate(tokens.begin(), tokens.end(), 0.0) / static_cast<double>(ranks) / most;
  }
  return layers == 0 ? 1 : sum / static_cast<double>(layers);
}

}  // namespace sluice::moe
