// Any CPU: 4 floats in the compiler's generic vectors (SSE2 on x86-64, NEON on Arm). Included by arch/simd.h only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace flagattn::scalar {

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef uint64_t Long2 __attribute__((vector_size(16)));

struct Mask {
  Int4 lanes;  // all bits of an element set or clear
};

struct I32 {
  Int4 reg;
  static FLAGATTN_INLINE I32 set1(int32_t x) { return {Int4{x, x, x, x}}; }
  static FLAGATTN_INLINE I32 iota() { return {Int4{0, 1, 2, 3}}; }
  static FLAGATTN_INLINE I32 load(const int32_t* p) {
    I32 result;
    std::memcpy(&result.reg, p, sizeof(result.reg));
    return result;
  }
};
FLAGATTN_INLINE I32 operator+(I32 a, I32 b) { return {a.reg + b.reg}; }
FLAGATTN_INLINE I32 operator-(I32 a, I32 b) { return {a.reg - b.reg}; }
FLAGATTN_INLINE I32 operator^(I32 a, I32 b) { return {a.reg ^ b.reg}; }
FLAGATTN_INLINE Mask operator>(I32 a, I32 b) { return {a.reg > b.reg}; }
FLAGATTN_INLINE Mask operator<(I32 a, I32 b) { return {a.reg < b.reg}; }

struct U64 {
  Long2 reg;
  static FLAGATTN_INLINE U64 set1(uint32_t x) { return {Long2{x, x}}; }
  static FLAGATTN_INLINE U64 load_even(const uint32_t* p) { return {Long2{p[0], p[2]}}; }
  static FLAGATTN_INLINE U64 load_odd(const uint32_t* p) { return {Long2{p[1], p[3]}}; }
};
FLAGATTN_INLINE U64 operator^(U64 a, U64 b) { return {a.reg ^ b.reg}; }
FLAGATTN_INLINE U64 multiply_low(U64 a, U64 b) { return {(a.reg & 0xffffffffu) * (b.reg & 0xffffffffu)}; }
FLAGATTN_INLINE U64 high_half(U64 a) { return {a.reg >> 32}; }
FLAGATTN_INLINE I32 join(U64 even, U64 odd) {
  return {__builtin_bit_cast(Int4, (even.reg & 0xffffffffu) | odd.reg << 32)};
}

// The first n elements.
FLAGATTN_INLINE Mask first_n(int64_t n) { return I32::iota() < I32::set1(static_cast<int32_t>(n)); }

FLAGATTN_INLINE float from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
FLAGATTN_INLINE uint32_t to_bits(float x) { return __builtin_bit_cast(uint32_t, x); }

FLAGATTN_INLINE float widen(float x) { return x; }
FLAGATTN_INLINE float widen(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
FLAGATTN_INLINE float widen(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const bool special = magnitude >= 0x0f800000u;  // Inf or NaN
  // 2^112 moves the exponent bias from 15 to 127, denormals included.
  const float value = from_bits(magnitude) * 0x1p112f;
  return from_bits(sign | (special ? magnitude | 0x7f800000u : to_bits(value)));
}

FLAGATTN_INLINE void narrow(float x, float* p) { *p = x; }
// Both round to nearest even and keep NaN quiet.
FLAGATTN_INLINE void narrow(float x, BFloat16* p) {
  const uint32_t bits = to_bits(x);
  const uint32_t rounded = x != x ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
  p->bits = static_cast<uint16_t>(rounded >> 16);
}
FLAGATTN_INLINE void narrow(float x, Float16* p) {
  const uint32_t bits = to_bits(x), sign = (bits >> 16) & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or more
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // denormal in fp16: adding 1/2 lets the fp32 adder round at 2^-24
    half = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);
  } else {
    magnitude += 0xfffu + ((magnitude >> 13) & 1u);
    half = (magnitude - 0x38000000u) >> 13;
  }
  p->bits = static_cast<uint16_t>(sign | half);
}

struct F32 {
  static constexpr int kLanes = 4;
  static constexpr int kRegisters = 16;
  static constexpr bool kHasEightSteps = false;
  Float4 reg;

  static FLAGATTN_INLINE F32 zero() { return {Float4{}}; }
  static FLAGATTN_INLINE F32 set1(float x) { return {Float4{x, x, x, x}}; }

  template <typename T>
  static FLAGATTN_INLINE F32 load(const T* p) {
    return {Float4{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}};
  }
  static FLAGATTN_INLINE F32 load(const float* p) {
    F32 result;
    std::memcpy(&result.reg, p, sizeof(result.reg));
    return result;
  }
  template <typename T>
  static FLAGATTN_INLINE F32 load_n(const T* p, int64_t n) {
    F32 result = zero();
    for (int i = 0; i < kLanes && i < n; ++i) result.reg[i] = widen(p[i]);
    return result;
  }

  template <typename T>
  FLAGATTN_INLINE void store(T* p) const {
    for (int i = 0; i < kLanes; ++i) narrow(reg[i], p + i);
  }
  FLAGATTN_INLINE void store(float* p) const { std::memcpy(p, &reg, sizeof(reg)); }
  template <typename T>
  FLAGATTN_INLINE void store_n(T* p, int64_t n) const {
    for (int i = 0; i < kLanes && i < n; ++i) narrow(reg[i], p + i);
  }

  FLAGATTN_INLINE float sum() const { return (reg[0] + reg[2]) + (reg[1] + reg[3]); }
  FLAGATTN_INLINE float hmax() const {
    const float a = reg[0] > reg[2] ? reg[0] : reg[2], b = reg[1] > reg[3] ? reg[1] : reg[3];
    return a > b ? a : b;
  }
};

FLAGATTN_INLINE F32 operator+(F32 a, F32 b) { return {a.reg + b.reg}; }
FLAGATTN_INLINE F32 operator-(F32 a, F32 b) { return {a.reg - b.reg}; }
FLAGATTN_INLINE F32 operator*(F32 a, F32 b) { return {a.reg * b.reg}; }
FLAGATTN_INLINE F32 operator/(F32 a, F32 b) { return {a.reg / b.reg}; }
// Two roundings here: this level promises no fused multiply-add.
FLAGATTN_INLINE F32 fma(F32 a, F32 b, F32 c) { return {a.reg * b.reg + c.reg}; }
// a * b - c
FLAGATTN_INLINE F32 fms(F32 a, F32 b, F32 c) { return {a.reg * b.reg - c.reg}; }

FLAGATTN_INLINE Mask operator<(F32 a, F32 b) { return {a.reg < b.reg}; }
FLAGATTN_INLINE Mask operator>(F32 a, F32 b) { return {a.reg > b.reg}; }
FLAGATTN_INLINE Mask operator==(F32 a, F32 b) { return {a.reg == b.reg}; }
FLAGATTN_INLINE Mask operator&(Mask a, Mask b) { return {a.lanes & b.lanes}; }
FLAGATTN_INLINE Mask operator|(Mask a, Mask b) { return {a.lanes | b.lanes}; }
FLAGATTN_INLINE bool any(Mask m) { return (m.lanes[0] | m.lanes[1] | m.lanes[2] | m.lanes[3]) != 0; }
FLAGATTN_INLINE bool all(Mask m) { return (m.lanes[0] & m.lanes[1] & m.lanes[2] & m.lanes[3]) != 0; }
FLAGATTN_INLINE F32 select(Mask m, F32 a, F32 b) {
  const Int4 bits = (m.lanes & __builtin_bit_cast(Int4, a.reg)) | (~m.lanes & __builtin_bit_cast(Int4, b.reg));
  return {__builtin_bit_cast(Float4, bits)};
}
// As on x86: the second operand where one is NaN.
FLAGATTN_INLINE F32 max(F32 a, F32 b) { return select(a > b, a, b); }
FLAGATTN_INLINE F32 min(F32 a, F32 b) { return select(a < b, a, b); }
FLAGATTN_INLINE F32 abs(F32 a) {
  return {__builtin_bit_cast(Float4, __builtin_bit_cast(Int4, a.reg) & I32::set1(0x7fffffff).reg)};
}
FLAGATTN_INLINE F32 sqrt(F32 a) {
  for (int i = 0; i < F32::kLanes; ++i) a.reg[i] = __builtin_sqrtf(a.reg[i]);
  return a;
}

// 2^(m - 127) for the float 1.5 x 2^23 + m, m = 0 .. 255: 0 for m = 0, infinity for 255.
FLAGATTN_INLINE F32 power_of_shifted(F32 shifted) {
  typedef uint32_t Bits4 __attribute__((vector_size(16)));
  return {__builtin_bit_cast(Float4, __builtin_bit_cast(Bits4, shifted.reg) << 23)};
}

// Elements 2i and 2i + 1 change places.
FLAGATTN_INLINE F32 swap_neighbours(F32 a) { return {Float4{a.reg[1], a.reg[0], a.reg[3], a.reg[2]}}; }

// Element 4r + i is element i of p, for every r.
FLAGATTN_INLINE F32 repeat_four(const float* p) { return F32::load(p); }
// Element 4r + i is element i of rows[r].
template <typename T>
FLAGATTN_INLINE F32 load_fours(const T* const* rows) {
  return F32::load(rows[0]);
}
// Every element becomes element i of its four.
template <int i>
FLAGATTN_INLINE F32 spread_in_fours(F32 a) {
  return F32::set1(a.reg[i]);
}

// Eight bf16 of each of kLanes / 4 rows.
struct Eights {
  const BFloat16* row;
};
FLAGATTN_INLINE Eights load_eights(const BFloat16* const* rows) { return {rows[0]}; }
// Element 4r + j is element i of row r, for every j.
template <int i>
FLAGATTN_INLINE F32 spread_in_eights(Eights a) {
  return F32::set1(widen(a.row[i]));
}
// Elements 0, 2, 4, ... and 1, 3, 5, ... of 2 kLanes bf16.
FLAGATTN_INLINE void load_pairs(const BFloat16* p, F32& even, F32& odd) {
  for (int i = 0; i < F32::kLanes; ++i) {
    even.reg[i] = widen(p[2 * i]);
    odd.reg[i] = widen(p[2 * i + 1]);
  }
}

// Rows become columns: element j of r[i] moves to element i of r[j].
FLAGATTN_INLINE void transpose(F32 (&r)[4]) {
  for (int i = 0; i < 4; ++i) {
    for (int j = i + 1; j < 4; ++j) {
      const float upper = r[i].reg[j];
      r[i].reg[j] = r[j].reg[i];
      r[j].reg[i] = upper;
    }
  }
}

}  // namespace flagattn::scalar
