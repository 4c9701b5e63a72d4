// Eight steps of a 4 x 3 block of products (attention/cpu/micro_kernel.h) in assembly: 12 accumulators, 3 vectors of b
// and a broadcast are all 16 registers, and of unrolled steps in C++ GCC 12 spills one. Unrolled they must be: a core
// whose front end serves another thread as well issues three or four instructions a cycle, and a step of 19 that should
// take six cycles has none to spare for a loop. Included by arch/simd/avx2.h only.
#pragma once

#include <cstdint>

namespace flagattn::avx2 {

// Step k: its row of b, and the four elements of A at the operands a0 to a3.
#define FLAGATTN_STEP(k, a0, a1, a2, a3)     \
  "vmovups " #k                              \
  "*96(%[b]), %%ymm12\n\t"                   \
  "vmovups " #k                              \
  "*96+32(%[b]), %%ymm13\n\t"                \
  "vmovups " #k                              \
  "*96+64(%[b]), %%ymm14\n\t"                \
  "vbroadcastss " a0                         \
  ", %%ymm15\n\t"                            \
  "vfmadd231ps %%ymm12, %%ymm15, %[c00]\n\t" \
  "vfmadd231ps %%ymm13, %%ymm15, %[c01]\n\t" \
  "vfmadd231ps %%ymm14, %%ymm15, %[c02]\n\t" \
  "vbroadcastss " a1                         \
  ", %%ymm15\n\t"                            \
  "vfmadd231ps %%ymm12, %%ymm15, %[c10]\n\t" \
  "vfmadd231ps %%ymm13, %%ymm15, %[c11]\n\t" \
  "vfmadd231ps %%ymm14, %%ymm15, %[c12]\n\t" \
  "vbroadcastss " a2                         \
  ", %%ymm15\n\t"                            \
  "vfmadd231ps %%ymm12, %%ymm15, %[c20]\n\t" \
  "vfmadd231ps %%ymm13, %%ymm15, %[c21]\n\t" \
  "vfmadd231ps %%ymm14, %%ymm15, %[c22]\n\t" \
  "vbroadcastss " a3                         \
  ", %%ymm15\n\t"                            \
  "vfmadd231ps %%ymm12, %%ymm15, %[c30]\n\t" \
  "vfmadd231ps %%ymm13, %%ymm15, %[c31]\n\t" \
  "vfmadd231ps %%ymm14, %%ymm15, %[c32]\n\t"
#define FLAGATTN_ROW_STEP(k) \
  FLAGATTN_STEP(k, #k "*4(%[a])", #k "*4(%[a],%[ld])", #k "*4(%[a],%[ld],2)", #k "*4(%[a],%[ld3])")
#define FLAGATTN_STRIP_STEP(k, at) FLAGATTN_STEP(k, "(" at ")", "4(" at ")", "8(" at ")", "12(" at ")")
#define FLAGATTN_BLOCK(c)                                                                                 \
  [c00] "+x"(c[0][0].reg), [c01] "+x"(c[0][1].reg), [c02] "+x"(c[0][2].reg), [c10] "+x"(c[1][0].reg),     \
      [c11] "+x"(c[1][1].reg), [c12] "+x"(c[1][2].reg), [c20] "+x"(c[2][0].reg), [c21] "+x"(c[2][1].reg), \
      [c22] "+x"(c[2][2].reg), [c30] "+x"(c[3][0].reg), [c31] "+x"(c[3][1].reg), [c32] "+x"(c[3][2].reg)
#define FLAGATTN_STEP_REGISTERS "xmm12", "xmm13", "xmm14", "xmm15", "memory"

// A(k, r) = a[r * lda + k]; rows of b are 24 floats long.
FLAGATTN_INLINE void eight_row_steps(const float* a, int64_t lda, const float* b, F32 (&c)[4][3]) {
  const int64_t bytes = lda * static_cast<int64_t>(sizeof(float));
  asm volatile(FLAGATTN_ROW_STEP(0) FLAGATTN_ROW_STEP(1) FLAGATTN_ROW_STEP(2) FLAGATTN_ROW_STEP(3) FLAGATTN_ROW_STEP(4)
                   FLAGATTN_ROW_STEP(5) FLAGATTN_ROW_STEP(6) FLAGATTN_ROW_STEP(7)
               : FLAGATTN_BLOCK(c)
               : [a] "r"(a), [b] "r"(b), [ld] "r"(bytes), [ld3] "r"(3 * bytes)
               : FLAGATTN_STEP_REGISTERS);
}

// A(k, r) = a[k * lda + r].
FLAGATTN_INLINE void eight_strip_steps(const float* a, int64_t lda, const float* b, F32 (&c)[4][3]) {
  const int64_t bytes = lda * static_cast<int64_t>(sizeof(float));
  asm volatile(FLAGATTN_STRIP_STEP(0, "%[a]") FLAGATTN_STRIP_STEP(1, "%[a],%[ld]")
                   FLAGATTN_STRIP_STEP(2, "%[a],%[ld],2") FLAGATTN_STRIP_STEP(3, "%[a],%[ld3]")
                       FLAGATTN_STRIP_STEP(4, "%[a4]") FLAGATTN_STRIP_STEP(5, "%[a4],%[ld]")
                           FLAGATTN_STRIP_STEP(6, "%[a4],%[ld],2") FLAGATTN_STRIP_STEP(7, "%[a4],%[ld3]")
               : FLAGATTN_BLOCK(c)
               : [a] "r"(a), [a4] "r"(a + 4 * lda), [b] "r"(b), [ld] "r"(bytes), [ld3] "r"(3 * bytes)
               : FLAGATTN_STEP_REGISTERS);
}

#undef FLAGATTN_STEP
#undef FLAGATTN_ROW_STEP
#undef FLAGATTN_STRIP_STEP
#undef FLAGATTN_BLOCK
#undef FLAGATTN_STEP_REGISTERS

}  // namespace flagattn::avx2
