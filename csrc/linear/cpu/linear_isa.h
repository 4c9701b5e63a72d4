// What linear_isa.cpp offers at each ISA level: one block of a result, so that threading stays elsewhere.
#pragma once

#include "arch/matrix_product.h"
#include "linear/params.h"

namespace flagattn {

// A block of the result, and how many terms of a sum are added in one chain. The operands of a block and its sums
// together fit an L2 cache of 512 KB.
constexpr int64_t kLinearRows = 144;
constexpr int64_t kLinearCols = 96;
constexpr int64_t kLinearDepth = 128;

// fp32 scratch of a thread: x and the weight of one block, and the sums.
constexpr int64_t kLinearScratch = (kLinearRows + kLinearCols) * kLinearDepth + kLinearRows * kLinearCols;

// A plain product takes so many columns in one turn; its sums are where its result is.
constexpr int64_t kProductCols = 1024;
constexpr int64_t kProductScratch = (kLinearRows + kProductCols) * kLinearDepth;

struct LinearKernels {
  // Rows from `row` and columns from `col` on, as many as a block has or are left. scratch: kLinearScratch floats.
  void (*block)(const LinearParams& params, int64_t row, int64_t col, float* scratch);
  // c = a b, or c += a b; c's rows are contiguous. scratch: kProductScratch floats.
  void (*product)(const Matrix& a, const Matrix& b, const Matrix& c, bool accumulate, float* scratch);
};

namespace scalar {
extern const LinearKernels linear_kernels;
}
namespace avx2 {
extern const LinearKernels linear_kernels;
}
namespace avx512 {
extern const LinearKernels linear_kernels;
}
namespace amx {
extern const LinearKernels linear_kernels;
}

}  // namespace flagattn
