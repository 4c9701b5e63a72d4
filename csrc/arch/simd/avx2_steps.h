// Eight steps of a 4 x 3 block of products (attention/cpu/micro_kernel.h) in assembly: 12 accumulators, 3 vectors of b
// and a broadcast are all 16 registers, and of unrolled steps in C++ GCC 12 spills one. A loop of single steps asks for
// a jump every six cycles, which a core that shares its front end with another thread does not keep up with. Included
// by arch/simd/avx2.h only.
#pragma once

#include <cstdint>

namespace flagattn::avx2 {

// One step: b at bytes y0, y1, y2; the four elements of A at the given operands.
#define FLAGATTN_STEP(y0, y1, y2, a0, a1, a2, a3) \
  "vmovups " #y0                                  \
  "(%[b]), %%ymm12\n\t"                           \
  "vmovups " #y1                                  \
  "(%[b]), %%ymm13\n\t"                           \
  "vmovups " #y2                                  \
  "(%[b]), %%ymm14\n\t"                           \
  "vbroadcastss " a0                              \
  ", %%ymm15\n\t"                                 \
  "vfmadd231ps %%ymm12, %%ymm15, %[c0]\n\t"       \
  "vfmadd231ps %%ymm13, %%ymm15, %[c1]\n\t"       \
  "vfmadd231ps %%ymm14, %%ymm15, %[c2]\n\t"       \
  "vbroadcastss " a1                              \
  ", %%ymm15\n\t"                                 \
  "vfmadd231ps %%ymm12, %%ymm15, %[c3]\n\t"       \
  "vfmadd231ps %%ymm13, %%ymm15, %[c4]\n\t"       \
  "vfmadd231ps %%ymm14, %%ymm15, %[c5]\n\t"       \
  "vbroadcastss " a2                              \
  ", %%ymm15\n\t"                                 \
  "vfmadd231ps %%ymm12, %%ymm15, %[c6]\n\t"       \
  "vfmadd231ps %%ymm13, %%ymm15, %[c7]\n\t"       \
  "vfmadd231ps %%ymm14, %%ymm15, %[c8]\n\t"       \
  "vbroadcastss " a3                              \
  ", %%ymm15\n\t"                                 \
  "vfmadd231ps %%ymm12, %%ymm15, %[c9]\n\t"       \
  "vfmadd231ps %%ymm13, %%ymm15, %[c10]\n\t"      \
  "vfmadd231ps %%ymm14, %%ymm15, %[c11]\n\t"
#define FLAGATTN_ROW_STEP(x, y0, y1, y2) \
  FLAGATTN_STEP(y0, y1, y2, #x "(%[a])", #x "(%[a],%[ld])", #x "(%[a],%[ld],2)", #x "(%[a],%[ld3])")
#define FLAGATTN_STRIP_STEP(x0, x1, x2, x3, y0, y1, y2) \
  FLAGATTN_STEP(y0, y1, y2, #x0 "(%[a])", #x1 "(%[a])", #x2 "(%[a])", #x3 "(%[a])")
#define FLAGATTN_BLOCK                                                                                \
  [c0] "+x"(c[0][0].reg), [c1] "+x"(c[0][1].reg), [c2] "+x"(c[0][2].reg), [c3] "+x"(c[1][0].reg),     \
      [c4] "+x"(c[1][1].reg), [c5] "+x"(c[1][2].reg), [c6] "+x"(c[2][0].reg), [c7] "+x"(c[2][1].reg), \
      [c8] "+x"(c[2][2].reg), [c9] "+x"(c[3][0].reg), [c10] "+x"(c[3][1].reg), [c11] "+x"(c[3][2].reg)

// Rows of b are 24 floats long. A(k, r) = a[r * lda + k].
FLAGATTN_INLINE void eight_row_steps(const float* a, int64_t lda, const float* b, F32 (&c)[4][3]) {
  const int64_t bytes = lda * static_cast<int64_t>(sizeof(float));
  asm volatile(FLAGATTN_ROW_STEP(0, 0, 32, 64) FLAGATTN_ROW_STEP(4, 96, 128, 160) FLAGATTN_ROW_STEP(8, 192, 224, 256)
                   FLAGATTN_ROW_STEP(12, 288, 320, 352) FLAGATTN_ROW_STEP(16, 384, 416, 448) FLAGATTN_ROW_STEP(
                       20, 480, 512, 544) FLAGATTN_ROW_STEP(24, 576, 608, 640) FLAGATTN_ROW_STEP(28, 672, 704, 736)
               : FLAGATTN_BLOCK
               : [a] "r"(a), [b] "r"(b), [ld] "r"(bytes), [ld3] "r"(3 * bytes)
               : "xmm12", "xmm13", "xmm14", "xmm15", "memory");
}

// A(k, r) = a[k * 8 + r].
FLAGATTN_INLINE void eight_strip_steps(const float* a, const float* b, F32 (&c)[4][3]) {
  asm volatile(FLAGATTN_STRIP_STEP(0, 4, 8, 12, 0, 32, 64) FLAGATTN_STRIP_STEP(32, 36, 40, 44, 96, 128, 160)
                   FLAGATTN_STRIP_STEP(64, 68, 72, 76, 192, 224, 256) FLAGATTN_STRIP_STEP(
                       96, 100, 104, 108, 288, 320, 352) FLAGATTN_STRIP_STEP(128, 132, 136, 140, 384, 416, 448)
                       FLAGATTN_STRIP_STEP(160, 164, 168, 172, 480, 512, 544) FLAGATTN_STRIP_STEP(
                           192, 196, 200, 204, 576, 608, 640) FLAGATTN_STRIP_STEP(224, 228, 232, 236, 672, 704, 736)
               : FLAGATTN_BLOCK
               : [a] "r"(a), [b] "r"(b)
               : "xmm12", "xmm13", "xmm14", "xmm15", "memory");
}

#undef FLAGATTN_STEP
#undef FLAGATTN_ROW_STEP
#undef FLAGATTN_STRIP_STEP
#undef FLAGATTN_BLOCK

}  // namespace flagattn::avx2
