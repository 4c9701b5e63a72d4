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

namespace flagattn::FLAGATTN_ISA {

struct ValueTile {
  const float* strips;  // pack.h
  int64_t stride;       // from strip to strip
  int32_t num_keys;
  int64_t head_dim;
};

template <int NV>
FLAGATTN_INLINE void multiply_values(const ValueTile& values, const Run& run, const float* weights, int64_t d,
                                     F32 (&c)[kMR][NV]) {
  // Keys that pad the last strip have no values.
  const int32_t end = run.end < values.num_keys ? run.end : values.num_keys;
  const float* strip = values.strips + d / kStrip * values.stride + d % kStrip;
  multiply_strip(strip + run.begin * kStrip, kStrip, weights + run.begin * kPanel + run.first_vector * F32::kLanes,
                 kPanel, end - run.begin, c);
}

// The tile is a single run: its sum stays in registers until it joins O.
template <int NV>
inline void add_whole_tile(const ValueTile& values, const Run& run, const float* weights, const F32 (&rescale)[kNV],
                           float* outputs) {
  F32 scale[NV];
  FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) scale[v] = rescale[run.first_vector + v];
  for (int64_t d = 0; d < values.head_dim; d += kMR) {
    F32 c[kMR][NV];
    clear(c);
    multiply_values(values, run, weights, d, c);
    float* out = outputs + d * kPanel + run.first_vector * F32::kLanes;
    FLAGATTN_UNROLL for (int r = 0; r < kMR; ++r) {
      FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
        float* at = out + r * kPanel + v * F32::kLanes;
        fma(F32::load(at), scale[v], c[r][v]).store(at);
      }
    }
  }
}

// The tile has several runs: they add up in `sums`, laid out like the outputs and zero before the first one.
template <int NV>
inline void add_run(const ValueTile& values, const Run& run, const float* weights, float* sums) {
  for (int64_t d = 0; d < values.head_dim; d += kMR) {
    F32 c[kMR][NV];
    float* at = sums + d * kPanel + run.first_vector * F32::kLanes;
    load_block(at, kPanel, c);
    multiply_values(values, run, weights, d, c);
    store_block(c, at, kPanel);
  }
}

inline void join_runs(const float* sums, int64_t head_dim, const F32 (&rescale)[kNV], float* outputs) {
  for (int64_t d = 0; d < head_dim; ++d) {
    FLAGATTN_UNROLL for (int v = 0; v < kNV; ++v) {
      float* at = outputs + d * kPanel + v * F32::kLanes;
      fma(F32::load(at), rescale[v], F32::load(sums + d * kPanel + v * F32::kLanes)).store(at);
    }
  }
}

}  // namespace flagattn::FLAGATTN_ISA
