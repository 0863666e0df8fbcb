#include "kernels/kernel_times.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace sluice::kernels {
namespace {

TEST(KernelTimes, CountsCallsBytesAndOperations) {
  KernelTimes times;
  const auto backend = time_kernels(make_backend("cpu", 1).value(), times);
  const LinearShape shape{.in = 64, .out = 128};
  std::vector<char> weight(backend->packed_bytes(shape));
  backend->pack(
      shape,
      [](int64_t, int64_t count, void* to) {
        const std::vector<float> ones(static_cast<size_t>(count * 64), 1.0f);
        std::memcpy(to, ones.data(), ones.size() * sizeof(float));
      },
      weight.data());
  const std::vector<float> in(3 * 64, 2.0f);
  std::vector<float> out(3 * 128);
  for (int call = 0; call < 2; ++call) {
    backend->linear({}, {.shape = &shape, .weight = weight.data(), .in = in.data(), .out = out.data(), .n = 3});
  }
  EXPECT_EQ(out, std::vector<float>(3 * 128, 128.0f)) << "the kernel behind it has computed";

  // Two queries after six tokens of a sequence of eight: they see seven and eight.
  const std::vector<float> q(2 * 2 * 4, 1.0f), cache(9 * 4, 1.0f);
  std::vector<float> attended(2 * 2 * 4);
  const int32_t table[] = {1, 2, 3, 4, 5, 6, 7, 8}, row = 0, starts[] = {0, 2}, length = 8;
  backend->attention({}, {.q = q.data(),
                          .k_cache = cache.data(),
                          .v_cache = cache.data(),
                          .row = {.width = 4},
                          .slot_table = table,
                          .table_rows = &row,
                          .query_start = starts,
                          .seq_lens = &length,
                          .out = attended.data(),
                          .n_seqs = 1,
                          .n_heads = 2,
                          .n_kv_heads = 1,
                          .head_dim = 4,
                          .stride = 8,
                          .table_width = 8});

  ASSERT_EQ(times.size(), 2u);
  const KernelTime& linear = times.at("linear 64 -> 128");
  EXPECT_EQ(linear.calls, 2);
  EXPECT_GT(linear.seconds, 0);
  EXPECT_EQ(linear.bytes, 2.0 * static_cast<double>(weight.size()));
  EXPECT_EQ(linear.operations, 2 * 2.0 * 3 * 64 * 128);
  const KernelTime& attention = times.at("attention");
  EXPECT_EQ(attention.bytes, 2 * 8 * 4 * 4.0);
  EXPECT_EQ(attention.operations, (7 + 8) * 2 * 4 * 4.0);
}

}  // namespace
}  // namespace sluice::kernels
