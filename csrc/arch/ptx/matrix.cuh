// Tensor cores: fragments from shared memory, and the 16 x 8 x 16 matrix product.
#pragma once

#include <type_traits>

#include "arch/dtypes.h"
#include "arch/ptx/shared_memory.cuh"

namespace flagattn::ptx {

// Loads four 8 x 8 matrices of 16-bit elements. Lane l names row l % 8 of matrix l / 8 (16 bytes, 16-byte aligned) and
// receives of each matrix the elements (l / 4, 2 * (l % 4)) and (l / 4, 2 * (l % 4) + 1) (ldmatrix.x4).
FLAGATTN_DEVICE void ldmatrix_x4(uint32_t (&matrices)[4], SharedAddress row) {
#if FLAGATTN_ON_GPU
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row)
               : "memory");
#else
  host_exec::ldmatrix_x4(matrices, row, false);
#endif
}

// Like ldmatrix_x4, but each lane receives the elements of the transposed matrices (ldmatrix.x4.trans).
FLAGATTN_DEVICE void ldmatrix_x4_trans(uint32_t (&matrices)[4], SharedAddress row) {
#if FLAGATTN_ON_GPU
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row)
               : "memory");
#else
  host_exec::ldmatrix_x4(matrices, row, true);
#endif
}

// d += a b for a 16 x 16 `a` and a 16 x 8 `b` of Element, summed in fp32 (mma.sync.m16n8k16). With g = lane / 4 and
// t = lane % 4 a lane holds d[g + 8 i][2 t + j] in d[2 i + j], a[g + 8 (r % 2)][2 t + 8 (r / 2) + {0, 1}] in a[r] and
// b[2 t + 8 r + {0, 1}][g] in b[r].
template <typename Element>
FLAGATTN_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  constexpr bool kIsBFloat16 = std::is_same_v<Element, BFloat16>;
  static_assert(kIsBFloat16 || std::is_same_v<Element, Float16>);
#if FLAGATTN_ON_GPU
  if constexpr (kIsBFloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  host_exec::mma_m16n8k16(d, a, b, kIsBFloat16);
#endif
}

}  // namespace flagattn::ptx
