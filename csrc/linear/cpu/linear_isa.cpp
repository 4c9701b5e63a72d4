// Blocks of a linear map and of plain products, one ISA level, made of chains (micro_tile.h): one row takes the same
// way as many.
#include "linear/cpu/linear_isa.h"

#include <algorithm>

#include "linear/cpu/micro_tile.h"

namespace flagattn::FLAGATTN_ISA {
namespace {

constexpr int kFewRows = 4;  // so many are multiplied with the weight as it lies
static_assert(kLinearCols % kPanel == 0 && kProductCols % kPanel == 0 && kLinearRows % kTileRows == 0);

// sums[i * stride + j]: one chain of every packed row i and column j. Panels stay in the nearest cache while all rows
// pass. Of a panel that the columns end in, nothing behind them is written.
void add_chains(const float* x, int64_t rows, const float* panels, int64_t cols, int64_t depth, bool first, float* sums,
                int64_t stride) {
  float edge[kTileRows * kPanel] = {};
  for (int64_t j = 0; j < cols; j += kPanel, panels += kPanel * kLinearDepth) {
    const int64_t width = std::min(kPanel, cols - j);
    for (int64_t i = 0; i < rows; i += kTileRows) {
      for_rows<kTileRows>(rows - i, [&]<int kRows>() {
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
  multiply<T>(params.x, row, rows, params.weight, col, cols, params.depth, false, sums, kLinearCols,
              scratch + kLinearRows * kLinearCols);
  store_rows<T>(params, row, rows, col, cols, sums);
}

void block(const LinearParams& params, int64_t row, int64_t col, float* scratch) {
  dispatch(params.dtype, [&]<typename T>(T) { block_of<T>(params, row, col, scratch); });
}

// Columns in turns, so that their panels are packed once for all rows.
void product(const Matrix& a, const Matrix& b, const Matrix& c, bool accumulate, float* scratch) {
  if (a.cols == 0 && !accumulate) {
    for (int64_t i = 0; i < c.rows; ++i) std::fill_n(c.data + i * c.row_stride, c.cols, 0.0f);
  }
  const MatrixView x = {a.data, a.row_stride, a.col_stride}, weight = {b.data, b.col_stride, b.row_stride};
  for (int64_t col = 0; col < c.cols; col += kProductCols) {
    multiply<float>(x, 0, c.rows, weight, col, std::min(kProductCols, c.cols - col), a.cols, accumulate, c.data + col,
                    c.row_stride, scratch);
  }
}

}  // namespace

const LinearKernels linear_kernels = {block, product};

}  // namespace flagattn::FLAGATTN_ISA
