// fp32 vectors of the instruction set this file is compiled for. Each ISA level is a namespace of its own, so that no
// inline function of one level can be linked into another.
//
// All levels offer the same vocabulary:
//   F32            kLanes floats; zero, set1, load/store (unaligned, from and to fp32, bf16, fp16; `_n` variants touch
//                  only the first n elements), + - *, fma(a, b, c) = a * b + c, max, min, abs, sqrt, exp2, sum, hmax,
//                  swap_neighbours (elements 2i and 2i + 1), load_fours (four elements of each of kLanes / 4 rows),
//                  spread_in_fours, power_of_shifted (an integer into the exponent)
//   I32            kLanes int32; set1, load, iota (0, 1, 2, ...), + - ^, comparisons
//   U64            kLanes / 2 unsigned 64-bit integers; set1, load_even and load_odd (elements 0, 2, .. and 1, 3, .. of
//                  kLanes uint32), ^, multiply_low (the product of the lower halves), high_half (in the lower half;
//                  what is left in the upper one is anything), join (of lower halves, elements 0, 2, .. and 1, 3, ..)
//   Mask           one bit or lane per element; select(mask, a, b) = mask ? a : b, &, |, any, all
//   transpose      a kLanes x kLanes block in registers
#pragma once

#if defined(__AMX_BF16__)
#define FLAGATTN_ISA amx
#elif defined(__AVX512F__)
#define FLAGATTN_ISA avx512
#elif defined(__AVX2__)
#define FLAGATTN_ISA avx2
#else
#define FLAGATTN_ISA scalar
#endif

#define FLAGATTN_INLINE inline __attribute__((always_inline))
#define FLAGATTN_UNROLL _Pragma("GCC unroll 32")

#include "arch/dtypes.h"

#if defined(__AVX512F__)
#include "arch/simd/avx512.h"
#elif defined(__AVX2__)
#include "arch/simd/avx2.h"
#else
#include "arch/simd/scalar.h"
#endif

namespace flagattn::FLAGATTN_ISA {

// 2^f for |f| <= 1/2 by a polynomial that is exactly 1 at 0 (minimax in relative error), highest power first.
inline constexpr float kExp2Coefficients[] = {1.326472731e-03f, 9.671512991e-03f, 5.550733581e-02f,
                                              2.402224243e-01f, 6.931470037e-01f, 1.0f};
inline constexpr int kExp2Terms = 6;

// 2^f for |f| <= 1/2.
FLAGATTN_INLINE F32 exp2_near_zero(F32 f) {
  F32 p = F32::set1(kExp2Coefficients[0]);
  FLAGATTN_UNROLL for (int i = 1; i < kExp2Terms; ++i) p = fma(p, f, F32::set1(kExp2Coefficients[i]));
  return p;
}

// A number that this is added to is rounded: its integral part, and the bias of exponents with it, is left in the
// lowest bits, where power_of_shifted takes it from.
inline constexpr float kExponentShift = 0x1.8p23f + 127.0f;

// 2^x within 1.1e-7 relative; exact at integers; 0 below -126.5, so denormal results are flushed. NaN stays NaN.
FLAGATTN_INLINE F32 exp2(F32 x) {
  const F32 within = max(F32::set1(-127.0f), x);  // the second operand where x is NaN
  const F32 shift = F32::set1(kExponentShift), shifted = within + shift;
  return exp2_near_zero(within - (shifted - shift)) * power_of_shifted(shifted);
}

// How far below their maximum scores may lie: from 126.5 / factor on they weigh nothing.
FLAGATTN_INLINE F32 farthest_below(float factor) { return F32::set1(127.0f / factor); }

// below[i] = 2^(-factor * below[i]), step by step for all, so that the chains of several exponentials run side by side.
// Exactly 1 at 0; the product is not rounded before its integral part is taken off, where the level has a fused
// multiply-add. `farthest` is that of the factor.
template <int N>
FLAGATTN_INLINE void weights_of_all(F32 (&below)[N], F32 minus_factor, F32 farthest) {
  const F32 shift = F32::set1(kExponentShift);
  F32 shifted[N], p[N];
  // The second operand where it is NaN.
  FLAGATTN_UNROLL for (int i = 0; i < N; ++i) below[i] = min(farthest, below[i]);
  FLAGATTN_UNROLL for (int i = 0; i < N; ++i) shifted[i] = fma(below[i], minus_factor, shift);
  FLAGATTN_UNROLL for (int i = 0; i < N; ++i) below[i] = fms(below[i], minus_factor, shifted[i] - shift);
  FLAGATTN_UNROLL for (int i = 0; i < N; ++i) p[i] = F32::set1(kExp2Coefficients[0]);
  FLAGATTN_UNROLL for (int term = 1; term < kExp2Terms; ++term) {
    const F32 coefficient = F32::set1(kExp2Coefficients[term]);
    FLAGATTN_UNROLL for (int i = 0; i < N; ++i) p[i] = fma(p[i], below[i], coefficient);
  }
  FLAGATTN_UNROLL for (int i = 0; i < N; ++i) below[i] = p[i] * power_of_shifted(shifted[i]);
}

// e^x; 0 where the result would be denormal. x log2(e) is not rounded before its integral part is taken off (where the
// level has a fused multiply-add): the error does not grow with x as that of exp2(x * log2e) does.
FLAGATTN_INLINE F32 exp(F32 x) {
  const F32 within = max(F32::set1(-88.0f), x);  // the second operand where x is NaN
  const F32 log2e = F32::set1(1.44269504089f), shift = F32::set1(kExponentShift);
  const F32 shifted = fma(within, log2e, shift);
  return exp2_near_zero(fms(within, log2e, shifted - shift)) * power_of_shifted(shifted);
}

// tanh(x) = 1 - 2 / (e^2x + 1); by its Taylor polynomial near 0, where that difference would cancel.
FLAGATTN_INLINE F32 tanh(F32 x) {
  const F32 one = F32::set1(1.0f);
  const F32 e = exp2(min(F32::set1(20.0f), x) * F32::set1(2.885390082f));  // the second operand where x is NaN
  const F32 far = one - F32::set1(2.0f) / (e + one);
  const F32 x2 = x * x;
  F32 p = F32::set1(62.0f / 2835.0f);
  p = fma(p, x2, F32::set1(-17.0f / 315.0f));
  p = fma(p, x2, F32::set1(2.0f / 15.0f));
  p = fma(p, x2, F32::set1(-1.0f / 3.0f));
  const F32 near = fma(x * x2, p, x);
  return select(abs(x) < F32::set1(0.3f), near, far);
}

}  // namespace flagattn::FLAGATTN_ISA
