// Tensors as the row-wise ops see them (arch/rows.h).
#pragma once

#include "arch/rows.h"
#include "torch/tensor_utils.h"

namespace flagattn {

// The rows of an operand of any rank >= 1 whose last dimension is contiguous.
inline StridedRows strided_rows(const char* op, const Argument& argument) {
  check(argument.dim() >= 1, op, argument.name, " has no dimension; it must have at least one.");
  check_last_dim_contiguous(op, argument);
  StridedRows rows;
  rows.data = input_data(argument.tensor);
  int count = 0;
  for (int64_t dim = 0; dim + 1 < argument.dim(); ++dim) {
    const int64_t size = argument.sizes[dim], stride = argument.strides[dim];
    if (size == 1) continue;
    if (count > 0 && rows.strides[count - 1] == size * stride) {
      rows.sizes[count - 1] *= size;
      rows.strides[count - 1] = stride;
      continue;
    }
    check(count < StridedRows::kMaxDims, op, argument.name, " has strides that leave more than ", StridedRows::kMaxDims,
          " dimensions; make it contiguous.");
    rows.sizes[count] = size;
    rows.strides[count++] = stride;
  }
  rows.num_dims = count > 0 ? count : 1;
  return rows;
}

struct RowsByCols {
  int64_t rows;
  int64_t cols;
};

inline RowsByCols rows_by_cols(const Argument& argument) {
  int64_t rows = 1;
  for (int64_t dim = 0; dim + 1 < argument.dim(); ++dim) rows *= argument.sizes[dim];
  return {rows, argument.sizes[argument.dim() - 1]};
}

inline void check_same_shape(const char* op, const Argument& argument, const Argument& first) {
  bool same = argument.dim() == first.dim();
  for (int64_t dim = 0; same && dim < first.dim(); ++dim) same = argument.sizes[dim] == first.sizes[dim];
  check(same, op, argument.name, " has shape ", text_of(argument.sizes), ", but ", first.name, " has ",
        text_of(first.sizes), "; they must agree.");
}

// `argument` agrees with `first` in dtype, device and shape.
inline void check_like(const char* op, const Argument& argument, const Argument& first) {
  check_same_dtype(op, argument, first);
  check_same_device(op, argument, first);
  check_same_shape(op, argument, first);
}

}  // namespace flagattn
