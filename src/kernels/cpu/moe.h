// The kernels of a mixture of experts that are not products: routing, sorting by expert, moving rows.
#pragma once

#include <vector>

#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"
#include "kernels/thread_pool.h"

namespace sluice::kernels::cpu {

// `scratch` has an entry per thread of the pool.
void route(const RouteArgs& args, ThreadPool& pool, std::vector<std::vector<float>>& scratch);
void choose_copies(const ChooseCopiesArgs& args, ThreadPool& pool);
// The rows of an expert begin where padded_rows() of the one before it end.
void sort_by_expert(const SortByExpertArgs& args, int64_t (*padded_rows)(int64_t n));
void scatter_rows(const ScatterRowsArgs& args, ThreadPool& pool);
void pack_rows(const PackRowsArgs& args, const Simd& simd, ThreadPool& pool);
void unpack_rows(const UnpackRowsArgs& args, const Simd& simd, ThreadPool& pool);
void combine_rows(const CombineRowsArgs& args, const Simd& simd, ThreadPool& pool);

}  // namespace sluice::kernels::cpu
