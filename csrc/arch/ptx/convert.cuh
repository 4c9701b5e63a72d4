// Widening packed pairs of 16-bit numbers; ptx::pack of math.cuh is the way back.
#pragma once

#include <cstring>
#include <type_traits>

#include "arch/dtypes.h"
#include "arch/ptx/copy.cuh"

namespace flagattn::ptx {

struct FloatPair {
  float low, high;
};

// The two numbers of a packed pair as floats, exactly (a shift and a mask for bf16, cvt.f32.f16 for fp16).
template <typename Element>
FLAGATTN_DEVICE FloatPair unpack(uint32_t packed) {
  constexpr bool kIsBFloat16 = std::is_same_v<Element, BFloat16>;
  static_assert(kIsBFloat16 || std::is_same_v<Element, Float16>);
  FloatPair pair;
  if constexpr (kIsBFloat16) {
    const uint32_t low = packed << 16, high = packed & 0xffff0000u;
    std::memcpy(&pair.low, &low, sizeof low);
    std::memcpy(&pair.high, &high, sizeof high);
    return pair;
  }
#if FLAGATTN_ON_GPU
  asm("{ .reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
      : "=f"(pair.low), "=f"(pair.high)
      : "r"(packed));
#else
  _Float16 halves[2];
  std::memcpy(halves, &packed, sizeof packed);
  pair = {static_cast<float>(halves[0]), static_cast<float>(halves[1])};
#endif
  return pair;
}

// Makes the compiler forget what it has derived from a value that is needed again later: 16 packed bytes then stay in
// four registers, not as the eight floats that they were widened to (an empty asm).
FLAGATTN_DEVICE void keep_packed(Bytes16& value) {
#if FLAGATTN_ON_GPU
  asm volatile("" : "+r"(value.words[0]), "+r"(value.words[1]), "+r"(value.words[2]), "+r"(value.words[3]));
#else
  static_cast<void>(value);
#endif
}

}  // namespace flagattn::ptx
