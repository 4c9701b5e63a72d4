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

// Of bf16 in tiles, so much of the depth is packed at a time.
constexpr int64_t kTilePackedDepth = 512;
static_assert(kTilePackedDepth / 2 >= kLinearDepth);

// fp32 scratch of a thread: x and the weight of one block, packed for chains or for tiles, and the sums.
constexpr int64_t kLinearScratch = (kLinearRows + kLinearCols) * kTilePackedDepth / 2 + kLinearRows * kLinearCols;

// A plain product takes so many columns in one turn; its sums are where its result is.
constexpr int64_t kProductCols = 1024;
constexpr int64_t kProductScratch = (kLinearRows + kProductCols) * kLinearDepth;

// In tiles: rows that are packed together, beside kProductCols columns.
constexpr int64_t kTileProductRows = 128;
constexpr int64_t kTileScratch = (kTileProductRows + kProductCols) * kTilePackedDepth / 2;

struct LinearKernels {
  // Rows from `row` and columns from `col` on, as many as a block has or are left. scratch: kLinearScratch floats.
  void (*block)(const LinearParams& params, int64_t row, int64_t col, float* scratch);
  // c = a b, or c += a b; c's rows are contiguous. scratch: kProductScratch floats.
  void (*product)(const Matrix& a, const Matrix& b, const Matrix& c, bool accumulate, float* scratch);
  // The same of a and b rounded to bf16; null where the level has no tiles. scratch: kTileScratch floats.
  void (*tile_product)(const Matrix& a, const Matrix& b, const Matrix& c, bool accumulate, float* scratch);
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
