// Operands become fp32 in the order the micro-kernel reads them; the storage type ends here and at the final store.
//
//   rows     dst[i * ld + d]                        keys as they lie, widened
//   strips   dst[(d / 8) * ld + i * 8 + d % 8]      8 dims of every key side by side
//   columns  dst[d * kPanel + column]               query rows in the lanes
#pragma once

#include <cstdint>

#include "arch/simd.h"
#include "attention/cpu/micro_kernel.h"

namespace flagattn::FLAGATTN_ISA {

inline constexpr int kStrip = 8;

// Head dims are padded with zeros to whole strips: they add nothing to a product.
constexpr int64_t padded_dim(int64_t dim) { return (dim + kStrip - 1) / kStrip * kStrip; }

// Distance between two strips of `rows` rows: 64 bytes more than they take, since strips that start at the same offset
// of a 4 KiB page would evict one another from L1.
constexpr int64_t strip_stride(int64_t rows) { return rows * kStrip + 16; }

// The first n elements, zeros behind them; n may be anything.
template <typename T>
FLAGATTN_INLINE F32 load_up_to(const T* p, int64_t n) {
  return n >= F32::kLanes ? F32::load(p) : n <= 0 ? F32::zero() : F32::load_n(p, n);
}

// n rows of `dim` elements, `stride` apart, become padded_dim(dim) long; rows [n, padded) become zero.
template <typename T>
inline void pack_rows(const T* src, int64_t stride, int64_t n, int64_t padded, int64_t dim, float* dst, int64_t ld) {
  const int64_t end = padded_dim(dim);
  for (int64_t i = 0; i < padded; ++i) {
    const T* from = src + i * stride;
    float* row = dst + i * ld;
    const int64_t count = i < n ? dim : 0;
    int64_t d = 0;
    for (; d + F32::kLanes <= count; d += F32::kLanes) F32::load(from + d).store(row + d);
    for (; d < end; d += F32::kLanes) {
      const F32 rest = load_up_to(from + d, count - d);
      if (end - d >= F32::kLanes) {
        rest.store(row + d);
      } else {
        rest.store_n(row + d, end - d);
      }
    }
  }
}

// A few rows at a time, strip by strip: stores run on, and the rows' pages stay in the TLB.
template <typename T>
inline void pack_strips(const T* src, int64_t stride, int64_t n, int64_t dim, float* dst, int64_t ld) {
  constexpr int kLanes = F32::kLanes;
  constexpr int64_t kRows = 16;
  for (int64_t first = 0; first < n; first += kRows) {
    const int64_t end = first + kRows < n ? first + kRows : n;
    float* strip = dst;
    for (int64_t d = 0; d < dim; d += kStrip, strip += ld) {
      for (int64_t i = first; i < end; ++i) {
        const T* from = src + i * stride + d;
        float* to = strip + i * kStrip;
        if constexpr (kLanes > kStrip) {
          F32::load_n(from, dim - d < kStrip ? dim - d : kStrip).store_n(to, kStrip);
        } else if (dim - d >= kStrip) {
          FLAGATTN_UNROLL for (int j = 0; j < kStrip; j += kLanes) F32::load(from + j).store(to + j);
        } else {
          for (int j = 0; j < kStrip; j += kLanes) load_up_to(from + j, dim - d - j).store(to + j);
        }
      }
    }
  }
}

// Blocks of kLanes x kLanes that are whole stay in registers; a number of rows that is not a constant would put them
// into memory. What is cut off at an edge goes through the functions named `part`.

template <typename T>
FLAGATTN_INLINE bool none_is_null(const T* const* rows) {
  bool none = true;
  FLAGATTN_UNROLL for (int i = 0; i < F32::kLanes; ++i) none = none && rows[i] != nullptr;
  return none;
}

// Rows [d, d + n) of kLanes columns, n <= kLanes, of which only elements before `dim` are there.
template <typename T>
FLAGATTN_KERNEL void pack_part(const T* const* rows, int64_t d, int64_t n, int64_t dim, F32 scale, float* dst) {
  F32 block[F32::kLanes];
  for (int i = 0; i < F32::kLanes; ++i) {
    block[i] = rows[i] == nullptr ? F32::zero() : load_up_to(rows[i] + d, dim - d) * scale;
  }
  transpose(block);
  for (int64_t i = 0; i < n; ++i) block[i].store(dst + (d + i) * kPanel);
}

// rows[c] points at the `dim` elements of column c, or is null: that column becomes zero. Every element is multiplied
// by `factor`. Rows [dim, padded_dim(dim)) of dst become zero.
template <typename T>
inline void pack_columns(const T* const* rows, int64_t dim, float factor, float* dst) {
  constexpr int kLanes = F32::kLanes;
  const F32 scale = F32::set1(factor);
  const int64_t end = padded_dim(dim);
  for (int column = 0; column < kPanel; column += kLanes, rows += kLanes, dst += kLanes) {
    int64_t d = 0;
    if (none_is_null(rows)) {
      for (; d + kLanes <= dim; d += kLanes) {
        F32 block[kLanes];
        FLAGATTN_UNROLL for (int i = 0; i < kLanes; ++i) block[i] = F32::load(rows[i] + d) * scale;
        transpose(block);
        FLAGATTN_UNROLL for (int i = 0; i < kLanes; ++i) block[i].store(dst + (d + i) * kPanel);
      }
    }
    for (; d < end; d += kLanes) pack_part(rows, d, end - d < kLanes ? end - d : kLanes, dim, scale, dst);
  }
}

// The way back for n <= kLanes elements from d on.
template <typename T>
FLAGATTN_KERNEL void unpack_part(const float* src, int64_t d, int64_t n, F32 scale, T* const* rows) {
  F32 block[F32::kLanes];
  for (int64_t i = 0; i < F32::kLanes; ++i) {
    block[i] = i < n ? F32::load(src + (d + i) * kPanel) * scale : F32::zero();
  }
  transpose(block);
  for (int i = 0; i < F32::kLanes; ++i) {
    if (rows[i] == nullptr) continue;
    if (n == F32::kLanes) {
      block[i].store(rows[i] + d);
    } else {
      block[i].store_n(rows[i] + d, n);
    }
  }
}

// The way back: row c takes the `dim` elements of column c times factors[c], rounded once to T; null rows are left out.
template <typename T>
inline void unpack_columns(const float* src, int64_t dim, const float* factors, T* const* rows) {
  constexpr int kLanes = F32::kLanes;
  for (int column = 0; column < kPanel; column += kLanes, rows += kLanes, src += kLanes) {
    const F32 scale = F32::load(factors + column);
    int64_t d = 0;
    if (none_is_null(rows)) {
      for (; d + kLanes <= dim; d += kLanes) {
        F32 block[kLanes];
        FLAGATTN_UNROLL for (int i = 0; i < kLanes; ++i) block[i] = F32::load(src + (d + i) * kPanel) * scale;
        transpose(block);
        FLAGATTN_UNROLL for (int i = 0; i < kLanes; ++i) block[i].store(rows[i] + d);
      }
    }
    for (; d < dim; d += kLanes) unpack_part(src, d, dim - d < kLanes ? dim - d : kLanes, scale, rows);
  }
}

}  // namespace flagattn::FLAGATTN_ISA
