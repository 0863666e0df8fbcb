// Products of quantised weights in tiles (quantised.h), as they are stored: each tile is read once for all rows, either
// those of inputs in eight bits, on the integer units, or of float32 ones, a few at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/quantised.h"
#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"

namespace sluice::kernels::cpu {

// Inputs in eight bits. Different rows may be rounded by different threads at once.
class RoundedRows {
 public:
  // Room for `rows` rows of `width` values, whole blocks. What was there is lost.
  void resize(int64_t rows, int64_t width);
  void round(const Simd& simd, const void* in, bool in_bf16, int64_t row);
  RoundedRow operator[](int64_t row) const;

 private:
  int64_t width_ = 0;
  std::vector<int8_t> values_;
  std::vector<float> scales_;
  std::vector<float> sums_;
  std::vector<int32_t> minus_;
  std::vector<int32_t> half_minus_;
};

int64_t tile_count(const LinearShape& shape);
// A whole weight [out, in].
size_t tiles_bytes(const LinearShape& shape);
void pack_tiles(const LinearShape& shape, const RowReader& rows, char* to);

// Columns of tiles [first, end) of args.n rows. `rounded` are the inputs, from row `first_row` on, null where args.in
// are float32 and are to be taken as they are.
void multiply_tiles(const Simd& simd, const LinearArgs& args, int64_t first, int64_t end, const RoundedRows* rounded,
                    int64_t first_row);

// Sums [rows, stride] to their place in args.out: rows from `row` on, columns first .. first + width.
void put_columns(const LinearArgs& args, int64_t row, int64_t rows, int64_t first, int64_t width, const float* sums,
                 int64_t stride);

}  // namespace sluice::kernels::cpu
