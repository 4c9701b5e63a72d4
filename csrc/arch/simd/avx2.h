// AVX2 + FMA + F16C: 8 floats, 16 registers. Included by arch/simd.h only.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace flagattn::avx2 {

struct Mask {
  __m256 lanes;  // all bits of an element set or clear
};

struct I32 {
  __m256i reg;
  static FLAGATTN_INLINE I32 set1(int32_t x) { return {_mm256_set1_epi32(x)}; }
  static FLAGATTN_INLINE I32 iota() { return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)}; }
  static FLAGATTN_INLINE I32 load(const int32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  }
};
FLAGATTN_INLINE I32 operator+(I32 a, I32 b) { return {_mm256_add_epi32(a.reg, b.reg)}; }
FLAGATTN_INLINE I32 operator-(I32 a, I32 b) { return {_mm256_sub_epi32(a.reg, b.reg)}; }
FLAGATTN_INLINE I32 operator^(I32 a, I32 b) { return {_mm256_xor_si256(a.reg, b.reg)}; }
FLAGATTN_INLINE Mask operator>(I32 a, I32 b) { return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.reg, b.reg))}; }
FLAGATTN_INLINE Mask operator<(I32 a, I32 b) { return b > a; }

struct U64 {
  __m256i reg;
  static FLAGATTN_INLINE U64 set1(uint32_t x) { return {_mm256_set1_epi32(static_cast<int32_t>(x))}; }
  static FLAGATTN_INLINE U64 load_even(const uint32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  }
  static FLAGATTN_INLINE U64 load_odd(const uint32_t* p) { return {_mm256_srli_epi64(load_even(p).reg, 32)}; }
};
FLAGATTN_INLINE U64 operator^(U64 a, U64 b) { return {_mm256_xor_si256(a.reg, b.reg)}; }
FLAGATTN_INLINE U64 multiply_low(U64 a, U64 b) { return {_mm256_mul_epu32(a.reg, b.reg)}; }
FLAGATTN_INLINE U64 high_half(U64 a) { return {_mm256_srli_epi64(a.reg, 32)}; }
FLAGATTN_INLINE I32 join(U64 even, U64 odd) {
  return {_mm256_blend_epi32(even.reg, _mm256_slli_epi64(odd.reg, 32), 0xaa)};
}

// The first n elements.
FLAGATTN_INLINE Mask first_n(int64_t n) { return I32::iota() < I32::set1(static_cast<int32_t>(n)); }

struct F32 {
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;
#if defined(__SANITIZE_ADDRESS__)
  static constexpr bool kHasEightSteps = false;  // it does not see the loads of assembly
#else
  static constexpr bool kHasEightSteps = true;  // avx2_steps.h
#endif
  __m256 reg;

  static FLAGATTN_INLINE F32 zero() { return {_mm256_setzero_ps()}; }
  static FLAGATTN_INLINE F32 set1(float x) { return {_mm256_set1_ps(x)}; }

  static FLAGATTN_INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static FLAGATTN_INLINE F32 load(const BFloat16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
  }
  static FLAGATTN_INLINE F32 load(const Float16* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static FLAGATTN_INLINE F32 load_n(const float* p, int64_t n) {
    return {_mm256_maskload_ps(p, _mm256_castps_si256(first_n(n).lanes))};
  }
  template <typename Half>
  static FLAGATTN_INLINE F32 load_n(const Half* p, int64_t n) {
    Half whole[kLanes] = {};
    for (int64_t i = 0; i < n; ++i) whole[i] = p[i];
    return load(whole);
  }

  FLAGATTN_INLINE void store(float* p) const { _mm256_storeu_ps(p, reg); }
  FLAGATTN_INLINE void store(BFloat16* p) const {
    // Round to nearest even; a NaN keeps its upper bits and is made quiet, so that rounding cannot turn it into Inf.
    const __m256i bits = _mm256_castps_si256(reg);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 is_nan = _mm256_cmp_ps(reg, reg, _CMP_UNORD_Q);
    const __m256i chosen = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan));
    const __m256i high = _mm256_srli_epi32(chosen, 16);
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }
  FLAGATTN_INLINE void store(Float16* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(reg, _MM_FROUND_TO_NEAREST_INT));
  }
  FLAGATTN_INLINE void store_n(float* p, int64_t n) const {
    _mm256_maskstore_ps(p, _mm256_castps_si256(first_n(n).lanes), reg);
  }
  template <typename Half>
  FLAGATTN_INLINE void store_n(Half* p, int64_t n) const {
    Half whole[kLanes];
    store(whole);
    for (int64_t i = 0; i < n; ++i) p[i] = whole[i];
  }

  FLAGATTN_INLINE float sum() const {
    const __m128 quad = _mm_add_ps(_mm256_castps256_ps128(reg), _mm256_extractf128_ps(reg, 1));
    const __m128 pair = _mm_add_ps(quad, _mm_movehl_ps(quad, quad));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
  }
  FLAGATTN_INLINE float hmax() const {
    const __m128 quad = _mm_max_ps(_mm256_castps256_ps128(reg), _mm256_extractf128_ps(reg, 1));
    const __m128 pair = _mm_max_ps(quad, _mm_movehl_ps(quad, quad));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
  }
};

FLAGATTN_INLINE F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.reg, b.reg)}; }
FLAGATTN_INLINE F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.reg, b.reg)}; }
FLAGATTN_INLINE F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.reg, b.reg)}; }
FLAGATTN_INLINE F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.reg, b.reg)}; }
FLAGATTN_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.reg, b.reg, c.reg)}; }
// a * b - c
FLAGATTN_INLINE F32 fms(F32 a, F32 b, F32 c) { return {_mm256_fmsub_ps(a.reg, b.reg, c.reg)}; }
FLAGATTN_INLINE F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.reg, b.reg)}; }
FLAGATTN_INLINE F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.reg, b.reg)}; }
FLAGATTN_INLINE F32 abs(F32 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.reg)}; }
FLAGATTN_INLINE F32 sqrt(F32 a) { return {_mm256_sqrt_ps(a.reg)}; }

FLAGATTN_INLINE Mask operator<(F32 a, F32 b) { return {_mm256_cmp_ps(a.reg, b.reg, _CMP_LT_OQ)}; }
FLAGATTN_INLINE Mask operator>(F32 a, F32 b) { return {_mm256_cmp_ps(a.reg, b.reg, _CMP_GT_OQ)}; }
FLAGATTN_INLINE Mask operator==(F32 a, F32 b) { return {_mm256_cmp_ps(a.reg, b.reg, _CMP_EQ_OQ)}; }
FLAGATTN_INLINE Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.lanes, b.lanes)}; }
FLAGATTN_INLINE Mask operator|(Mask a, Mask b) { return {_mm256_or_ps(a.lanes, b.lanes)}; }
FLAGATTN_INLINE bool any(Mask m) { return _mm256_movemask_ps(m.lanes) != 0; }
FLAGATTN_INLINE bool all(Mask m) { return _mm256_movemask_ps(m.lanes) == 0xff; }
FLAGATTN_INLINE F32 select(Mask m, F32 a, F32 b) { return {_mm256_blendv_ps(b.reg, a.reg, m.lanes)}; }

// 2^(m - 127) for the float 1.5 x 2^23 + m, m = 0 .. 255: 0 for m = 0, infinity for 255.
FLAGATTN_INLINE F32 power_of_shifted(F32 shifted) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted.reg), 23))};
}

// Elements 2i and 2i + 1 change places.
FLAGATTN_INLINE F32 swap_neighbours(F32 a) { return {_mm256_permute_ps(a.reg, 0xb1)}; }

// Element 4r + i is element i of p, for every r.
FLAGATTN_INLINE F32 repeat_four(const float* p) { return {_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p))}; }
// Element 4r + i is element i of rows[r].
FLAGATTN_INLINE F32 load_fours(const float* const* rows) {
  return {_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[0])), _mm_loadu_ps(rows[1]), 1)};
}
template <typename Half>
FLAGATTN_INLINE __m128i load_half_fours(const Half* const* rows) {
  const __m128i first = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[0]));
  return _mm_unpacklo_epi64(first, _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[1])));
}
FLAGATTN_INLINE F32 load_fours(const BFloat16* const* rows) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_half_fours(rows)), 16))};
}
FLAGATTN_INLINE F32 load_fours(const Float16* const* rows) { return {_mm256_cvtph_ps(load_half_fours(rows))}; }
// Every element becomes element i of its four.
template <int i>
FLAGATTN_INLINE F32 spread_in_fours(F32 a) {
  return {_mm256_permute_ps(a.reg, i * 0x55)};
}

// Eight bf16 of each of kLanes / 4 rows.
struct Eights {
  __m256i reg;
};
FLAGATTN_INLINE Eights load_eights(const BFloat16* const* rows) {
  const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[0]));
  return {_mm256_inserti128_si256(_mm256_castsi128_si256(first),
                                  _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[1])), 1)};
}
// Element 4r + j is element i of row r, for every j: one shuffle of bytes widens it too.
template <int i>
FLAGATTN_INLINE F32 spread_in_eights(Eights a) {
  const __m256i bytes = _mm256_set1_epi32((2 * i + 1) << 24 | (2 * i) << 16 | 0x8080);
  return {_mm256_castsi256_ps(_mm256_shuffle_epi8(a.reg, bytes))};
}
// Elements 0, 2, 4, ... and 1, 3, 5, ... of 2 kLanes bf16.
FLAGATTN_INLINE void load_pairs(const BFloat16* p, F32& even, F32& odd) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  even.reg = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
  odd.reg = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000))));
}

// Rows become columns: element j of r[i] moves to element i of r[j].
FLAGATTN_INLINE void transpose(F32 (&r)[8]) {
  __m256 pairs[8], quads[8];
  FLAGATTN_UNROLL for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_ps(r[2 * i].reg, r[2 * i + 1].reg);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i].reg, r[2 * i + 1].reg);
  }
  FLAGATTN_UNROLL for (int i = 0; i < 2; ++i) {
    quads[4 * i] = _mm256_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0x44);
    quads[4 * i + 1] = _mm256_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0xee);
    quads[4 * i + 2] = _mm256_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0x44);
    quads[4 * i + 3] = _mm256_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0xee);
  }
  FLAGATTN_UNROLL for (int i = 0; i < 4; ++i) {
    r[i].reg = _mm256_permute2f128_ps(quads[i], quads[4 + i], 0x20);
    r[4 + i].reg = _mm256_permute2f128_ps(quads[i], quads[4 + i], 0x31);
  }
}

}  // namespace flagattn::avx2

#include "arch/simd/avx2_steps.h"
