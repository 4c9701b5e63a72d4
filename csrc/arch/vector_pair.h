// Two vectors at a time, for the row-wise ops: twice the independent work per step, and on AVX2 the cheap way in and
// out of bfloat16, which splits a register of 16 into its even and its odd elements by one shift and one mask.
#pragma once

#include <cstdint>

#include "arch/simd.h"

namespace flagattn::FLAGATTN_ISA {

struct Pair {
  F32 first, second;
  static FLAGATTN_INLINE Pair set1(float x) { return {F32::set1(x), F32::set1(x)}; }
};
FLAGATTN_INLINE Pair operator+(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }
FLAGATTN_INLINE Pair operator-(Pair a, Pair b) { return {a.first - b.first, a.second - b.second}; }
FLAGATTN_INLINE Pair operator*(Pair a, Pair b) { return {a.first * b.first, a.second * b.second}; }
FLAGATTN_INLINE Pair operator/(Pair a, Pair b) { return {a.first / b.first, a.second / b.second}; }
FLAGATTN_INLINE Pair fma(Pair a, Pair b, Pair c) {
  return {fma(a.first, b.first, c.first), fma(a.second, b.second, c.second)};
}

constexpr int64_t kPairLanes = 2 * F32::kLanes;

// Whether a pair of T holds the even elements in `first` and the odd ones in `second`; else it holds them in order.
template <typename T>
inline constexpr bool kSplitsEvenOdd = false;

// Without vector instructions for 16-bit types their conversion is long code, which then is called rather than inlined.
#if defined(__AVX2__)
#define FLAGATTN_PAIR_ACCESS FLAGATTN_INLINE
#else
#define FLAGATTN_PAIR_ACCESS static __attribute__((noinline))
#endif

// Memory holds the elements in order; load and store are each other's inverse. A stored value is the result of
// arithmetic on T operands (see the NaNs of bfloat16 below).
template <typename T>
FLAGATTN_PAIR_ACCESS Pair load_pair(const T* p) {
  return {F32::load(p), F32::load(p + F32::kLanes)};
}
template <typename T>
FLAGATTN_PAIR_ACCESS void store_pair(Pair value, T* p) {
  value.first.store(p);
  value.second.store(p + F32::kLanes);
}

FLAGATTN_INLINE Pair load_pair(const float* p) { return {F32::load(p), F32::load(p + F32::kLanes)}; }
FLAGATTN_INLINE void store_pair(Pair value, float* p) {
  value.first.store(p);
  value.second.store(p + F32::kLanes);
}

// What a value becomes when it is stored as a T and read again.
template <typename T>
FLAGATTN_PAIR_ACCESS F32 round_to(F32 value) {
  T rounded[F32::kLanes];
  value.store(rounded);
  return F32::load(rounded);
}
template <>
FLAGATTN_INLINE F32 round_to<float>(F32 value) {
  return value;
}

#if defined(__AVX2__) && !defined(__AVX512F__)

template <>
inline constexpr bool kSplitsEvenOdd<BFloat16> = true;

// The bits of bfloat16 in the upper halves, rounded to nearest even; the lower halves hold rubbish. A NaN stays one if
// it is quiet and its lower half is 0, like every NaN that arithmetic makes from bfloat16 operands: rounding cannot
// carry.
FLAGATTN_INLINE __m256i round_upper_halves(F32 value) {
  const __m256i bits = _mm256_castps_si256(value.reg);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}

template <>
FLAGATTN_INLINE Pair load_pair(const BFloat16* p) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i odd = _mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
  return {{_mm256_castsi256_ps(_mm256_slli_epi32(both, 16))}, {_mm256_castsi256_ps(odd)}};
}
FLAGATTN_INLINE __m256i joined(Pair value) {
  const __m256i even = _mm256_srli_epi32(round_upper_halves(value.first), 16);
  return _mm256_blend_epi16(even, round_upper_halves(value.second), 0xaa);
}
template <>
FLAGATTN_INLINE void store_pair(Pair value, BFloat16* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), joined(value));
}
template <>
FLAGATTN_INLINE F32 round_to<BFloat16>(F32 value) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(round_upper_halves(value), upper))};
}
template <>
FLAGATTN_INLINE F32 round_to<Float16>(F32 value) {
  return {_mm256_cvtph_ps(_mm256_cvtps_ph(value.reg, _MM_FROUND_TO_NEAREST_INT))};
}

#endif

template <typename T>
FLAGATTN_INLINE Pair round_to(Pair value) {
  return {round_to<T>(value.first), round_to<T>(value.second)};
}

// The first n elements at p, and 0 behind them.
template <typename T>
FLAGATTN_INLINE Pair load_pair(const T* p, int64_t n) {
  if (n == kPairLanes) return load_pair(p);
  T whole[kPairLanes] = {};
  for (int64_t i = 0; i < n; ++i) whole[i] = p[i];
  return load_pair(static_cast<const T*>(whole));
}
template <typename T>
FLAGATTN_INLINE void store_pair(Pair value, T* p, int64_t n) {
  if (n == kPairLanes) return store_pair(value, p);
  T whole[kPairLanes];
  store_pair(value, static_cast<T*>(whole));
  for (int64_t i = 0; i < n; ++i) p[i] = whole[i];
}

// A store past the caches, where the level has one; p is aligned to the pair's size.
#if defined(__AVX512F__)
FLAGATTN_INLINE void stream_pair(Pair value, float* p) {
  _mm512_stream_ps(p, value.first.reg);
  _mm512_stream_ps(p + F32::kLanes, value.second.reg);
}
#elif defined(__AVX2__)
FLAGATTN_INLINE void stream_pair(Pair value, float* p) {
  _mm256_stream_ps(p, value.first.reg);
  _mm256_stream_ps(p + F32::kLanes, value.second.reg);
}
FLAGATTN_INLINE void stream_pair(Pair value, BFloat16* p) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), joined(value));
}
#endif
template <typename T>
FLAGATTN_INLINE void stream_pair(Pair value, T* p) {
#if defined(__AVX2__)
  // The compiler keeps `whole` in registers: each is written and read in the same two parts.
  alignas(64) T whole[kPairLanes];
  store_pair(value, static_cast<T*>(whole));
#if defined(__AVX512F__)
  using Half = __m256i;
  _mm256_stream_si256(reinterpret_cast<Half*>(p), *reinterpret_cast<const Half*>(whole));
  _mm256_stream_si256(reinterpret_cast<Half*>(p) + 1, *(reinterpret_cast<const Half*>(whole) + 1));
#else
  using Half = __m128i;
  _mm_stream_si128(reinterpret_cast<Half*>(p), *reinterpret_cast<const Half*>(whole));
  _mm_stream_si128(reinterpret_cast<Half*>(p) + 1, *(reinterpret_cast<const Half*>(whole) + 1));
#endif
#else
  store_pair(value, p);
#endif
}

// As store_pair, but with kStream past the caches, which asks for an aligned p (streams_to) and a fence before other
// threads read.
template <bool kStream, typename T>
FLAGATTN_INLINE void put_pair(Pair value, T* p, int64_t n) {
  if constexpr (kStream) {
    if (n == kPairLanes) return stream_pair(value, p);
  }
  store_pair(value, p, n);
}
// From the start of a cache line on, so that consecutive pairs fill whole lines.
FLAGATTN_INLINE bool streams_to(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }
FLAGATTN_INLINE void fence_streams() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Turns a run-time flag into a template argument: with_flag(flag, [&](auto flag) { body<flag.value>(); }).
template <bool kValue>
struct Flag {
  static constexpr bool value = kValue;
};
template <typename Body>
FLAGATTN_INLINE void with_flag(bool flag, Body&& body) {
  if (flag) {
    body(Flag<true>{});
  } else {
    body(Flag<false>{});
  }
}

// The same for one vector.
template <typename T>
FLAGATTN_INLINE F32 load_up_to(const T* p, int64_t n) {
  return n == F32::kLanes ? F32::load(p) : F32::load_n(p, n);
}

// Fetches the cache lines of a pair; p may lie outside of every buffer.
template <typename T>
FLAGATTN_INLINE void prefetch_pair(const T* p) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t ahead = 0; ahead < kPairLanes; ahead += kLine) __builtin_prefetch(p + ahead);
}

// Calls body(i, n, u) for i = 0, kPairLanes, ...: n is kPairLanes but for a last, shorter pair, and u counts
// 0 .. kUnroll - 1 within an unrolled step, so that a sum can be kept in kUnroll independent parts.
template <int kUnroll = 1, typename Body>
FLAGATTN_INLINE void for_each_pair(int64_t count, Body&& body) {
  int64_t i = 0;
  for (; i + kUnroll * kPairLanes <= count; i += kUnroll * kPairLanes) {
    FLAGATTN_UNROLL for (int u = 0; u < kUnroll; ++u) body(i + u * kPairLanes, kPairLanes, u);
  }
  if constexpr (kUnroll > 1) {
    for (; i + kPairLanes <= count; i += kPairLanes) body(i, kPairLanes, 0);
  }
  if (i < count) body(i, count - i, 0);
}

// A pair's worth of fp32 values that meet the elements of T operands: place_columns puts them, given in order, where
// load_columns finds them in the order of a T pair; columns_in_order undoes that.
FLAGATTN_INLINE Pair load_columns(const float* buffer) { return load_pair(buffer); }
FLAGATTN_INLINE void store_columns(Pair value, float* buffer) { store_pair(value, buffer); }

template <typename T>
FLAGATTN_INLINE void place_columns(const float* in_order, float* buffer) {
  for (int64_t i = 0; i < kPairLanes; ++i) {
    const int64_t place = kSplitsEvenOdd<T> ? i % 2 * F32::kLanes + i / 2 : i;
    buffer[place] = in_order[i];
  }
}
template <typename T>
FLAGATTN_INLINE void columns_in_order(const float* buffer, float* in_order) {
  for (int64_t i = 0; i < kPairLanes; ++i) {
    const int64_t place = kSplitsEvenOdd<T> ? i % 2 * F32::kLanes + i / 2 : i;
    in_order[i] = buffer[place];
  }
}

}  // namespace flagattn::FLAGATTN_ISA
