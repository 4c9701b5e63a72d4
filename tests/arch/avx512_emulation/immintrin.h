// AVX-512 for hosts without it: the intrinsics that csrc/arch/simd/avx512.h uses, each written out as a loop over lanes
// after Intel's description. Shadows the compiler's header, so the AVX-512 sources compile with AVX2 flags and run
// anywhere. For tests only: slow, and NaN and rounding behave as the real instructions do.
#pragma once

#undef __AVX512F__
#include_next <immintrin.h>
#define __AVX512F__ 1

#include <cmath>
#include <cstdint>
#include <cstring>

namespace avx512_emulation {

#define EMULATED inline __attribute__((always_inline))
#define LANES(i) for (int i = 0; i < 16; ++i)

// Registers as the header names them: __m512, __m512i (seen as 16 x int32) and __mmask16 come from the compiler.
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));

EMULATED bool bit(__mmask16 m, int i) { return (m >> i) & 1; }
EMULATED Ints ints(__m512i a) { return reinterpret_cast<Ints>(a); }
EMULATED __m512i pack(Ints a) { return reinterpret_cast<__m512i>(a); }

EMULATED __m512 set1_ps(float x) {
  __m512 r;
  LANES(i) r[i] = x;
  return r;
}
EMULATED __m512 setzero_ps() { return set1_ps(0.0f); }
EMULATED __m512i set1_epi32(int32_t x) {
  Ints r;
  LANES(i) r[i] = x;
  return pack(r);
}
EMULATED __m512i setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h, int j, int k, int l, int m, int n,
                            int o, int p, int q) {
  return pack(Ints{a, b, c, d, e, f, g, h, j, k, l, m, n, o, p, q});
}

EMULATED __m512 loadu_ps(const void* p) {
  __m512 r;
  std::memcpy(&r, p, 64);
  return r;
}
EMULATED __m512i loadu_si512(const void* p) {
  __m512i r;
  std::memcpy(&r, p, 64);
  return r;
}
EMULATED void storeu_ps(void* p, __m512 a) { std::memcpy(p, &a, 64); }
EMULATED void storeu_si512(void* p, __m512i a) { std::memcpy(p, &a, 64); }
EMULATED __m512 maskz_loadu_ps(__mmask16 m, const void* p) {
  __m512 r;
  LANES(i) r[i] = bit(m, i) ? static_cast<const float*>(p)[i] : 0.0f;
  return r;
}
EMULATED void mask_storeu_ps(void* p, __mmask16 m, __m512 a) {
  LANES(i) if (bit(m, i)) static_cast<float*>(p)[i] = a[i];
}
EMULATED __m256i maskz_loadu_epi16(__mmask16 m, const void* p) {
  uint16_t halves[16];
  LANES(i) halves[i] = bit(m, i) ? static_cast<const uint16_t*>(p)[i] : 0;
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves));
}
EMULATED void mask_storeu_epi16(void* p, __mmask16 m, __m256i a) {
  uint16_t halves[16];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(halves), a);
  LANES(i) if (bit(m, i)) static_cast<uint16_t*>(p)[i] = halves[i];
}

EMULATED __m512i castps_si512(__m512 a) { return reinterpret_cast<__m512i>(a); }
EMULATED __m512 castsi512_ps(__m512i a) { return reinterpret_cast<__m512>(a); }

EMULATED __m512i add_epi32(__m512i a, __m512i b) {
  return pack(reinterpret_cast<Ints>(reinterpret_cast<Words>(a) + reinterpret_cast<Words>(b)));
}
EMULATED __m512i sub_epi32(__m512i a, __m512i b) {
  return pack(reinterpret_cast<Ints>(reinterpret_cast<Words>(a) - reinterpret_cast<Words>(b)));
}
EMULATED __m512i and_si512(__m512i a, __m512i b) { return a & b; }
EMULATED __m512i or_si512(__m512i a, __m512i b) { return a | b; }
typedef uint64_t Longs __attribute__((vector_size(64)));
EMULATED Longs longs(__m512i a) { return reinterpret_cast<Longs>(a); }
EMULATED __m512i xor_si512(__m512i a, __m512i b) { return pack(ints(a) ^ ints(b)); }
EMULATED __m512i mul_epu32(__m512i a, __m512i b) {
  return reinterpret_cast<__m512i>((longs(a) & 0xffffffffu) * (longs(b) & 0xffffffffu));
}
EMULATED __m512i slli_epi64(__m512i a, unsigned n) { return reinterpret_cast<__m512i>(longs(a) << n); }
EMULATED __m512i srli_epi64(__m512i a, unsigned n) { return reinterpret_cast<__m512i>(longs(a) >> n); }
EMULATED __m512i slli_epi32(__m512i a, unsigned n) {
  return reinterpret_cast<__m512i>(reinterpret_cast<Words>(a) << n);
}
EMULATED __m512i srli_epi32(__m512i a, unsigned n) {
  return reinterpret_cast<__m512i>(reinterpret_cast<Words>(a) >> n);
}
EMULATED __mmask16 cmpgt_epi32_mask(__m512i a, __m512i b) {
  __mmask16 m = 0;
  LANES(i) m = static_cast<__mmask16>(m | (ints(a)[i] > ints(b)[i]) << i);
  return m;
}
EMULATED __mmask16 cmplt_epi32_mask(__m512i a, __m512i b) { return cmpgt_epi32_mask(b, a); }
EMULATED __m512i mask_mov_epi32(__m512i src, __mmask16 m, __m512i a) {
  Ints r = ints(src);
  LANES(i) if (bit(m, i)) r[i] = ints(a)[i];
  return pack(r);
}
EMULATED __m512i cvtepu16_epi32(__m256i a) {
  uint16_t halves[16];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(halves), a);
  Ints r;
  LANES(i) r[i] = halves[i];
  return pack(r);
}
EMULATED __m256i cvtepi32_epi16(__m512i a) {
  uint16_t halves[16];
  LANES(i) halves[i] = static_cast<uint16_t>(ints(a)[i]);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves));
}
EMULATED __m512 cvtph_ps(__m256i a) {
  const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(a)), high = _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1));
  __m512 r;
  for (int i = 0; i < 8; ++i) r[i] = low[i], r[8 + i] = high[i];
  return r;
}
EMULATED __m256i cvtps_ph(__m512 a, int) {
  __m256 low, high;
  for (int i = 0; i < 8; ++i) low[i] = a[i], high[i] = a[8 + i];
  return _mm256_set_m128i(_mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT),
                          _mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT));
}

EMULATED __m512 add_ps(__m512 a, __m512 b) { return a + b; }
EMULATED __m512 sub_ps(__m512 a, __m512 b) { return a - b; }
EMULATED __m512 mul_ps(__m512 a, __m512 b) { return a * b; }
EMULATED __m512 div_ps(__m512 a, __m512 b) { return a / b; }
EMULATED __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  LANES(i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}
EMULATED __m512 fmsub_ps(__m512 a, __m512 b, __m512 c) { return fmadd_ps(a, b, -c); }
EMULATED __m512 max_ps(__m512 a, __m512 b) {
  LANES(i) a[i] = a[i] > b[i] ? a[i] : b[i];
  return a;
}
EMULATED __m512 min_ps(__m512 a, __m512 b) {
  LANES(i) a[i] = a[i] < b[i] ? a[i] : b[i];
  return a;
}
EMULATED __m512 abs_ps(__m512 a) { return castsi512_ps(and_si512(castps_si512(a), set1_epi32(0x7fffffff))); }
EMULATED __m512 sqrt_ps(__m512 a) {
  LANES(i) a[i] = std::sqrt(a[i]);
  return a;
}
EMULATED __mmask16 cmp_ps_mask(__m512 a, __m512 b, int predicate) {
  __mmask16 m = 0;
  LANES(i) {
    const bool unordered = a[i] != a[i] || b[i] != b[i];
    const bool holds = predicate == _CMP_LT_OQ     ? a[i] < b[i]
                       : predicate == _CMP_GT_OQ   ? a[i] > b[i]
                       : predicate == _CMP_EQ_OQ   ? a[i] == b[i]
                       : predicate == _CMP_NLT_UQ  ? !(a[i] < b[i])
                       : predicate == _CMP_UNORD_Q ? unordered
                                                   : (__builtin_trap(), false);
    m = static_cast<__mmask16>(m | holds << i);
  }
  return m;
}
EMULATED __m512 mask_mov_ps(__m512 src, __mmask16 m, __m512 a) {
  LANES(i) if (bit(m, i)) src[i] = a[i];
  return src;
}

// Within each 128-bit part p: lanes 4p .. 4p + 3.
EMULATED __m512 unpacklo_ps(__m512 a, __m512 b) {
  __m512 r;
  for (int p = 0; p < 16; p += 4) r[p] = a[p], r[p + 1] = b[p], r[p + 2] = a[p + 1], r[p + 3] = b[p + 1];
  return r;
}
EMULATED __m512 unpackhi_ps(__m512 a, __m512 b) {
  __m512 r;
  for (int p = 0; p < 16; p += 4) r[p] = a[p + 2], r[p + 1] = b[p + 2], r[p + 2] = a[p + 3], r[p + 3] = b[p + 3];
  return r;
}
EMULATED __m512 shuffle_ps(__m512 a, __m512 b, int imm) {
  __m512 r;
  for (int p = 0; p < 16; p += 4) {
    r[p] = a[p + (imm & 3)], r[p + 1] = a[p + ((imm >> 2) & 3)];
    r[p + 2] = b[p + ((imm >> 4) & 3)], r[p + 3] = b[p + ((imm >> 6) & 3)];
  }
  return r;
}
EMULATED __m512 broadcast_f32x4(__m128 a) {
  __m512 r;
  LANES(i) r[i] = a[i % 4];
  return r;
}
EMULATED __m512 widened(__m256 low) {
  __m512 r = setzero_ps();
  std::memcpy(&r, &low, 32);
  return r;
}
EMULATED __m512 insertf32x8(__m512 a, __m256 half, int where) {
  std::memcpy(reinterpret_cast<char*>(&a) + 32 * where, &half, 32);
  return a;
}
EMULATED __m512 shuffle_f32x4(__m512 a, __m512 b, int imm) {
  __m512 r;
  for (int part = 0; part < 4; ++part) {
    const int from = (imm >> (2 * part)) & 3;
    for (int i = 0; i < 4; ++i) r[4 * part + i] = part < 2 ? a[4 * from + i] : b[4 * from + i];
  }
  return r;
}

EMULATED __m512i shuffle_epi8(__m512i a, __m512i which) {
  unsigned char from[64], at[64], to[64];
  std::memcpy(from, &a, 64);
  std::memcpy(at, &which, 64);
  for (int i = 0; i < 64; ++i) to[i] = (at[i] & 0x80) != 0 ? 0 : from[i / 16 * 16 + at[i] % 16];
  __m512i r;
  std::memcpy(&r, to, 64);
  return r;
}

// Halves are folded onto each other, as the compiler's sequence for the real instruction set does.
EMULATED float reduce_add_ps(__m512 a) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a[i] += a[i + width];
  }
  return a[0];
}
EMULATED float reduce_max_ps(__m512 a) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a[i] = a[i] > a[i + width] ? a[i] : a[i + width];
  }
  return a[0];
}

#undef LANES
#undef EMULATED

}  // namespace avx512_emulation

// clang-format off
#define _mm512_set1_ps avx512_emulation::set1_ps
#define _mm512_setzero_ps avx512_emulation::setzero_ps
#define _mm512_set1_epi32 avx512_emulation::set1_epi32
#undef _mm512_setr_epi32
#define _mm512_setr_epi32 avx512_emulation::setr_epi32
#define _mm512_loadu_ps avx512_emulation::loadu_ps
#define _mm512_loadu_si512 avx512_emulation::loadu_si512
#define _mm512_storeu_ps avx512_emulation::storeu_ps
#define _mm512_storeu_si512 avx512_emulation::storeu_si512
#define _mm512_stream_ps avx512_emulation::storeu_ps
#define _mm512_maskz_loadu_ps avx512_emulation::maskz_loadu_ps
#define _mm512_mask_storeu_ps avx512_emulation::mask_storeu_ps
#define _mm256_maskz_loadu_epi16 avx512_emulation::maskz_loadu_epi16
#define _mm256_mask_storeu_epi16 avx512_emulation::mask_storeu_epi16
#define _mm512_castps_si512 avx512_emulation::castps_si512
#define _mm512_castsi512_ps avx512_emulation::castsi512_ps
#define _mm512_shuffle_epi8 avx512_emulation::shuffle_epi8
#define _mm512_add_epi32 avx512_emulation::add_epi32
#define _mm512_sub_epi32 avx512_emulation::sub_epi32
#define _mm512_and_si512 avx512_emulation::and_si512
#define _mm512_or_si512 avx512_emulation::or_si512
#define _mm512_xor_si512 avx512_emulation::xor_si512
#define _mm512_mul_epu32 avx512_emulation::mul_epu32
#define _mm512_slli_epi64 avx512_emulation::slli_epi64
#define _mm512_srli_epi64 avx512_emulation::srli_epi64
#define _mm512_slli_epi32 avx512_emulation::slli_epi32
#define _mm512_srli_epi32 avx512_emulation::srli_epi32
#define _mm512_cmpgt_epi32_mask avx512_emulation::cmpgt_epi32_mask
#define _mm512_cmplt_epi32_mask avx512_emulation::cmplt_epi32_mask
#define _mm512_mask_mov_epi32 avx512_emulation::mask_mov_epi32
#define _mm512_cvtepu16_epi32 avx512_emulation::cvtepu16_epi32
#define _mm512_cvtepi32_epi16 avx512_emulation::cvtepi32_epi16
#define _mm512_cvtph_ps avx512_emulation::cvtph_ps
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph avx512_emulation::cvtps_ph
#define _mm512_add_ps avx512_emulation::add_ps
#define _mm512_sub_ps avx512_emulation::sub_ps
#define _mm512_mul_ps avx512_emulation::mul_ps
#define _mm512_div_ps avx512_emulation::div_ps
#define _mm512_fmadd_ps avx512_emulation::fmadd_ps
#define _mm512_fmsub_ps avx512_emulation::fmsub_ps
#define _mm512_max_ps avx512_emulation::max_ps
#define _mm512_min_ps avx512_emulation::min_ps
#define _mm512_abs_ps avx512_emulation::abs_ps
#define _mm512_sqrt_ps avx512_emulation::sqrt_ps
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask avx512_emulation::cmp_ps_mask
#define _mm512_mask_mov_ps avx512_emulation::mask_mov_ps
#define _mm512_unpacklo_ps avx512_emulation::unpacklo_ps
#define _mm512_unpackhi_ps avx512_emulation::unpackhi_ps
#undef _mm512_shuffle_ps
#define _mm512_shuffle_ps avx512_emulation::shuffle_ps
#define _mm512_broadcast_f32x4 avx512_emulation::broadcast_f32x4
#define _mm512_castps256_ps512 avx512_emulation::widened
#undef _mm512_insertf32x8
#define _mm512_insertf32x8 avx512_emulation::insertf32x8
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 avx512_emulation::shuffle_f32x4
#define _mm512_reduce_add_ps avx512_emulation::reduce_add_ps
#define _mm512_reduce_max_ps avx512_emulation::reduce_max_ps
// clang-format on
