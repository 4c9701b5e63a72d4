// Loops over contiguous elements, a vector at a time with a shorter one at the end, for the row-wise ops.
#pragma once

#include <cstdint>

#include "arch/simd.h"

namespace flagattn::FLAGATTN_ISA {

constexpr int64_t kLanes = F32::kLanes;

// Calls body(i, n, u) for i = 0, kLanes, ...: n is kLanes but for a last, shorter vector, and u counts 0 .. kUnroll - 1
// within an unrolled step, so that a sum can be kept in kUnroll independent parts.
template <int kUnroll = 1, typename Body>
FLAGATTN_INLINE void for_each_vector(int64_t count, Body&& body) {
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= count; i += kUnroll * kLanes) {
    FLAGATTN_UNROLL for (int u = 0; u < kUnroll; ++u) body(i + u * kLanes, kLanes, u);
  }
  if constexpr (kUnroll > 1) {
    for (; i + kLanes <= count; i += kLanes) body(i, kLanes, 0);
  }
  if (i < count) body(i, count - i, 0);
}

// The first n elements at p, and 0 behind them.
template <typename T>
FLAGATTN_INLINE F32 load_up_to(const T* p, int64_t n) {
  return n == kLanes ? F32::load(p) : F32::load_n(p, n);
}

template <typename T>
FLAGATTN_INLINE void store_up_to(F32 value, T* p, int64_t n) {
  if (n == kLanes) {
    value.store(p);
  } else {
    value.store_n(p, n);
  }
}

}  // namespace flagattn::FLAGATTN_ISA
