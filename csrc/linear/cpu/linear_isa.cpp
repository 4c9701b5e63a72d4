// A linear map whose every element is summed in one order, one ISA level: chains of kLinearDepth multiply-adds, each
// from 0, and the chains added in index order. Lanes are columns, so neither the place of a row in a block nor the
// number of rows beside it enters into its sums, and one row takes the same way as many.
#include "linear/cpu/linear_isa.h"

#include "arch/simd.h"

namespace flagattn::FLAGATTN_ISA {
namespace {

constexpr int64_t kLanes = F32::kLanes;
constexpr int64_t kPanel = 2 * kLanes;                     // columns of a micro-tile
constexpr int kTileRows = F32::kRegisters == 32 ? 12 : 6;  // 2 * kTileRows sums stay in registers
constexpr int kFewRows = 4;                                // so many are multiplied with the weight as it lies
static_assert(kLinearCols % kPanel == 0 && kLinearRows % kTileRows == 0 && kLinearDepth % kLanes == 0);

template <typename T>
FLAGATTN_INLINE float widened(const T* p) {
  T whole[kLanes] = {*p};
  float wide[kLanes];
  F32::load(whole).store(wide);
  return wide[0];
}
FLAGATTN_INLINE float widened(const float* p) { return *p; }

// Operands in fp32

// kLanes neighbours at each of kLanes places `stride` apart, with the neighbours one vector each.
template <typename T>
FLAGATTN_INLINE void load_transposed(const T* source, int64_t stride, F32 (&tile)[kLanes]) {
  FLAGATTN_UNROLL for (int64_t i = 0; i < kLanes; ++i) tile[i] = F32::load(source + i * stride);
  transpose(tile);
}

// x[row + i, k + d] to packed[i * kLinearDepth + d].
template <typename T>
void pack_rows(const MatrixView& x, int64_t row, int64_t rows, int64_t k, int64_t depth, float* packed) {
  const T* source = static_cast<const T*>(x.data) + row * x.row_stride + k * x.col_stride;
  for (; rows > 0; rows -= kLanes, source += kLanes * x.row_stride, packed += kLanes * kLinearDepth) {
    const int64_t here = rows < kLanes ? rows : kLanes;
    int64_t d = 0;
    if (x.col_stride == 1) {
      for (; d + kLanes <= depth; d += kLanes) {
        for (int64_t i = 0; i < here; ++i)
          F32::load(source + i * x.row_stride + d).store(packed + i * kLinearDepth + d);
      }
    } else if (x.row_stride == 1 && here == kLanes) {
      for (; d + kLanes <= depth; d += kLanes) {
        F32 tile[kLanes];
        load_transposed(source + d * x.col_stride, x.col_stride, tile);
        FLAGATTN_UNROLL for (int64_t i = 0; i < kLanes; ++i) tile[i].store(packed + i * kLinearDepth + d);
      }
    }
    for (; d < depth; ++d) {
      for (int64_t i = 0; i < here; ++i) {
        packed[i * kLinearDepth + d] = widened(source + i * x.row_stride + d * x.col_stride);
      }
    }
  }
}

// weight[col + j, k + d] to packed[d * kPanel + j], zeros where columns end.
template <typename T>
void pack_panel(const MatrixView& weight, int64_t col, int64_t cols, int64_t k, int64_t depth, float* packed) {
  const T* source = static_cast<const T*>(weight.data) + col * weight.row_stride + k * weight.col_stride;
  for (int64_t part = 0; part < kPanel; part += kLanes, source += kLanes * weight.row_stride) {
    const bool whole = cols - part >= kLanes;
    int64_t d = 0;
    if (whole && weight.row_stride == 1) {
      for (; d < depth; ++d) F32::load(source + d * weight.col_stride).store(packed + d * kPanel + part);
    } else if (whole && weight.col_stride == 1) {
      const T* next = source + (cols - part >= 2 * kLanes ? kLanes * weight.row_stride : 0);
      for (; d + kLanes <= depth; d += kLanes) {
        FLAGATTN_UNROLL for (int64_t j = 0; j < kLanes; ++j) __builtin_prefetch(next + j * weight.row_stride + d);
        F32 tile[kLanes];
        load_transposed(source + d, weight.row_stride, tile);
        FLAGATTN_UNROLL for (int64_t j = 0; j < kLanes; ++j) tile[j].store(packed + (d + j) * kPanel + part);
      }
    }
    for (; d < depth; ++d) {
      for (int64_t j = 0; j < kLanes; ++j) {
        const bool there = part + j < cols;
        packed[d * kPanel + part + j] = there ? widened(source + j * weight.row_stride + d * weight.col_stride) : 0.0f;
      }
    }
  }
}

// Sums

// sums[i, 0 .. kPanel) of kRows rows: their first chain, or the sums so far plus one more.
template <int kRows>
FLAGATTN_INLINE void take_chain(const F32 (&chain)[kRows][2], bool first, float* sums) {
  FLAGATTN_UNROLL for (int i = 0; i < kRows; ++i) {
    float* row = sums + i * kLinearCols;
    for (int half = 0; half < 2; ++half, row += kLanes) {
      (first ? chain[i][half] : F32::load(row) + chain[i][half]).store(row);
    }
  }
}

template <int kRows>
void add_chain(const float* x, const float* panel, int64_t depth, bool first, float* sums) {
  F32 chain[kRows][2];
  FLAGATTN_UNROLL for (int i = 0; i < kRows; ++i) chain[i][0] = chain[i][1] = F32::zero();
  for (int64_t d = 0; d < depth; ++d) {
    const F32 low = F32::load(panel + d * kPanel), high = F32::load(panel + d * kPanel + kLanes);
    FLAGATTN_UNROLL for (int i = 0; i < kRows; ++i) {
      const F32 factor = F32::set1(x[i * kLinearDepth + d]);
      chain[i][0] = fma(factor, low, chain[i][0]);
      chain[i][1] = fma(factor, high, chain[i][1]);
    }
  }
  take_chain(chain, first, sums);
}

// The same for a panel of a weight whose rows are contiguous, transposed on the way: for few rows packing it would cost
// more than using it.
template <int kRows, typename T>
void add_unpacked_chain(const float* x, const T* weight, int64_t stride, int64_t depth, bool first, float* sums) {
  F32 chain[kRows][2];
  FLAGATTN_UNROLL for (int i = 0; i < kRows; ++i) chain[i][0] = chain[i][1] = F32::zero();
  const T* halves[2] = {weight, weight + kLanes * stride};
  int64_t d = 0;
  for (; d + kLanes <= depth; d += kLanes) {
    FLAGATTN_UNROLL for (int half = 0; half < 2; ++half) {
      F32 tile[kLanes];
      load_transposed(halves[half] + d, stride, tile);
      FLAGATTN_UNROLL for (int64_t j = 0; j < kLanes; ++j) {
        FLAGATTN_UNROLL for (int i = 0; i < kRows; ++i) {
          chain[i][half] = fma(F32::set1(x[i * kLinearDepth + d + j]), tile[j], chain[i][half]);
        }
      }
    }
  }
  for (; d < depth; ++d) {
    for (int half = 0; half < 2; ++half) {
      float column[kLanes];
      for (int64_t j = 0; j < kLanes; ++j) column[j] = widened(halves[half] + j * stride + d);
      for (int i = 0; i < kRows; ++i) {
        chain[i][half] = fma(F32::set1(x[i * kLinearDepth + d]), F32::load(column), chain[i][half]);
      }
    }
  }
  take_chain(chain, first, sums);
}

// Calls add<n>() for n = rows, or for kRows where there are more.
template <int kRows, typename Add>
FLAGATTN_INLINE void for_rows(int64_t rows, Add&& add) {
  if (rows >= kRows) return add.template operator()<kRows>();
  if constexpr (kRows > 1) for_rows<kRows - 1>(rows, add);
}

// Rounds the sums, plus the bias, once.
template <typename T>
void store_rows(const LinearParams& params, int64_t row, int64_t rows, int64_t col, int64_t cols, const float* sums) {
  const T* bias = static_cast<const T*>(params.bias);
  for (int64_t i = 0; i < rows; ++i, sums += kLinearCols) {
    T* y = static_cast<T*>(params.y) + (row + i) * params.cols + col;
    for (int64_t j = 0; j < cols; j += kLanes) {
      const int64_t n = cols - j < kLanes ? cols - j : kLanes;
      F32 sum = F32::load(sums + j);
      if (bias != nullptr) sum = sum + F32::load_n(bias + col + j, n);
      sum.store_n(y + j, n);
    }
  }
}

template <typename T>
void block_of(const LinearParams& params, int64_t row, int64_t col, float* scratch) {
  const int64_t rows = params.rows - row < kLinearRows ? params.rows - row : kLinearRows;
  const int64_t cols = params.cols - col < kLinearCols ? params.cols - col : kLinearCols;
  float* x = scratch;
  float* panels = x + kLinearRows * kLinearDepth;
  float* sums = panels + kLinearCols * kLinearDepth;
  for (int64_t i = 0; i < rows * kLinearCols; ++i) sums[i] = 0.0f;  // what remains where the depth is 0
  for (int64_t k = 0; k < params.depth; k += kLinearDepth) {
    const int64_t depth = params.depth - k < kLinearDepth ? params.depth - k : kLinearDepth;
    pack_rows<T>(params.x, row, rows, k, depth, x);
    int64_t done = 0;
    if (rows <= kFewRows && params.weight.col_stride == 1) {
      const T* weight = static_cast<const T*>(params.weight.data) + col * params.weight.row_stride + k;
      for (; done + kPanel <= cols; done += kPanel) {
        for_rows<kFewRows>(rows, [&]<int kRows>() {
          add_unpacked_chain<kRows>(x, weight + done * params.weight.row_stride, params.weight.row_stride, depth,
                                    k == 0, sums + done);
        });
      }
    }
    for (int64_t j = done; j < cols; j += kPanel) {
      pack_panel<T>(params.weight, col + j, cols - j, k, depth, panels + j * kLinearDepth);
    }
    for (int64_t i = 0; i < rows; i += kTileRows) {
      for (int64_t j = done; j < cols; j += kPanel) {
        for_rows<kTileRows>(rows - i, [&]<int kRows>() {
          add_chain<kRows>(x + i * kLinearDepth, panels + j * kLinearDepth, depth, k == 0, sums + i * kLinearCols + j);
        });
      }
    }
  }
  store_rows<T>(params, row, rows, col, cols, sums);
}

void block(const LinearParams& params, int64_t row, int64_t col, float* scratch) {
  dispatch(params.dtype, [&]<typename T>(T) { block_of<T>(params, row, col, scratch); });
}

}  // namespace

const LinearKernels linear_kernels = {block};

}  // namespace flagattn::FLAGATTN_ISA
