// The one product every attention kernel on the CPU is made of: a small block of accumulators that stays in registers,
//
//   c[r][v] += sum over k < n of A(k, r) * b[k * ldb + v * kLanes ...],     r < MR, v < NV vectors,
//
// where A is broadcast element by element and b is read in whole vectors. Scores, outputs and all gradients are this
// sum with other operands; they differ only in where A(k, r) lies.
#pragma once

#include <cstdint>

#include "arch/simd.h"

// A function around one block of products. It must not be inlined: with anything else in the function GCC keeps the
// accumulators in memory, which costs a third of the speed.
#define FLAGATTN_KERNEL inline __attribute__((noinline))
#define FLAGATTN_INLINE_LAMBDA __attribute__((always_inline))

namespace flagattn::FLAGATTN_ISA {

// kMR x kNV accumulators, kNV vectors of b and one broadcast fill the registers: 12 + 3 + 1 = 16, or 24 + 3 + 1 <= 32.
inline constexpr int kMR = F32::kRegisters == 32 ? 8 : 4;
inline constexpr int kNV = 3;
// Columns (query rows, one per lane) of a panel.
inline constexpr int kPanel = kNV * F32::kLanes;

// Rows of a block NV vectors wide. A sum takes four cycles to reach its next addition: four sums would leave the
// multipliers waiting.
template <int NV>
inline constexpr int kBlockRows = NV == 1 ? 8 : kMR;

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

// One step of the loops below. They are unrolled in assembly where the block takes all registers (kHasEightSteps): of
// several steps GCC reads the vectors of b again for every row instead of keeping them, and the loads then take longer
// than the products. Narrower blocks leave registers free.
template <int MR, int NV, typename Element>
FLAGATTN_INLINE void multiply_step(const float* b, F32 (&c)[MR][NV], Element&& element) {
  F32 row[NV];
  FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) row[v] = F32::load(b + v * F32::kLanes);
  FLAGATTN_UNROLL for (int r = 0; r < MR; ++r) {
    const F32 broadcast = F32::set1(element(r));
    FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) c[r][v] = fma(broadcast, row[v], c[r][v]);
  }
}

template <int MR, int NV>
inline constexpr bool kTakesEightSteps = F32::kHasEightSteps && MR == kMR && NV == kNV;

// A(k, r) = rows[r][k]: A lies in MR rows, as keys do in memory.
template <int MR, int NV>
FLAGATTN_INLINE void multiply_rows(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t n,
                                   F32 (&c)[MR][NV]) {
  if constexpr (kTakesEightSteps<MR, NV>) {
    if (ldb == kPanel) {
      for (; n >= 8; n -= 8, a += 8, b += 8 * kPanel) eight_row_steps(a, lda, b, c);
    }
  }
  const float* rows[MR];
  FLAGATTN_UNROLL for (int r = 0; r < MR; ++r) rows[r] = a + r * lda;
  for (int64_t k = 0; k < n; ++k, b += ldb) {
    multiply_step(b, c, [&](int r) FLAGATTN_INLINE_LAMBDA { return rows[r][k]; });
  }
}

// A(k, r) = a[k * lda + r]: the MR elements of one k are neighbours, as in a packed strip.
template <int MR, int NV>
FLAGATTN_INLINE void multiply_strip(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t n,
                                    F32 (&c)[MR][NV]) {
  if constexpr (kTakesEightSteps<MR, NV>) {
    if (ldb == kPanel) {
      for (; n >= 8; n -= 8, a += 8 * lda, b += 8 * kPanel) eight_strip_steps(a, lda, b, c);
    }
  }
  for (int64_t k = 0; k < n; ++k, a += lda, b += ldb) {
    multiply_step(b, c, [&](int r) FLAGATTN_INLINE_LAMBDA { return a[r]; });
  }
}

}  // namespace flagattn::FLAGATTN_ISA
