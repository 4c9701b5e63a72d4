// Rows of queries and dO as dK and dV read them: strips of up to kNV vectors of dims, columns one under another.
#pragma once

#include <cstdint>

#include "arch/simd.h"
#include "attention/cpu/micro_kernel.h"

namespace flagattn::FLAGATTN_ISA {

template <int NV>
struct Width {};

// body(Width<n>{}) for n = 1 .. kNV.
template <typename Body>
FLAGATTN_INLINE void with_width(int n, Body&& body) {
  static_assert(kNV == 3);
  switch (n) {
    case 1:
      return body(Width<1>{});
    case 2:
      return body(Width<2>{});
    default:
      return body(Width<3>{});
  }
}

// n vectors in as few strips of at most kNV as there can be, of nearly equal width: one narrow strip at the end would
// leave the multipliers waiting for their own results.
struct Strips {
  int64_t count, base, wider;

  explicit constexpr Strips(int64_t n)
      : count((n + kNV - 1) / kNV), base(count ? n / count : 0), wider(count ? n % count : 0) {}
  constexpr int width(int64_t i) const { return static_cast<int>(base + (i < wider ? 1 : 0)); }
  constexpr int64_t first(int64_t i) const { return i * base + (i < wider ? i : wider); }
  // Where strip i begins if strips hold `rows` rows: 64 bytes further than packed tightly, against aliasing.
  constexpr int64_t offset(int64_t i, int64_t rows) const { return first(i) * F32::kLanes * rows + i * 16; }
};

// rows[c] points at the `dim` elements of a row, or is null: zeros. Writes them as rows [first, first + n) of strips
// that hold `capacity` rows.
template <typename T>
inline void pack_dim_strips(const T* const* rows, int64_t n, int64_t dim, float* dst, int64_t first, int64_t capacity) {
  constexpr int kLanes = F32::kLanes;
  const Strips strips((dim + kLanes - 1) / kLanes);
  for (int64_t i = 0; i < strips.count; ++i) {
    const int width = strips.width(i);
    const int64_t d = strips.first(i) * kLanes;
    float* to = dst + strips.offset(i, capacity) + first * width * kLanes;
    for (int64_t c = 0; c < n; ++c) {
      for (int v = 0; v < width; ++v, to += kLanes) {
        const int64_t rest = dim - d - v * kLanes;
        const T* from = rows[c] + d + v * kLanes;
        (rows[c] == nullptr ? F32::zero() : rest >= kLanes ? F32::load(from) : F32::load_n(from, rest)).store(to);
      }
    }
  }
}

}  // namespace flagattn::FLAGATTN_ISA
