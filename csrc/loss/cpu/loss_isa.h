// What loss_isa.cpp offers at each ISA level: pieces of rows, so that threading and products stay elsewhere.
#pragma once

#include <cstdint>

#include "arch/dtypes.h"

namespace flagattn {

// A row is summed up in pieces of this many logits, so that a piece is read from memory once and its maximum is taken
// before its exponentials. The boundaries depend on nothing.
constexpr int64_t kLossSegment = 1024;

// Of the capped logits z of one segment.
struct SegmentSummary {
  float maximum;
  double sum_exp;  // of e^(z - maximum); 0 where all z are -inf
  float sum;       // of z; only where asked for
};

// dx_j = (e^(z_j - maximum) scale - smoothing - (j == target) target_share) dz/dx
struct RowGradient {
  float maximum;
  float scale;
  float smoothing;
  float target_share;
};

// Pointers are to `count` contiguous elements of `dtype`.
struct LossKernels {
  SegmentSummary (*summarise)(DType dtype, const void* x, int64_t count, float softcap, bool sums);
  float (*capped)(DType dtype, const void* x, float softcap);  // z of one element
  // `target` is an index into x, or outside. dx may be x.
  void (*gradient)(DType dtype, const void* x, void* dx, int64_t count, const RowGradient& row, int64_t target,
                   float softcap);
  void (*widen)(DType dtype, const void* from, float* to, int64_t count);
  void (*narrow)(DType dtype, const float* from, float scale, void* to, int64_t count);
  void (*add)(const float* addend, float* sum, int64_t count);
};

namespace scalar {
extern const LossKernels loss_kernels;
}
namespace avx2 {
extern const LossKernels loss_kernels;
}
namespace avx512 {
extern const LossKernels loss_kernels;
}

}  // namespace flagattn
