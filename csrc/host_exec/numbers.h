// The number formats of matrix operands.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "arch/ptx/host_twins.h"

namespace flagattn::host_exec {

constexpr int bytes_of(Numbers numbers) {
  return numbers == Numbers::kBFloat16 || numbers == Numbers::kFloat16 ? 2 : 1;
}

inline float widen_bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline float widen_float16(uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, sizeof half);
  return static_cast<float>(half);
}

// 4 bits of exponent, bias 7; no infinity, NaN where all bits but the sign are set.
inline float widen_e4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 15, fraction = bits & 7;
  const float size = exponent == 0                     ? std::ldexp(static_cast<float>(fraction), -9)
                     : exponent == 15 && fraction == 7 ? NAN
                                                       : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
  return bits >> 7 != 0 ? -size : size;
}

// Element `index` at `data`.
inline float widen(const void* data, int index, Numbers numbers) {
  const auto* bytes = static_cast<const uint8_t*>(data) + index * bytes_of(numbers);
  uint16_t pair = bytes[0];
  if (bytes_of(numbers) == 2) std::memcpy(&pair, bytes, sizeof pair);
  switch (numbers) {
    case Numbers::kBFloat16:
      return widen_bfloat16(pair);
    case Numbers::kFloat16:
      return widen_float16(pair);
    case Numbers::kFloat8E4M3:
      return widen_e4m3(bytes[0]);
    case Numbers::kFloat8E5M2:  // the upper half of a Float16
      return widen_float16(static_cast<uint16_t>(pair << 8));
    case Numbers::kInt8:
      return static_cast<float>(static_cast<int8_t>(bytes[0]));
    case Numbers::kUInt8:
      return static_cast<float>(bytes[0]);
  }
  return NAN;
}

}  // namespace flagattn::host_exec
