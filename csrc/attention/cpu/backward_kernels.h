// What each ISA level offers to the backward's driver (backward.cpp). Each is compiled from backward_isa.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/backward_schedule.h"
#include "attention/params.h"

namespace flagattn {

// fp32 sums of dV, dK and (piecewise) dK2 over some columns: rows are keys of the sequence, unscaled.
// Only the key tiles whose flag is set hold anything.
struct KeyGradients {
  static constexpr int64_t kRowQuantum = 16;  // floats: rows are whole vectors on every ISA level
  static constexpr uint8_t kNear = 1, kFar = 2;

  float* dv;
  float* dk;
  float* dk2;
  uint8_t* touched;  // per key tile: kNear (dv, dk) and kFar (dv, dk2)
};

struct BackwardKernels {
  // Working memory of one thread.
  size_t (*scratch_bytes)(const AttentionBackwardParams& params);
  // Readies that memory for the first of a thread's parts.
  void (*start)(const AttentionBackwardParams& params, void* scratch);
  // Writes dQ of the part's columns and its share of dK and dV.
  void (*run_part)(const AttentionBackwardParams& params, const BackwardPart& part, void* scratch,
                   const KeyGradients& share);
  // sum += share, tile by tile.
  void (*add_share)(const AttentionBackwardParams& params, const BackwardPart& part, const KeyGradients& share,
                    const KeyGradients& sum);
  // Rounds dK and dV of the part's sequence and head to the storage type.
  void (*write)(const AttentionBackwardParams& params, const BackwardPart& part, const KeyGradients& sum);
};

namespace scalar {
extern const BackwardKernels backward_kernels;
}
namespace avx2 {
extern const BackwardKernels backward_kernels;
}
namespace avx512 {
extern const BackwardKernels backward_kernels;
}
namespace amx {
extern const BackwardKernels backward_kernels;
}

}  // namespace flagattn
