// The one product every attention kernel on the CPU is made of: a small block of accumulators that stays in registers,
//
//   c[r][v] += sum over k < n of A(k, r) * b[k * ldb + v * kLanes ...],     r < MR, v < NV vectors,
//
// where A is broadcast element by element and b is read in whole vectors. Scores, outputs and all gradients are this
// sum with other operands; they differ only in where A(k, r) lies.
#pragma once

#include <cstdint>

#include "arch/simd.h"

namespace flagattn::FLAGATTN_ISA {

// kMR x kNV accumulators, kNV vectors of b and one broadcast fill the registers: 12 + 3 + 1 = 16, or 24 + 3 + 1 <= 32.
inline constexpr int kMR = F32::kRegisters == 32 ? 8 : 4;
inline constexpr int kNV = 3;
// Columns (query rows, one per lane) of a panel.
inline constexpr int kPanel = kNV * F32::kLanes;

template <int MR, int NV>
FLAGATTN_INLINE void clear(F32 (&c)[MR][NV]) {
  FLAGATTN_UNROLL for (int r = 0; r < MR; ++r) { FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) c[r][v] = F32::zero(); }
}

template <int MR, int NV>
FLAGATTN_INLINE void load_block(const float* p, int64_t ld, F32 (&c)[MR][NV]) {
  FLAGATTN_UNROLL for (int r = 0; r < MR; ++r) {
    FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) c[r][v] = F32::load(p + r * ld + v * F32::kLanes);
  }
}

template <int MR, int NV>
FLAGATTN_INLINE void store_block(const F32 (&c)[MR][NV], float* p, int64_t ld) {
  FLAGATTN_UNROLL for (int r = 0; r < MR; ++r) {
    FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) c[r][v].store(p + r * ld + v * F32::kLanes);
  }
}

// One k, A(k, r) = a[r * step]: c[r][v] += A(k, r) * b[v].
template <int MR, int NV>
FLAGATTN_INLINE void multiply_step(const float* a, int64_t step, const float* b, F32 (&c)[MR][NV]) {
  F32 row[NV];
  FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) row[v] = F32::load(b + v * F32::kLanes);
  FLAGATTN_UNROLL for (int r = 0; r < MR; ++r) {
    const F32 broadcast = F32::set1(a[r * step]);
    FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) c[r][v] = fma(broadcast, row[v], c[r][v]);
  }
}

// A(k, r) = a[r * lda + k]: A lies in MR rows, as keys do in memory.
template <int MR, int NV>
FLAGATTN_INLINE void multiply_rows(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t n,
                                   F32 (&c)[MR][NV]) {
  for (int64_t quads = n / 4; quads > 0; --quads, a += 4, b += 4 * ldb) {
    FLAGATTN_UNROLL for (int i = 0; i < 4; ++i) multiply_step(a + i, lda, b + i * ldb, c);
  }
  for (int64_t rest = n % 4; rest > 0; --rest, ++a, b += ldb) multiply_step(a, lda, b, c);
}

// A(k, r) = a[k * lda + r]: the MR elements of one k are neighbours, as in a packed strip.
template <int MR, int NV>
FLAGATTN_INLINE void multiply_strip(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t n,
                                    F32 (&c)[MR][NV]) {
  for (int64_t quads = n / 4; quads > 0; --quads, a += 4 * lda, b += 4 * ldb) {
    FLAGATTN_UNROLL for (int i = 0; i < 4; ++i) multiply_step(a + i * lda, 1, b + i * ldb, c);
  }
  for (int64_t rest = n % 4; rest > 0; --rest, a += lda, b += ldb) multiply_step(a, 1, b, c);
}

}  // namespace flagattn::FLAGATTN_ISA
