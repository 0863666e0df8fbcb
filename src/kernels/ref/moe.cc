#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/ref/ref.h"

namespace sluice::kernels::ref {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The `count` best of `values`, the best first, of equal ones the lower, and how far the last of them is from the next.
std::vector<int64_t> best_of(const std::vector<double>& values, int64_t count, double& margin) {
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  const auto at = [&](int64_t i) { return values[static_cast<size_t>(i)]; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return at(a) > at(b); });
  if (count < static_cast<int64_t>(order.size())) {
    margin = std::min(margin, at(order[static_cast<size_t>(count) - 1]) - at(order[static_cast<size_t>(count)]));
  }
  order.resize(static_cast<size_t>(count));
  return order;
}

std::vector<double> scores_of(const RouteArgs& args, const float* logits) {
  std::vector<double> scores(logits, logits + args.experts);
  if (args.score == RouterScore::kSigmoid) {
    for (double& score : scores) score = 1 / (1 + std::exp(-score));
    return scores;
  }
  const double top = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (double& score : scores) total += score = std::exp(score - top);
  for (double& score : scores) score /= total;
  return scores;
}

}  // namespace

void route(const RouteArgs& args) {
  const int64_t size = args.experts / args.groups;
  for (int64_t i = 0; i < args.n; ++i) {
    if (args.group_rows != nullptr && i % args.padded_rows >= args.group_rows[i / args.padded_rows]) {
      for (int64_t k = 0; k < args.top_k; ++k) args.ids[i * args.top_k + k] = -1;
      for (int64_t k = 0; k < args.top_k; ++k) args.weights[i * args.top_k + k] = 0;
      if (args.margins != nullptr) args.margins[i] = 0;
      continue;
    }
    const std::vector<double> scores = scores_of(args, args.logits + i * args.experts);
    std::vector<double> choice = scores;
    for (int64_t e = 0; e < args.experts && args.bias != nullptr; ++e) choice[static_cast<size_t>(e)] += args.bias[e];

    double margin = kInfinity;
    std::vector<double> group_scores;
    for (int64_t g = 0; g < args.groups; ++g) {
      std::vector<double> members(choice.begin() + g * size, choice.begin() + (g + 1) * size);
      std::sort(members.begin(), members.end(), std::greater<>());
      const bool two = args.group_score == GroupScore::kBestTwo && size > 1;
      group_scores.push_back(two ? members[0] + members[1] : members[0]);
    }
    const std::vector<int64_t> kept = best_of(group_scores, args.kept_groups, margin);
    for (int64_t e = 0; e < args.experts; ++e) {
      if (std::find(kept.begin(), kept.end(), e / size) == kept.end()) choice[static_cast<size_t>(e)] = -kInfinity;
    }
    const std::vector<int64_t> chosen = best_of(choice, args.top_k, margin);

    for (int64_t k = 0; k < args.top_k; ++k) {
      args.ids[i * args.top_k + k] = static_cast<int32_t>(chosen[static_cast<size_t>(k)]);
    }
    const int32_t* used = (args.forced == nullptr ? args.ids : args.forced) + i * args.top_k;
    double total = 0;
    for (int64_t k = 0; k < args.top_k; ++k) total += scores[static_cast<size_t>(used[k])];
    for (int64_t k = 0; k < args.top_k; ++k) {
      const double share = scores[static_cast<size_t>(used[k])] / (args.renormalise ? total : 1);
      args.weights[i * args.top_k + k] = static_cast<float>(share * args.scale);
    }
    if (args.margins != nullptr) args.margins[i] = static_cast<float>(margin);
  }
}

void choose_copies(const ChooseCopiesArgs& args) {
  for (int64_t p = 0; p < args.n * args.top_k; ++p) {
    std::vector<int32_t> copies;
    for (int64_t k = 0; args.ids[p] >= 0 && k < args.width; ++k) {
      const int32_t copy = args.copies[args.ids[p] * args.width + k];
      if (copy >= 0) copies.push_back(copy);
    }
    const auto turn = static_cast<uint64_t>(p / args.top_k + args.ids[p]);
    const uint64_t drawn = splitmix64(args.seed + static_cast<uint64_t>(p));
    args.out[p] = copies.empty() ? -1 : copies[(args.random ? drawn : turn) % copies.size()];
  }
}

void sort_by_expert(const SortByExpertArgs& args) {
  int32_t next = 0;
  for (int64_t e = 0; e < args.experts; ++e) {
    args.starts[e] = next;
    for (int64_t i = 0; i < args.n_pairs; ++i) {
      if (args.ids[i] == args.first + e) args.rows[i] = next++;
    }
    args.counts[e] = next - args.starts[e];
    if (args.loads != nullptr) args.loads[e] += args.counts[e];
  }
  for (int64_t i = 0; i < args.n_pairs; ++i) {
    if (args.ids[i] < args.first || args.ids[i] >= args.first + args.experts) args.rows[i] = -1;
  }
}

void scatter_rows(const ScatterRowsArgs& args) {
  const size_t bytes = static_cast<size_t>(args.width) * tensor::block_bytes(args.dtype);
  for (int64_t i = 0; i < args.n * args.copies; ++i) {
    if (args.rows[i] < 0) continue;
    std::memcpy(static_cast<char*>(args.out) + static_cast<size_t>(args.rows[i]) * bytes,
                static_cast<const char*>(args.in) + static_cast<size_t>(i / args.copies) * bytes, bytes);
  }
}

void grouped_linear(const GroupedLinearArgs& args) {
  const LinearShape& shape = *args.shape;
  const size_t in_bytes = static_cast<size_t>(shape.in) * tensor::block_bytes(shape.dtype);
  for (int64_t e = 0; e < args.experts; ++e) {
    linear({.shape = &shape,
            .weight = static_cast<const char*>(args.weights) + static_cast<size_t>(e) * args.weight_stride,
            .in = static_cast<const char*>(args.in) + static_cast<size_t>(args.starts[e]) * in_bytes,
            .out = args.out + args.starts[e] * shape.out,
            .n = args.counts[e]});
  }
}

void combine_rows(const CombineRowsArgs& args) {
  for (int64_t i = 0; i < args.n; ++i) {
    for (int64_t j = 0; j < args.width; ++j) {
      double sum = args.out[i * args.width + j];
      for (int64_t k = 0; k < args.copies; ++k) {
        const int32_t row = args.rows[i * args.copies + k];
        if (row < 0) continue;
        const double weight = args.weights == nullptr ? 1 : args.weights[i * args.copies + k];
        sum += weight * args.in[row * args.width + j];
      }
      args.out[i * args.width + j] = static_cast<float>(sum);
    }
  }
}

}  // namespace sluice::kernels::ref
