// Rows of queries and dO as dK and dV read them: strips of up to kNV vectors of dims, columns one under another.
#pragma once

#include <cstdint>

#include "arch/simd.h"
#include "attention/cpu/backward_scores.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/pack.h"

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

// Calls body(first dim, where its vector begins in row 0, distance between rows) for every vector of a row in strips of
// `capacity` rows.
template <typename Body>
FLAGATTN_INLINE void for_each_vector(int64_t dim, int64_t capacity, Body&& body) {
  const Strips strips((dim + F32::kLanes - 1) / F32::kLanes);
  for (int64_t i = 0; i < strips.count; ++i) {
    const int width = strips.width(i);
    for (int v = 0; v < width; ++v) {
      body((strips.first(i) + v) * F32::kLanes, strips.offset(i, capacity) + v * F32::kLanes, width * F32::kLanes);
    }
  }
}

// Brings rows near while others are packed: rows of one head lie in as many pages, and nothing in the hardware guesses
// the next one.
template <typename T>
inline void fetch_rows(const T* const* rows, int n, int64_t dim) {
  for (int i = 0; i < n; ++i) {
    for (int64_t d = 0; d < dim; d += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(rows[i] + d);
  }
}

// kLanes rows of `dim` elements become columns of columns[d][kPanel] and rows [row, row + kLanes) of strips. In one
// pass: rows may lie so far apart that their lines evict one another from L1. Returns whether all are finite.
template <typename T>
inline bool pack_both_ways(const T* const* rows, int64_t dim, float* columns, float* strips, int64_t row,
                           int64_t capacity) {
  constexpr int kLanes = F32::kLanes;
  F32 differences = F32::zero();
  // Constant indices only, and no choices between loads: the block would go to memory else.
  const auto pack = [&]<bool kWhole>(int64_t d, float* to, int64_t stride) FLAGATTN_INLINE_LAMBDA {
    F32 block[kLanes];
    FLAGATTN_UNROLL for (int i = 0; i < kLanes; ++i) {
      block[i] = kWhole ? F32::load(rows[i] + d) : load_up_to(rows[i] + d, dim - d);
      block[i].store(to + i * stride);
    }
    F32 sum = block[0];  // that of what is finite may overflow: then the careful way is taken for nothing
    FLAGATTN_UNROLL for (int i = 1; i < kLanes; ++i) sum = sum + block[i];
    differences = differences + (sum - sum);
    transpose(block);
    FLAGATTN_UNROLL for (int i = 0; i < kLanes; ++i) {
      if (kWhole || d + i < dim) block[i].store(columns + (d + i) * kPanel);
    }
  };
  for_each_vector(dim, capacity, [&](int64_t d, int64_t offset, int64_t stride) FLAGATTN_INLINE_LAMBDA {
    float* to = strips + offset + row * stride;
    d + kLanes <= dim ? pack.template operator()<true>(d, to, stride) : pack.template operator()<false>(d, to, stride);
  });
  return differences.sum() == 0.0f;
}

// The sums over d of rows[i][d] * columns[d][i], term by term as multiply_keys adds them up.
template <typename T>
inline F32 dot_columns(const T* const* rows, int64_t dim, const float* columns) {
  constexpr int kLanes = F32::kLanes;
  static_assert(kMostTerms % kLanes == 0);
  F32 total = F32::zero();
  for (int64_t first = 0; first < dim; first += kMostTerms) {
    const int64_t end = dim - first < kMostTerms ? dim : first + kMostTerms;
    F32 sum = F32::zero();
    const auto add = [&]<bool kWhole>(int64_t d) FLAGATTN_INLINE_LAMBDA {
      F32 block[kLanes];
      FLAGATTN_UNROLL for (int i = 0; i < kLanes; ++i) {
        block[i] = kWhole ? F32::load(rows[i] + d) : load_up_to(rows[i] + d, end - d);
      }
      transpose(block);
      FLAGATTN_UNROLL for (int i = 0; i < kLanes; ++i) {
        if (kWhole || d + i < end) sum = fma(block[i], F32::load(columns + (d + i) * kPanel), sum);
      }
    };
    int64_t d = first;
    for (; d + kLanes <= end; d += kLanes) add.template operator()<true>(d);
    if (d < end) add.template operator()<false>(d);
    total = first == 0 ? sum : total + sum;
  }
  return total;
}

}  // namespace flagattn::FLAGATTN_ISA
