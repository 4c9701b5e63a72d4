// The micro-tile of products whose every element is summed in one order, one ISA level: chains of kLinearDepth
// multiply-adds, each from 0, and the chains added in index order. Lanes are columns, so neither the place of a row in
// a tile nor the number of rows beside it enters into its sums.
#pragma once

#include "arch/simd.h"
#include "linear/cpu/linear_isa.h"

namespace flagattn::FLAGATTN_ISA {

constexpr int64_t kLanes = F32::kLanes;
constexpr int64_t kPanel = 2 * kLanes;                      // columns of a micro-tile
constexpr int kMicroRows = F32::kRegisters == 32 ? 12 : 6;  // 2 * kMicroRows sums stay in registers
constexpr int64_t kAhead = 16;  // rows that may lie in pages of their own are asked for early
static_assert(kLinearDepth % kLanes == 0);

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
      for (; d < depth; ++d) {
        __builtin_prefetch(source + (d + kAhead) * weight.col_stride);
        F32::load(source + d * weight.col_stride).store(packed + d * kPanel + part);
      }
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

// sums[i * stride + (0 .. kPanel)] of kRows rows: their first chain, or the sums so far plus one more. All are read
// before one is written: a row a page behind one just written waits for it.
template <int kRows>
FLAGATTN_INLINE void take_chain(F32 (&chain)[kRows][2], bool first, float* sums, int64_t stride) {
  if (!first) {
    FLAGATTN_UNROLL for (int i = 0; i < kRows; ++i) {
      FLAGATTN_UNROLL for (int half = 0; half < 2; ++half) {
        chain[i][half] = F32::load(sums + i * stride + half * kLanes) + chain[i][half];
      }
    }
  }
  FLAGATTN_UNROLL for (int i = 0; i < kRows; ++i) {
    FLAGATTN_UNROLL for (int half = 0; half < 2; ++half) chain[i][half].store(sums + i * stride + half * kLanes);
  }
}

template <int kRows>
void add_chain(const float* x, const float* panel, int64_t depth, bool first, float* sums, int64_t sums_stride) {
  FLAGATTN_UNROLL for (int i = 0; i < kRows; ++i) {
    __builtin_prefetch(sums + i * sums_stride, 1);
    __builtin_prefetch(sums + i * sums_stride + kLanes, 1);
  }
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
  take_chain(chain, first, sums, sums_stride);
}

// The same for a panel of a weight whose rows are contiguous, transposed on the way: for few rows packing it would cost
// more than using it.
template <int kRows, typename T>
void add_unpacked_chain(const float* x, const T* weight, int64_t stride, int64_t depth, bool first, float* sums,
                        int64_t sums_stride) {
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
  take_chain(chain, first, sums, sums_stride);
}

// Calls add<n>() for n = rows, or for kRows where there are more.
template <int kRows, typename Add>
FLAGATTN_INLINE void for_rows(int64_t rows, Add&& add) {
  if (rows >= kRows) return add.template operator()<kRows>();
  if constexpr (kRows > 1) for_rows<kRows - 1>(rows, add);
}

}  // namespace flagattn::FLAGATTN_ISA
