// SwiGLU, both ways: each thread takes a few vectors, reads them from every operand at once, and writes the results.
#pragma once

#include <cmath>

#include "activation/cuda/sm80/launch.h"
#include "arch/cuda/vector.cuh"
#include "arch/ptx/shared_memory.cuh"

namespace flagattn::sm80 {

// 1 / (1 + e^-z): 0 where e^-z overflows, and 1 where it vanishes.
FLAGATTN_DEVICE float sigmoid(float z) {
  constexpr float kLog2E = 1.4426950408889634f;
  return ptx::reciprocal_approx(1.0f + ptx::exp2_approx(-z * kLog2E));
}

FLAGATTN_DEVICE float swiglu(float gate, float up) { return gate * sigmoid(gate) * up; }

struct SwigluGradient {
  float dgate, dup;
};

// The derivative of silu: p + z p (1 - p) = p + silu (1 - p).
FLAGATTN_DEVICE SwigluGradient swiglu_gradient(float dy, float gate, float up) {
  const float p = sigmoid(gate), silu = gate * p;
  return {dy * up * fmaf(silu, 1.0f - p, p), dy * silu};
}

// Where a thread's n-th piece lies; neighbouring threads have neighbouring pieces. Behind the last row it is none.
struct Piece {
  int64_t row;
  int index;  // in the row
  bool exists;

  FLAGATTN_DEVICE Piece(const SwigluPlan& plan, int n) {
    constexpr int kPerBlock = kSwigluThreads * kSwigluVectors;
    const int64_t first = int64_t{ptx::block_index()} * kPerBlock;  // the one long division is the block's
    const int64_t first_row = first / plan.pieces;
    const uint32_t behind =
        static_cast<uint32_t>(first - first_row * plan.pieces) + n * kSwigluThreads + ptx::thread_index();
    const uint32_t rows = behind / static_cast<uint32_t>(plan.pieces);
    row = first_row + rows + (planted(Fault::kWrongRow) ? 1 : 0);
    index = static_cast<int>(behind - rows * plan.pieces);
    exists = row < plan.rows || planted(Fault::kStrayWrite);
    if (!exists) row = 0;
  }
};

// The vector of a piece, or zeros.
template <typename T>
FLAGATTN_DEVICE ptx::Bytes16 load_piece(const StridedRows& view, const Piece& piece) {
  if (!piece.exists && !planted(Fault::kStrayRead)) return {};
  const int64_t beyond = planted(Fault::kStrayRead) ? cuda::kVector<T> : 0;
  return ptx::load_global_16_once(row_of<const T>(view, piece.row) + int64_t{piece.index} * cuda::kVector<T> + beyond);
}

template <typename T>
FLAGATTN_DEVICE void store_piece(void* data, int64_t cols, const Piece& piece, const ptx::Bytes16& vector) {
  if (!piece.exists) return;
  ptx::store_global_16(static_cast<T*>(data) + piece.row * cols + int64_t{piece.index} * cuda::kVector<T>, vector);
}

template <typename T>
FLAGATTN_KERNEL(kSwigluThreads, 4)
swiglu_kernel(FLAGATTN_KERNEL_ARGUMENT SwigluArguments arguments) {
  const SwigluParams& p = arguments.params;
  ptx::Bytes16 gate[kSwigluVectors], up[kSwigluVectors];
  FLAGATTN_UNROLL_ALL
  for (int n = 0; n < kSwigluVectors; ++n) {
    const Piece piece(arguments.plan, n);
    gate[n] = load_piece<T>(p.gate, piece);
    up[n] = load_piece<T>(p.up, piece);
  }
  FLAGATTN_UNROLL_ALL
  for (int n = 0; n < kSwigluVectors; ++n) {
    float z[cuda::kVector<T>], factor[cuda::kVector<T>];
    cuda::widen<T>(gate[n], z);
    cuda::widen<T>(up[n], factor);
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < cuda::kVector<T>; ++i) z[i] = swiglu(z[i], factor[i]);
    store_piece<T>(p.y, p.cols, Piece(arguments.plan, n), cuda::narrow<T>(z));
  }
}

template <typename T>
FLAGATTN_KERNEL(kSwigluThreads, 4)
swiglu_backward_kernel(FLAGATTN_KERNEL_ARGUMENT SwigluBackwardArguments arguments) {
  const SwigluBackwardParams& p = arguments.params;
  ptx::Bytes16 dy[kSwigluVectors], gate[kSwigluVectors], up[kSwigluVectors];
  FLAGATTN_UNROLL_ALL
  for (int n = 0; n < kSwigluVectors; ++n) {
    const Piece piece(arguments.plan, n);
    dy[n] = load_piece<T>(p.dy, piece);
    gate[n] = load_piece<T>(p.gate, piece);
    up[n] = load_piece<T>(p.up, piece);
  }
  FLAGATTN_UNROLL_ALL
  for (int n = 0; n < kSwigluVectors; ++n) {
    float upstream[cuda::kVector<T>], z[cuda::kVector<T>], factor[cuda::kVector<T>];
    cuda::widen<T>(dy[n], upstream);
    cuda::widen<T>(gate[n], z);
    cuda::widen<T>(up[n], factor);
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < cuda::kVector<T>; ++i) {
      const SwigluGradient gradient = swiglu_gradient(upstream[i], z[i], factor[i]);
      z[i] = gradient.dgate;
      factor[i] = gradient.dup;
    }
    const Piece piece(arguments.plan, n);
    store_piece<T>(p.dgate, p.cols, piece, cuda::narrow<T>(z));
    store_piece<T>(p.dup, p.cols, piece, cuda::narrow<T>(factor));
  }
}

}  // namespace flagattn::sm80
