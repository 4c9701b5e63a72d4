#include "activation/cpu/activation.h"

#include <algorithm>
#include <initializer_list>

#include "activation/cpu/activation_isa.h"
#include "arch/cpu_level.h"
#include "arch/streaming.h"

namespace flagattn::cpu {
namespace {

const SwigluKernels& kernels_of(CpuLevel level) {
  switch (without_tiles(level)) {
#if defined(FLAGATTN_HAS_AVX512)
    case CpuLevel::kAvx512:
      return avx512::swiglu_kernels;
#endif
#if defined(FLAGATTN_HAS_AVX2)
    case CpuLevel::kAvx2:
      return avx2::swiglu_kernels;
#endif
    default:
      return scalar::swiglu_kernels;
  }
}

// Calls body(row, col, count) for pieces that cover rows x cols: several short rows, or a part of a long one, per item.
template <typename Body>
void for_each_piece(const ParallelFor& parallel, int64_t rows, int64_t cols, Body&& body) {
  if (rows == 0 || cols == 0) return;
  // Columns are cut at multiples of 32, so that parts of a long row start at cache lines where the row does.
  const int64_t elements = elements_per_item(rows * cols, parallel) / 32 * 32;
  const int64_t rows_per_item = std::max<int64_t>(1, elements / cols);
  const int64_t cols_per_item = std::min(cols, elements);
  const int64_t items_per_row = (cols + cols_per_item - 1) / cols_per_item;
  const int64_t num_items = (rows + rows_per_item - 1) / rows_per_item * items_per_row;
  for_each_item(
      parallel, num_items, [] { return 0; },
      [&](int64_t item, int) {
        const int64_t col = item % items_per_row * cols_per_item;
        const int64_t row_begin = item / items_per_row * rows_per_item;
        const int64_t row_end = std::min(rows, row_begin + rows_per_item);
        for (int64_t row = row_begin; row < row_end; ++row) body(row, col, std::min(cols_per_item, cols - col));
      });
}

const void* piece_of(const StridedRows& view, DType dtype, int64_t row, int64_t col) {
  if (size_of(dtype) == 4) return row_of<const float>(view, row) + col;
  return row_of<const uint16_t>(view, row) + col;
}

// One long row where every operand is contiguous: then short rows need no tails.
template <typename Params>
void merge_rows(Params& params, std::initializer_list<const StridedRows*> operands) {
  for (const StridedRows* view : operands) {
    if (view->num_dims != 1 || (params.rows > 1 && view->strides[0] != params.cols)) return;
  }
  params.cols *= params.rows;
  params.rows = params.cols > 0 ? 1 : 0;
}

}  // namespace

Status run_swiglu(const SwigluParams& asked, const ParallelFor& parallel) {
  SwigluParams params = asked;
  merge_rows(params, {&params.gate, &params.up});
  const SwigluKernels& kernels = kernels_of(cpu_level().level);
  const DType dtype = params.dtype;
  const bool stream = streams(params.rows * params.cols * size_of(dtype));
  for_each_piece(parallel, params.rows, params.cols, [&](int64_t row, int64_t col, int64_t count) {
    const int64_t offset = (row * params.cols + col) * size_of(dtype);
    kernels.forward(dtype, piece_of(params.gate, dtype, row, col), piece_of(params.up, dtype, row, col),
                    static_cast<char*>(params.y) + offset, count, stream);
  });
  return Status::success();
}

Status run_swiglu_backward(const SwigluBackwardParams& asked, const ParallelFor& parallel) {
  SwigluBackwardParams params = asked;
  merge_rows(params, {&params.dy, &params.gate, &params.up});
  const SwigluKernels& kernels = kernels_of(cpu_level().level);
  const DType dtype = params.dtype;
  const bool stream = streams(params.rows * params.cols * size_of(dtype));
  for_each_piece(parallel, params.rows, params.cols, [&](int64_t row, int64_t col, int64_t count) {
    const int64_t offset = (row * params.cols + col) * size_of(dtype);
    kernels.backward(dtype, piece_of(params.dy, dtype, row, col), piece_of(params.gate, dtype, row, col),
                     piece_of(params.up, dtype, row, col), static_cast<char*>(params.dgate) + offset,
                     static_cast<char*>(params.dup) + offset, count, stream);
  });
  return Status::success();
}

}  // namespace flagattn::cpu
