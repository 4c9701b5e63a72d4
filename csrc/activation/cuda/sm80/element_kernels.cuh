// SwiGLU of rows that vectors do not fit: a piece is one element. One kernel per direction serves every dtype.
#pragma once

#include "activation/cuda/sm80/kernels.cuh"

namespace flagattn::sm80 {

FLAGATTN_DEVICE float load_piece(const StridedRows& view, DType dtype, const Piece& piece) {
  return cuda::load_number(view.data, dtype, offset_of_row(view, piece.row) + piece.index);
}

FLAGATTN_KERNEL(kSwigluThreads, 4)
swiglu_element_kernel(FLAGATTN_KERNEL_ARGUMENT SwigluArguments arguments) {
  const SwigluParams& p = arguments.params;
  for (int n = 0; n < kSwigluVectors; ++n) {
    const Piece piece(arguments.plan, n);
    if (!piece.exists) continue;
    const float y = swiglu(load_piece(p.gate, p.dtype, piece), load_piece(p.up, p.dtype, piece));
    cuda::store_number(p.y, p.dtype, piece.row * p.cols + piece.index, y);
  }
}

FLAGATTN_KERNEL(kSwigluThreads, 4)
swiglu_backward_element_kernel(FLAGATTN_KERNEL_ARGUMENT SwigluBackwardArguments arguments) {
  const SwigluBackwardParams& p = arguments.params;
  for (int n = 0; n < kSwigluVectors; ++n) {
    const Piece piece(arguments.plan, n);
    if (!piece.exists) continue;
    const SwigluGradient gradient = swiglu_gradient(
        load_piece(p.dy, p.dtype, piece), load_piece(p.gate, p.dtype, piece), load_piece(p.up, p.dtype, piece));
    cuda::store_number(p.dgate, p.dtype, piece.row * p.cols + piece.index, gradient.dgate);
    cuda::store_number(p.dup, p.dtype, piece.row * p.cols + piece.index, gradient.dup);
  }
}

}  // namespace flagattn::sm80
