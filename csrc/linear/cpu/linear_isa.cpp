// Blocks of a linear map and of plain products, one ISA level, made of chains (micro_tile.h): one row takes the same
// way as many.
#include "linear/cpu/linear_isa.h"

#include <algorithm>
#include <type_traits>

#include "linear/cpu/micro_tile.h"
#if defined(__AMX_BF16__)
#include "linear/cpu/tile_product.h"
#endif

namespace flagattn::FLAGATTN_ISA {
namespace {

constexpr int kFewRows = 4;  // so many are multiplied with the weight as it lies
static_assert(kLinearCols % kPanel == 0 && kProductCols % kPanel == 0 && kLinearRows % kMicroRows == 0);

// sums[i * stride + j]: one chain of every packed row i and column j. Panels stay in the nearest cache while all rows
// pass. Of a panel that the columns end in, nothing behind them is written.
void add_chains(const float* x, int64_t rows, const float* panels, int64_t cols, int64_t depth, bool first, float* sums,
                int64_t stride) {
  float edge[kMicroRows * kPanel] = {};
  for (int64_t j = 0; j < cols; j += kPanel, panels += kPanel * kLinearDepth) {
    const int64_t width = std::min(kPanel, cols - j);
    for (int64_t i = 0; i < rows; i += kMicroRows) {
      for_rows<kMicroRows>(rows - i, [&]<int kRows>() {
        float* out = sums + i * stride + j;
        const float* factors = x + i * kLinearDepth;
        if (width == kPanel) return add_chain<kRows>(factors, panels, depth, first, out, stride);
        for (int r = 0; r < kRows && !first; ++r) std::copy_n(out + r * stride, width, edge + r * kPanel);
        add_chain<kRows>(factors, panels, depth, first, edge, kPanel);
        for (int r = 0; r < kRows; ++r) std::copy_n(edge + r * kPanel, width, out + r * stride);
      });
    }
  }
}

// sums = x weight^T of rows from `row` and of columns from `col` on, or sums += that.
template <typename T>
void multiply(const MatrixView& x, int64_t row, int64_t rows, const MatrixView& weight, int64_t col, int64_t cols,
              int64_t depth, bool accumulate, float* sums, int64_t stride, float* scratch) {
  float* panels = scratch + kLinearRows * kLinearDepth;
  for (int64_t k = 0; k < depth; k += kLinearDepth) {
    const int64_t length = std::min(kLinearDepth, depth - k);
    const bool first = k == 0 && !accumulate;
    int64_t done = 0;
    if (rows <= kFewRows && weight.col_stride == 1) {
      pack_rows<T>(x, row, rows, k, length, scratch);
      const T* source = static_cast<const T*>(weight.data) + col * weight.row_stride + k;
      for (; done + kPanel <= cols; done += kPanel) {
        for_rows<kFewRows>(rows, [&]<int kRows>() {
          add_unpacked_chain<kRows>(scratch, source + done * weight.row_stride, weight.row_stride, length, first,
                                    sums + done, stride);
        });
      }
    }
    for (int64_t j = done; j < cols; j += kPanel) {
      pack_panel<T>(weight, col + j, cols - j, k, length, panels + (j - done) * kLinearDepth);
    }
    for (int64_t i = 0; i < rows && done < cols; i += kLinearRows) {
      const int64_t height = std::min(kLinearRows, rows - i);
      pack_rows<T>(x, row + i, height, k, length, scratch);
      add_chains(scratch, height, panels, cols - done, length, first, sums + i * stride + done, stride);
    }
  }
}

// A block's sums: in tiles where the level has them for the dtype.
template <typename T>
void multiply_block(const MatrixView& x, int64_t row, int64_t rows, const MatrixView& weight, int64_t col, int64_t cols,
                    int64_t depth, float* sums, float* scratch) {
#if defined(__AMX_BF16__)
  if constexpr (std::is_same_v<T, BFloat16>) {
    return multiply_in_tiles<T>(x, row, rows, weight, col, cols, depth, false, sums, kLinearCols, scratch);
  }
#endif
  multiply<T>(x, row, rows, weight, col, cols, depth, false, sums, kLinearCols, scratch);
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
  const int64_t rows = std::min(kLinearRows, params.rows - row), cols = std::min(kLinearCols, params.cols - col);
  float* sums = scratch;
  std::fill_n(sums, rows * kLinearCols, 0.0f);  // what remains where the depth is 0, and behind the last column
  multiply_block<T>(params.x, row, rows, params.weight, col, cols, params.depth, sums,
                    scratch + kLinearRows * kLinearCols);
  store_rows<T>(params, row, rows, col, cols, sums);
}

void block(const LinearParams& params, int64_t row, int64_t col, float* scratch) {
  dispatch(params.dtype, [&]<typename T>(T) { block_of<T>(params, row, col, scratch); });
}

// Calls body(x, weight, col, cols) for columns in turns, so that their panels are packed once for all rows.
template <typename Body>
void for_each_turn(const Matrix& a, const Matrix& b, const Matrix& c, bool accumulate, Body&& body) {
  if (a.cols == 0 && !accumulate) {
    for (int64_t i = 0; i < c.rows; ++i) std::fill_n(c.data + i * c.row_stride, c.cols, 0.0f);
  }
  const MatrixView x = {a.data, a.row_stride, a.col_stride}, weight = {b.data, b.col_stride, b.row_stride};
  for (int64_t col = 0; col < c.cols; col += kProductCols) body(x, weight, col, std::min(kProductCols, c.cols - col));
}

void product(const Matrix& a, const Matrix& b, const Matrix& c, bool accumulate, float* scratch) {
  for_each_turn(a, b, c, accumulate, [&](const MatrixView& x, const MatrixView& weight, int64_t col, int64_t cols) {
    multiply<float>(x, 0, c.rows, weight, col, cols, a.cols, accumulate, c.data + col, c.row_stride, scratch);
  });
}

#if defined(__AMX_BF16__)
void tile_product(const Matrix& a, const Matrix& b, const Matrix& c, bool accumulate, float* scratch) {
  for_each_turn(a, b, c, accumulate, [&](const MatrixView& x, const MatrixView& weight, int64_t col, int64_t cols) {
    multiply_in_tiles<float>(x, 0, c.rows, weight, col, cols, a.cols, accumulate, c.data + col, c.row_stride, scratch);
  });
}
#else
constexpr decltype(LinearKernels::tile_product) tile_product = nullptr;
#endif

}  // namespace

const LinearKernels linear_kernels = {block, product, tile_product};

}  // namespace flagattn::FLAGATTN_ISA
