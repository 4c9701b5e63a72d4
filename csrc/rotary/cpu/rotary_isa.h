// What rotary_isa.cpp offers at each ISA level: all heads of one row, so that threading stays in rotary.cpp.
#pragma once

#include "rotary/params.h"

namespace flagattn {

// Floats of scratch a row needs for its widened cosines and sines: two of each per angle, and whole vectors.
constexpr int64_t rotary_scratch_size(const RotaryParams& params) { return 4 * ((params.half_dim + 31) / 32 * 32); }

struct RotaryKernels {
  // Row (b, s) at `position`, which the caller has checked. `stream`: y is better written past the caches
  // (arch/streaming.h); then `fence` follows the thread's last row.
  void (*rotate_row)(const RotaryParams& params, int64_t b, int64_t s, int64_t position, float* scratch, bool stream);
  void (*fence)();
};

namespace scalar {
extern const RotaryKernels rotary_kernels;
}
namespace avx2 {
extern const RotaryKernels rotary_kernels;
}
namespace avx512 {
extern const RotaryKernels rotary_kernels;
}

}  // namespace flagattn
