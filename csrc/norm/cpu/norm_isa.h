// What norm_isa.cpp offers at each ISA level: row ranges, so that threading stays in norm.cpp.
#pragma once

#include "norm/params.h"

namespace flagattn {

struct RmsNormKernels {
  // gain[j] = weight[j] + offset in fp32.
  void (*load_gain)(const void* weight, DType dtype, float offset, int64_t cols, float* gain);
  void (*forward_rows)(const RmsNormParams& params, const float* gain, int64_t row_begin, int64_t row_end);
  // `dweight_partial` (cols) receives the sum over these rows; null: not asked for.
  void (*backward_rows)(const RmsNormBackwardParams& params, const float* gain, int64_t row_begin, int64_t row_end,
                        float* dweight_partial);
  // Columns [col_begin, col_end) of dweight = the partials (num_partials, cols), added in index order.
  void (*reduce_dweight)(const float* partials, int64_t num_partials, int64_t cols, int64_t col_begin, int64_t col_end,
                         DType dtype, void* dweight);
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
