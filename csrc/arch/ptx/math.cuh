// Approximate functions of the special-function unit, and packing fp32 pairs into 16-bit pairs.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "arch/dtypes.h"
#include "arch/ptx/language.cuh"

namespace flagattn::ptx {

#if !FLAGATTN_ON_GPU
// As instructions with .ftz take and give numbers: denormals are 0, of their sign.
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
#endif

// 2^x within 2 ulp; results below 2^-126 become 0 (ex2.approx.ftz).
FLAGATTN_DEVICE float exp2_approx(float x) {
#if FLAGATTN_ON_GPU
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  if (host_exec::is_recording) host_exec::special_function();
  return flushed(std::exp2(x));
#endif
}

// 1 / x within 1 ulp; denormals count as 0 (rcp.approx.ftz).
FLAGATTN_DEVICE float reciprocal_approx(float x) {
#if FLAGATTN_ON_GPU
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  if (host_exec::is_recording) host_exec::special_function();
  return flushed(1.0f / flushed(x));
#endif
}

// log2(x) within 1 ulp away from x = 1; denormals count as 0 (lg2.approx.ftz).
FLAGATTN_DEVICE float log2_approx(float x) {
#if FLAGATTN_ON_GPU
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  if (host_exec::is_recording) host_exec::special_function();
  return std::log2(flushed(x));
#endif
}

// The same number as a float (cvt.f32.f16; of bfloat16 its bits are the upper half).
FLAGATTN_DEVICE float widen(float value) { return value; }
FLAGATTN_DEVICE float widen(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
FLAGATTN_DEVICE float widen(Float16 value) {
#if FLAGATTN_ON_GPU
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  _Float16 half;
  std::memcpy(&half, &value.bits, sizeof half);
  return static_cast<float>(half);
#endif
}

// Rounds two floats to the nearest Element and packs them, `low` into the low half (cvt.rn.bf16x2.f32,
// cvt.rn.f16x2.f32).
template <typename Element>
FLAGATTN_DEVICE uint32_t pack(float low, float high) {
  constexpr bool kIsBFloat16 = std::is_same_v<Element, BFloat16>;
  static_assert(kIsBFloat16 || std::is_same_v<Element, Float16>);
#if FLAGATTN_ON_GPU
  uint32_t packed;
  if constexpr (kIsBFloat16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  }
  return packed;
#else
  const auto round = [](float value) -> uint32_t {
    if constexpr (kIsBFloat16) {
      if (std::isnan(value)) return 0x7fff;
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    } else {
      const _Float16 half = static_cast<_Float16>(value);
      uint16_t bits;
      std::memcpy(&bits, &half, sizeof bits);
      return bits;
    }
  };
  return round(low) | round(high) << 16;
#endif
}

}  // namespace flagattn::ptx
