// What norm_isa.cpp offers at each ISA level: row ranges, so that threading stays in norm.cpp.
#pragma once

#include "norm/params.h"

namespace flagattn {

// fp32 buffers with one element per column are this long and belong to one dtype of rows, whose kernels may keep the
// columns in an order of their own.
constexpr int64_t padded_columns(int64_t cols) { return (cols + 31) / 32 * 32; }

struct RmsNormKernels {
  // gain = weight + offset, for rows of `dtype`.
  void (*load_gain)(const void* weight, DType weight_dtype, float offset, int64_t cols, DType dtype, float* gain);
  // `stream`: y, or ds, is better written past the caches (arch/streaming.h).
  void (*forward_rows)(const RmsNormParams& params, const float* gain, int64_t row_begin, int64_t row_end, bool stream);
  // `dweight_partial` receives the sum over these rows; null: not asked for.
  void (*backward_rows)(const RmsNormBackwardParams& params, const float* gain, int64_t row_begin, int64_t row_end,
                        float* dweight_partial, bool stream);
  // Columns [col_begin, col_end) of dweight = the partials, one behind the other, added in index order. col_begin is a
  // multiple of 32.
  void (*reduce_dweight)(const float* partials, int64_t num_partials, int64_t cols, int64_t col_begin, int64_t col_end,
                         DType dtype, DType weight_dtype, void* dweight);
};

namespace scalar {
extern const RmsNormKernels rms_norm_kernels;
}
namespace avx2 {
extern const RmsNormKernels rms_norm_kernels;
}
namespace avx512 {
extern const RmsNormKernels rms_norm_kernels;
}

}  // namespace flagattn
