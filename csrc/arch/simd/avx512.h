// AVX-512 F/DQ/BW/VL: 16 floats, 32 registers; the amx level has them too. Included by arch/simd.h only.
#pragma once

// GCC 12's own header initialises its "undefined" registers with themselves (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstdint>

namespace flagattn::FLAGATTN_ISA {

struct Mask {
  __mmask16 lanes;
};

struct I32 {
  __m512i reg;
  static FLAGATTN_INLINE I32 set1(int32_t x) { return {_mm512_set1_epi32(x)}; }
  static FLAGATTN_INLINE I32 iota() {
    return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
  }
  static FLAGATTN_INLINE I32 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
};
FLAGATTN_INLINE I32 operator+(I32 a, I32 b) { return {_mm512_add_epi32(a.reg, b.reg)}; }
FLAGATTN_INLINE I32 operator-(I32 a, I32 b) { return {_mm512_sub_epi32(a.reg, b.reg)}; }
FLAGATTN_INLINE I32 operator^(I32 a, I32 b) { return {_mm512_xor_si512(a.reg, b.reg)}; }
FLAGATTN_INLINE Mask operator>(I32 a, I32 b) { return {_mm512_cmpgt_epi32_mask(a.reg, b.reg)}; }
FLAGATTN_INLINE Mask operator<(I32 a, I32 b) { return {_mm512_cmplt_epi32_mask(a.reg, b.reg)}; }

struct U64 {
  __m512i reg;
  static FLAGATTN_INLINE U64 set1(uint32_t x) { return {_mm512_set1_epi32(static_cast<int32_t>(x))}; }
  static FLAGATTN_INLINE U64 load_even(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
  static FLAGATTN_INLINE U64 load_odd(const uint32_t* p) { return {_mm512_srli_epi64(load_even(p).reg, 32)}; }
};
FLAGATTN_INLINE U64 operator^(U64 a, U64 b) { return {_mm512_xor_si512(a.reg, b.reg)}; }
FLAGATTN_INLINE U64 multiply_low(U64 a, U64 b) { return {_mm512_mul_epu32(a.reg, b.reg)}; }
FLAGATTN_INLINE U64 high_half(U64 a) { return {_mm512_srli_epi64(a.reg, 32)}; }
FLAGATTN_INLINE I32 join(U64 even, U64 odd) {
  return {_mm512_mask_mov_epi32(even.reg, 0xaaaa, _mm512_slli_epi64(odd.reg, 32))};
}

// The first n elements.
FLAGATTN_INLINE Mask first_n(int64_t n) {
  return {static_cast<__mmask16>(n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1u)};
}

struct F32 {
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;
  static constexpr bool kHasEightSteps = false;
  __m512 reg;

  static FLAGATTN_INLINE F32 zero() { return {_mm512_setzero_ps()}; }
  static FLAGATTN_INLINE F32 set1(float x) { return {_mm512_set1_ps(x)}; }

  static FLAGATTN_INLINE F32 widen(__m256i bf16) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16))};
  }
  static FLAGATTN_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static FLAGATTN_INLINE F32 load(const BFloat16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static FLAGATTN_INLINE F32 load(const Float16* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static FLAGATTN_INLINE F32 load_n(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first_n(n).lanes, p)}; }
  static FLAGATTN_INLINE F32 load_n(const BFloat16* p, int64_t n) {
    return widen(_mm256_maskz_loadu_epi16(first_n(n).lanes, p));
  }
  static FLAGATTN_INLINE F32 load_n(const Float16* p, int64_t n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_n(n).lanes, p))};
  }

  FLAGATTN_INLINE __m256i to_bf16() const {
    // Round to nearest even; a NaN keeps its upper bits and is made quiet, so that rounding cannot turn it into Inf.
    const __m512i bits = _mm512_castps_si512(reg);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(reg, reg, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, is_nan, quiet), 16));
  }
  FLAGATTN_INLINE __m256i to_fp16() const { return _mm512_cvtps_ph(reg, _MM_FROUND_TO_NEAREST_INT); }
  FLAGATTN_INLINE void store(float* p) const { _mm512_storeu_ps(p, reg); }
  FLAGATTN_INLINE void store(BFloat16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16()); }
  FLAGATTN_INLINE void store(Float16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_fp16()); }
  FLAGATTN_INLINE void store_n(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, first_n(n).lanes, reg); }
  FLAGATTN_INLINE void store_n(BFloat16* p, int64_t n) const {
    _mm256_mask_storeu_epi16(p, first_n(n).lanes, to_bf16());
  }
  FLAGATTN_INLINE void store_n(Float16* p, int64_t n) const {
    _mm256_mask_storeu_epi16(p, first_n(n).lanes, to_fp16());
  }

  FLAGATTN_INLINE float sum() const { return _mm512_reduce_add_ps(reg); }
  FLAGATTN_INLINE float hmax() const { return _mm512_reduce_max_ps(reg); }
};

FLAGATTN_INLINE F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.reg, b.reg)}; }
FLAGATTN_INLINE F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.reg, b.reg)}; }
FLAGATTN_INLINE F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.reg, b.reg)}; }
FLAGATTN_INLINE F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.reg, b.reg)}; }
FLAGATTN_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.reg, b.reg, c.reg)}; }
// a * b - c
FLAGATTN_INLINE F32 fms(F32 a, F32 b, F32 c) { return {_mm512_fmsub_ps(a.reg, b.reg, c.reg)}; }
FLAGATTN_INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.reg, b.reg)}; }
FLAGATTN_INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.reg, b.reg)}; }
FLAGATTN_INLINE F32 abs(F32 a) { return {_mm512_abs_ps(a.reg)}; }
FLAGATTN_INLINE F32 sqrt(F32 a) { return {_mm512_sqrt_ps(a.reg)}; }

FLAGATTN_INLINE Mask operator<(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.reg, b.reg, _CMP_LT_OQ)}; }
FLAGATTN_INLINE Mask operator>(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.reg, b.reg, _CMP_GT_OQ)}; }
FLAGATTN_INLINE Mask operator==(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.reg, b.reg, _CMP_EQ_OQ)}; }
FLAGATTN_INLINE Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.lanes & b.lanes)}; }
FLAGATTN_INLINE Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.lanes | b.lanes)}; }
FLAGATTN_INLINE bool any(Mask m) { return m.lanes != 0; }
FLAGATTN_INLINE bool all(Mask m) { return m.lanes == 0xffff; }
FLAGATTN_INLINE F32 select(Mask m, F32 a, F32 b) { return {_mm512_mask_mov_ps(b.reg, m.lanes, a.reg)}; }

// 2^(m - 127) for the float 1.5 x 2^23 + m, m = 0 .. 255: 0 for m = 0, infinity for 255.
FLAGATTN_INLINE F32 power_of_shifted(F32 shifted) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted.reg), 23))};
}

// Elements 2i and 2i + 1 change places.
FLAGATTN_INLINE F32 swap_neighbours(F32 a) { return {_mm512_shuffle_ps(a.reg, a.reg, 0xb1)}; }

// Element 4r + i is element i of p, for every r.
FLAGATTN_INLINE F32 repeat_four(const float* p) { return {_mm512_broadcast_f32x4(_mm_loadu_ps(p))}; }
// Element 4r + i is element i of rows[r].
FLAGATTN_INLINE __m256 load_two_fours(const float* first, const float* second) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(first)), _mm_loadu_ps(second), 1);
}
FLAGATTN_INLINE F32 load_fours(const float* const* rows) {
  const __m256 low = load_two_fours(rows[0], rows[1]), high = load_two_fours(rows[2], rows[3]);
  return {_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1)};
}
template <typename Half>
FLAGATTN_INLINE __m256i load_half_fours(const Half* const* rows) {
  const auto four = [&](int r) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[r])); };
  return _mm256_set_m128i(_mm_unpacklo_epi64(four(2), four(3)), _mm_unpacklo_epi64(four(0), four(1)));
}
FLAGATTN_INLINE F32 load_fours(const BFloat16* const* rows) { return F32::widen(load_half_fours(rows)); }
FLAGATTN_INLINE F32 load_fours(const Float16* const* rows) { return {_mm512_cvtph_ps(load_half_fours(rows))}; }
// Every element becomes element i of its four.
template <int i>
FLAGATTN_INLINE F32 spread_in_fours(F32 a) {
  return {_mm512_shuffle_ps(a.reg, a.reg, i * 0x55)};
}

// Eight bf16 of each of kLanes / 4 rows.
struct Eights {
  __m512 pairs;
};
FLAGATTN_INLINE Eights load_eights(const BFloat16* const* rows) {
  const auto eight = [&](int r) { return reinterpret_cast<const float*>(rows[r]); };
  const __m256 low = load_two_fours(eight(0), eight(1)), high = load_two_fours(eight(2), eight(3));
  return {_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1)};
}
FLAGATTN_INLINE F32 even_of_pairs(__m512 pairs) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(pairs), 16))};
}
FLAGATTN_INLINE F32 odd_of_pairs(__m512 pairs) {
  const __m512i mask = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pairs), mask))};
}
// Element 4r + j is element i of row r, for every j: one shuffle of bytes widens it too.
template <int i>
FLAGATTN_INLINE F32 spread_in_eights(Eights a) {
  const __m512i bytes = _mm512_set1_epi32((2 * i + 1) << 24 | (2 * i) << 16 | 0x8080);
  return {_mm512_castsi512_ps(_mm512_shuffle_epi8(_mm512_castps_si512(a.pairs), bytes))};
}
// Elements 0, 2, 4, ... and 1, 3, 5, ... of 2 kLanes bf16.
FLAGATTN_INLINE void load_pairs(const BFloat16* p, F32& even, F32& odd) {
  const __m512 pairs = _mm512_loadu_ps(p);
  even = even_of_pairs(pairs);
  odd = odd_of_pairs(pairs);
}

// Rows become columns: element j of r[i] moves to element i of r[j].
FLAGATTN_INLINE void transpose(F32 (&r)[16]) {
  __m512 pairs[16], quads[16], halves[16];
  FLAGATTN_UNROLL for (int i = 0; i < 8; ++i) {
    pairs[2 * i] = _mm512_unpacklo_ps(r[2 * i].reg, r[2 * i + 1].reg);
    pairs[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i].reg, r[2 * i + 1].reg);
  }
  FLAGATTN_UNROLL for (int i = 0; i < 4; ++i) {
    quads[4 * i] = _mm512_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0x44);
    quads[4 * i + 1] = _mm512_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0xee);
    quads[4 * i + 2] = _mm512_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0x44);
    quads[4 * i + 3] = _mm512_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0xee);
  }
  // quads[4g + c] holds, in each 128-bit part p, column 4p + c of rows 4g .. 4g + 3.
  FLAGATTN_UNROLL for (int c = 0; c < 4; ++c) {
    FLAGATTN_UNROLL for (int h = 0; h < 2; ++h) {
      halves[8 * h + c] = _mm512_shuffle_f32x4(quads[8 * h + c], quads[8 * h + 4 + c], 0x88);
      halves[8 * h + 4 + c] = _mm512_shuffle_f32x4(quads[8 * h + c], quads[8 * h + 4 + c], 0xdd);
    }
    r[c].reg = _mm512_shuffle_f32x4(halves[c], halves[8 + c], 0x88);
    r[8 + c].reg = _mm512_shuffle_f32x4(halves[c], halves[8 + c], 0xdd);
    r[4 + c].reg = _mm512_shuffle_f32x4(halves[4 + c], halves[12 + c], 0x88);
    r[12 + c].reg = _mm512_shuffle_f32x4(halves[4 + c], halves[12 + c], 0xdd);
  }
}

}  // namespace flagattn::FLAGATTN_ISA
