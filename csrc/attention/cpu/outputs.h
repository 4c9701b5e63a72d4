// O^T[d][column] = rescale * O^T + sum over the keys of a tile of V[key][d] * P^T[key][column].
//
// The tile's sum starts from zero, key by key, and joins O once: an error grows with the keys of a tile plus the number
// of tiles, not with the number of keys, and the grouping is the same however the tile was cut into runs.
#pragma once

#include <cstdint>

#include "arch/simd.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/pack.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/row_list.h"
#include "attention/cpu/score_terms.h"
#include "attention/cpu/softmax.h"

namespace flagattn::FLAGATTN_ISA {

struct ValueTile {
  const float* strips;  // pack.h
  int64_t stride;       // from strip to strip
  int32_t num_keys;
  int64_t head_dim;
};

// Some rows of O^T: out = scale * out + sum over the keys; without what was there where it is the first tile.
template <int NV, bool kFirst>
FLAGATTN_KERNEL void add_scaled(const float* strip, const float* weights, int64_t num_keys, const F32* rescale,
                                float* out) {
  F32 c[kBlockRows<NV>][NV];
  clear(c);
  multiply_strip(strip, kStrip, weights, kPanel, num_keys, c);
  if constexpr (kFirst) {
    store_block(c, out, kPanel);
    return;
  }
  FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
    const F32 scale = rescale[v];
    FLAGATTN_UNROLL for (int r = 0; r < kBlockRows<NV>; ++r) {
      float* at = out + r * kPanel + v * F32::kLanes;
      fma(F32::load(at), scale, c[r][v]).store(at);
    }
  }
}

// out = out + the keys, one after another.
template <int NV>
FLAGATTN_KERNEL void add_further(const float* strip, const float* weights, int64_t num_keys, float* out) {
  F32 c[kBlockRows<NV>][NV];
  load_block(out, kPanel, c);
  multiply_strip(strip, kStrip, weights, kPanel, num_keys, c);
  store_block(c, out, kPanel);
}

// Calls body(strip, weights, num_keys, offset) for every block of rows of O^T that the run adds to.
template <int NV, typename Body>
FLAGATTN_INLINE void for_each_block(const ValueTile& values, const Run& run, const float* weights, Body&& body) {
  static_assert(kStrip % kBlockRows<NV> == 0);
  // Keys that pad the last strip have no values.
  const int32_t end = run.end < values.num_keys ? run.end : values.num_keys;
  const int64_t column = run.first_vector * F32::kLanes;
  for (int64_t d = 0; d < values.head_dim; d += kBlockRows<NV>) {
    body(values.strips + d / kStrip * values.stride + d % kStrip + run.begin * kStrip,
         weights + run.begin * kPanel + column, end - run.begin, d * kPanel + column);
  }
}

// The tile is a single run: its sum stays in registers until it joins O. Rows of `ahead` are asked for in between.
template <int NV, bool kFirst>
inline void add_whole_tile(const ValueTile& values, const Run& run, const float* weights, const F32 (&rescale)[kNV],
                           float* outputs, RowList& ahead) {
  ahead.share(values.head_dim / kBlockRows<NV>);
  for_each_block<NV>(values, run, weights,
                     [&](const float* strip, const float* from, int64_t num_keys, int64_t offset) {
                       add_scaled<NV, kFirst>(strip, from, num_keys, rescale + run.first_vector, outputs + offset);
                       ahead.step();
                     });
}

// The tile has several runs: they add up in `sums`, laid out like the outputs and zero before the first one.
template <int NV>
inline void add_run(const ValueTile& values, const Run& run, const float* weights, float* sums, RowList& ahead) {
  for_each_block<NV>(values, run, weights,
                     [&](const float* strip, const float* from, int64_t num_keys, int64_t offset) {
                       add_further<NV>(strip, from, num_keys, sums + offset);
                       ahead.step();
                     });
}

// Which keys of a tile a column takes in: `terms` may be null, as may be the factors of dropout, as what is dropped is
// left out too.
struct SeenKeys {
  const PanelMask& mask;
  int32_t first_key;
  const float* terms;
  const float* dropout;

  // By vector v.
  FLAGATTN_INLINE Mask of(int32_t key, int v) const {
    const int column = first_column(v);
    const I32 number = I32::set1(first_key + key), next = I32::set1(first_key + key + 1);
    Mask seen = (I32::load(mask.begin + column) < next) & (number < I32::load(mask.end + column));
    if (terms != nullptr) seen = seen & (F32::load(terms + key * kPanel + column) > F32::set1(kLeastTerm));
    if (dropout != nullptr) seen = seen & (F32::load(dropout + key * kPanel + column) > F32::zero());
    return seen;
  }
};

// Values that are not finite: weight 0 times NaN is NaN, so that keys a column does not see are left out one by one.
inline void add_seen_keys(const ValueTile& values, const SeenKeys& keys, const Run& run, const float* weights,
                          float* sums) {
  const int32_t end = run.end < values.num_keys ? run.end : values.num_keys;
  for (int32_t key = run.begin; key < end; ++key) {
    for (int v = run.first_vector; v < run.first_vector + run.num_vectors; ++v) {
      const int column = first_column(v);
      const Mask seen = keys.of(key, v);
      const F32 weight = F32::load(weights + key * kPanel + column);
      for (int64_t d = 0; d < values.head_dim; ++d) {
        float* at = sums + d * kPanel + column;
        const F32 value = F32::set1(values.strips[d / kStrip * values.stride + key * kStrip + d % kStrip]);
        select(seen, fma(value, weight, F32::load(at)), F32::load(at)).store(at);
      }
    }
  }
}

inline bool all_finite(const ValueTile& values) {
  F32 differences = F32::zero();
  for (int64_t d = 0; d < values.head_dim; d += kStrip) {
    const float* strip = values.strips + d / kStrip * values.stride;
    const int64_t count = values.num_keys * kStrip;
    int64_t i = 0;
    for (; i + F32::kLanes <= count; i += F32::kLanes) {
      const F32 x = F32::load(strip + i);
      differences = differences + (x - x);
    }
    if (i < count) {
      const F32 x = F32::load_n(strip + i, count - i);
      differences = differences + (x - x);
    }
  }
  return differences.sum() == 0.0f;
}

inline void join_runs(const float* sums, int64_t head_dim, const F32 (&rescale)[kNV], float* outputs) {
  for (int64_t d = 0; d < head_dim; ++d) {
    FLAGATTN_UNROLL for (int v = 0; v < kNV; ++v) {
      float* at = outputs + d * kPanel + v * F32::kLanes;
      fma(F32::load(at), rescale[v], F32::load(sums + d * kPanel + v * F32::kLanes)).store(at);
    }
  }
}

// A chunk's outputs join those of the chunks before it.
inline void merge_outputs(const float* chunk, int64_t head_dim, const ChunkFactors& factors, float* outputs) {
  for (int64_t d = 0; d < head_dim; ++d) {
    FLAGATTN_UNROLL for (int v = 0; v < kNV; ++v) {
      const int64_t at = d * kPanel + v * F32::kLanes;
      fma(F32::load(outputs + at), factors.before[v], F32::load(chunk + at) * factors.chunk[v]).store(outputs + at);
    }
  }
}

}  // namespace flagattn::FLAGATTN_ISA
