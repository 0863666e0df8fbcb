// Row-wise work over the thread pool.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/thread_pool.h"

namespace sluice::kernels::cpu {

// Rows that one task of a row-wise kernel takes: enough to outweigh handing it out.
constexpr int64_t kRowsPerTask = 16;

// Calls body(i, thread) for every row i in [0, n).
template <class Body>
void each_row(ThreadPool& pool, int64_t n, const Body& body) {
  pool.parallel_for((n + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int thread) {
    const int64_t end = std::min(n, (task + 1) * kRowsPerTask);
    for (int64_t i = task * kRowsPerTask; i < end; ++i) body(i, thread);
  });
}

}  // namespace sluice::kernels::cpu
