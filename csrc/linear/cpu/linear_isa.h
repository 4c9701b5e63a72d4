// What linear_isa.cpp offers at each ISA level: one block of the result, so that threading stays in linear.cpp.
#pragma once

#include "linear/params.h"

namespace flagattn {

// A block of the result, and how many terms of a sum are added in one chain. The operands of a block and its sums
// together fit an L2 cache of 512 KB.
constexpr int64_t kLinearRows = 144;
constexpr int64_t kLinearCols = 96;
constexpr int64_t kLinearDepth = 256;

// fp32 scratch of a thread: x and the weight of one block, and the sums.
constexpr int64_t kLinearScratch = (kLinearRows + kLinearCols) * kLinearDepth + kLinearRows * kLinearCols;

struct LinearKernels {
  // Rows from `row` and columns from `col` on, as many as a block has or are left. scratch: kLinearScratch floats.
  void (*block)(const LinearParams& params, int64_t row, int64_t col, float* scratch);
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

}  // namespace flagattn
