// An operand of any rank seen as rows of contiguous elements: what the row-wise ops (norm, activation) walk over.
#pragma once

#include <cstdint>

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

// Inlined by force: files of different ISA levels call it, and must not share one copy.
template <typename T>
inline __attribute__((always_inline)) T* row_of(const StridedRows& view, int64_t row) {
  int64_t offset = 0;
  for (int dim = view.num_dims - 1; dim > 0; --dim) {
    offset += row % view.sizes[dim] * view.strides[dim];
    row /= view.sizes[dim];
  }
  return static_cast<T*>(view.data) + (offset + row * view.strides[0]);
}

}  // namespace flagattn
