// What activation_isa.cpp offers at each ISA level: one piece of a row, so that threading stays in activation.cpp.
#pragma once

#include <cstdint>

#include "arch/dtypes.h"

namespace flagattn {

// Pointers are to `count` contiguous elements of `dtype`. `stream`: results are better written past the caches
// (arch/streaming.h).
struct SwigluKernels {
  void (*forward)(DType dtype, const void* gate, const void* up, void* y, int64_t count, bool stream);
  void (*backward)(DType dtype, const void* dy, const void* gate, const void* up, void* dgate, void* dup, int64_t count,
                   bool stream);
};

namespace scalar {
extern const SwigluKernels swiglu_kernels;
}
namespace avx2 {
extern const SwigluKernels swiglu_kernels;
}
namespace avx512 {
extern const SwigluKernels swiglu_kernels;
}

}  // namespace flagattn
