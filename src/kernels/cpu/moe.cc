#include "kernels/cpu/moe.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/rows.h"

namespace sluice::kernels::cpu {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// The largest of `values`, of equal ones the first; -1 if there is none, which NaN is not.
int64_t best_of(const float* values, int64_t count) {
  int64_t best = -1;
  float top = kNever;
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] > top) {
      top = values[i];
      best = i;
    }
  }
  return best;
}

// Takes the best out of `values` and says which it was.
int64_t take_best(float* values, int64_t count, float* value) {
  const int64_t best = best_of(values, count);
  if (best >= 0) {
    *value = values[best];
    values[best] = kNever;
  }
  return best;
}

void score_row(const RouteArgs& args, const float* logits, float* scores) {
  if (args.score == RouterScore::kSigmoid) {
    for (int64_t e = 0; e < args.experts; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  const float top = *std::max_element(logits, logits + args.experts);
  float total = 0;
  for (int64_t e = 0; e < args.experts; ++e) total += scores[e] = std::exp(logits[e] - top);
  for (int64_t e = 0; e < args.experts; ++e) scores[e] /= total;
}

// Leaves the experts of the best groups in `choice`. Returns the margin of that.
float keep_groups(const RouteArgs& args, float* choice, float* group_scores) {
  const int64_t size = args.experts / args.groups;
  for (int64_t g = 0; g < args.groups; ++g) {
    float first = kNever, second = kNever;
    for (const float* value = choice + g * size; value < choice + (g + 1) * size; ++value) {
      second = std::max(second, std::min(first, *value));
      first = std::max(first, *value);
    }
    group_scores[g] = args.group_score == GroupScore::kBestTwo && size > 1 ? first + second : first;
  }
  float least = 0;
  float* dropped = group_scores + args.groups;
  std::copy_n(group_scores, args.groups, dropped);
  for (int64_t k = 0; k < args.kept_groups; ++k) {
    const int64_t g = take_best(group_scores, args.groups, &least);
    if (g >= 0) dropped[g] = kNever;
  }
  for (int64_t g = 0; g < args.groups; ++g) {
    if (dropped[g] > kNever) std::fill_n(choice + g * size, size, kNever);
  }
  const int64_t next = best_of(group_scores, args.groups);
  return next < 0 ? std::numeric_limits<float>::infinity() : least - group_scores[next];
}

bool is_padding(const RouteArgs& args, int64_t i) {
  return args.group_rows != nullptr && i % args.padded_rows >= args.group_rows[i / args.padded_rows];
}

void route_nowhere(const RouteArgs& args, int64_t i) {
  std::fill_n(args.ids + i * args.top_k, args.top_k, -1);
  std::fill_n(args.weights + i * args.top_k, args.top_k, 0.0f);
  if (args.margins != nullptr) args.margins[i] = 0;
}

// `scratch` has 2 * (experts + groups) floats.
void route_row(const RouteArgs& args, int64_t i, float* scratch) {
  float* scores = scratch;
  float* choice = scores + args.experts;
  score_row(args, args.logits + i * args.experts, scores);
  std::copy_n(scores, args.experts, choice);
  for (int64_t e = 0; e < args.experts && args.bias != nullptr; ++e) choice[e] += args.bias[e];
  float margin = std::numeric_limits<float>::infinity();
  if (args.kept_groups < args.groups) margin = keep_groups(args, choice, choice + args.experts);

  int32_t* ids = args.ids + i * args.top_k;
  float* weights = args.weights + i * args.top_k;
  float least = 0, total = 0;
  for (int64_t k = 0; k < args.top_k; ++k) {
    ids[k] = static_cast<int32_t>(take_best(choice, args.experts, &least));
  }
  const int32_t* used = args.forced == nullptr ? ids : args.forced + i * args.top_k;
  for (int64_t k = 0; k < args.top_k; ++k) {
    weights[k] = used[k] < 0 ? 0 : scores[used[k]];
    total += weights[k];
  }
  // Scores that have all underflowed stay zero.
  const float scale = args.renormalise && total > 0 ? args.scale / total : args.scale;
  for (int64_t k = 0; k < args.top_k; ++k) weights[k] *= scale;
  if (args.margins == nullptr) return;
  const int64_t next = best_of(choice, args.experts);
  args.margins[i] = next < 0 ? margin : std::min(margin, least - choice[next]);
}

}  // namespace

void route(const RouteArgs& args, ThreadPool& pool, std::vector<std::vector<float>>& scratch) {
  const auto floats = static_cast<size_t>(2 * (args.experts + args.groups));
  each_row(pool, args.n, [&](int64_t i, int thread) {
    if (is_padding(args, i)) return route_nowhere(args, i);
    auto& own = scratch[static_cast<size_t>(thread)];
    if (own.size() < floats) own.resize(floats);
    route_row(args, i, own.data());
  });
}

void choose_copies(const ChooseCopiesArgs& args, ThreadPool& pool) {
  each_row(pool, args.n, [&](int64_t i, int) {
    for (int64_t p = i * args.top_k; p < (i + 1) * args.top_k; ++p) {
      const int32_t id = args.ids[p];
      args.out[p] = -1;
      if (id < 0) continue;
      const int32_t* copies = args.copies + id * args.width;
      const auto count = static_cast<uint64_t>(std::find(copies, copies + args.width, -1) - copies);
      const uint64_t turn =
          args.random ? splitmix64(args.seed + static_cast<uint64_t>(p)) : static_cast<uint64_t>(i + id);
      args.out[p] = copies[turn % count];
    }
  });
}

void sort_by_expert(const SortByExpertArgs& args, int64_t (*padded_rows)(int64_t n)) {
  std::fill_n(args.counts, args.experts, 0);
  for (int64_t i = 0; i < args.n_pairs; ++i) {
    const int64_t e = args.ids[i] - args.first;
    args.rows[i] = e < 0 || e >= args.experts ? -1 : args.counts[e]++;
  }
  int64_t next = 0;
  for (int64_t e = 0; e < args.experts; ++e) {
    args.starts[e] = static_cast<int32_t>(next);
    next += padded_rows(args.counts[e]);
    if (args.loads != nullptr) args.loads[e] += args.counts[e];
  }
  for (int64_t i = 0; i < args.n_pairs; ++i) {
    if (args.rows[i] >= 0) args.rows[i] += args.starts[args.ids[i] - args.first];
  }
}

void scatter_rows(const ScatterRowsArgs& args, ThreadPool& pool) {
  const size_t bytes = static_cast<size_t>(args.width) * tensor::block_bytes(args.dtype);
  each_row(pool, args.n, [&](int64_t i, int) {
    const char* from = static_cast<const char*>(args.in) + static_cast<size_t>(i) * bytes;
    for (int64_t k = 0; k < args.copies; ++k) {
      const int32_t row = args.rows[i * args.copies + k];
      if (row >= 0) std::memcpy(static_cast<char*>(args.out) + static_cast<size_t>(row) * bytes, from, bytes);
    }
  });
}

void pack_rows(const PackRowsArgs& args, const Simd& simd, ThreadPool& pool) {
  const auto width = static_cast<size_t>(args.row.width);
  const size_t row_bytes = width * tensor::block_bytes(args.dtype);
  std::vector<std::vector<float>> widened(static_cast<size_t>(args.dtype == DType::kBf16 ? pool.size() : 0));
  each_row(pool, args.n, [&](int64_t i, int thread) {
    const char* in = static_cast<const char*>(args.in) + static_cast<size_t>(i) * row_bytes;
    const auto* values = reinterpret_cast<const float*>(in);
    if (args.dtype == DType::kBf16) {
      auto& own = widened[static_cast<size_t>(thread)];
      own.resize(width);
      simd.widen(in, /*in_bf16=*/true, args.row.width, own.data());
      values = own.data();
    }
    simd.write_kv(values, args.row, static_cast<char*>(args.out) + i * args.row.bytes());
  });
}

void unpack_rows(const UnpackRowsArgs& args, const Simd& simd, ThreadPool& pool) {
  const size_t row_bytes = static_cast<size_t>(args.row.width) * tensor::block_bytes(args.dtype);
  each_row(pool, args.n, [&](int64_t i, int) {
    simd.read_kv(static_cast<const char*>(args.in) + i * args.row.bytes(), args.row, 0, args.row.width,
                 static_cast<char*>(args.out) + static_cast<size_t>(i) * row_bytes, args.dtype == DType::kBf16);
  });
}

void combine_rows(const CombineRowsArgs& args, const Simd& simd, ThreadPool& pool) {
  each_row(pool, args.n, [&](int64_t i, int) {
    float* out = args.out + i * args.width;
    for (int64_t k = 0; k < args.copies; ++k) {
      const int32_t row = args.rows[i * args.copies + k];
      if (row < 0) continue;
      const float weight = args.weights == nullptr ? 1 : args.weights[i * args.copies + k];
      simd.add_scaled(args.in + row * args.width, args.width, weight, out, /*accumulate=*/true);
    }
  });
}

}  // namespace sluice::kernels::cpu
