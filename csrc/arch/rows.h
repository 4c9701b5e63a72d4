// An operand of any rank seen as rows of contiguous elements: what the row-wise ops (norm, activation) walk over.
#pragma once

#include <cstdint>

#include "arch/host_device.h"

namespace flagattn {

// The leading dimensions, outermost first, neighbours merged where their strides allow: one is left for every operand
// whose rows lie at equal distances. Row r counts through them in C order.
struct StridedRows {
  static constexpr int kMaxDims = 8;
  void* data = nullptr;
  int num_dims = 1;
  int64_t sizes[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};  // in elements
};

// Where row `row` starts, in elements from the first. Inlined by force: files of different ISA levels call it, and must
// not share one copy.
FLAGATTN_HOST_DEVICE inline __attribute__((always_inline)) int64_t offset_of_row(const StridedRows& view, int64_t row) {
  int64_t offset = 0;
  for (int dim = view.num_dims - 1; dim > 0; --dim) {
    offset += row % view.sizes[dim] * view.strides[dim];
    row /= view.sizes[dim];
  }
  return offset + row * view.strides[0];
}

template <typename T>
FLAGATTN_HOST_DEVICE inline __attribute__((always_inline)) T* row_of(const StridedRows& view, int64_t row) {
  return static_cast<T*>(view.data) + offset_of_row(view, row);
}

}  // namespace flagattn
