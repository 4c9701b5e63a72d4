// The online softmax of one panel, its rows in the lanes: no sum or maximum crosses a vector.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "arch/simd.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/score_terms.h"

namespace flagattn::FLAGATTN_ISA {

// Below every score that is not -inf, and finite itself, so that the difference from -inf is -inf and from itself 0.
inline constexpr float kNoMaximum = -1e38f;

// Running statistics: weights are 2^(factor * (score - maximum)), so that the largest score of all weighs exactly 1.
struct PanelStatistics {
  alignas(64) float maximum[kPanel];
  alignas(64) float sum[kPanel];
  alignas(64) float rest[kPanel];  // what the sum lost to rounding where chunks joined
  bool fresh;                      // until a tile is taken in: nothing has been written to the outputs
};

FLAGATTN_INLINE void reset(PanelStatistics& statistics) {
  for (int column = 0; column < kPanel; ++column) {
    statistics.maximum[column] = kNoMaximum;
    statistics.sum[column] = 0.0f;
    statistics.rest[column] = 0.0f;
  }
  statistics.fresh = true;
}

// Takes in the largest scores of a tile; rescale[v] is what earlier weights must be multiplied by.
FLAGATTN_INLINE void raise_maximum(PanelStatistics& statistics, const F32 (&largest)[kNV], F32 factor,
                                   F32 (&rescale)[kNV]) {
  FLAGATTN_UNROLL for (int v = 0; v < kNV; ++v) {
    const F32 before = F32::load(statistics.maximum + first_column(v));
    const F32 after = max(before, largest[v]);
    rescale[v] = exp2((before - after) * factor);
    after.store(statistics.maximum + first_column(v));
    (F32::load(statistics.sum + first_column(v)) * rescale[v]).store(statistics.sum + first_column(v));
  }
}

// Scores of a run become weights. partial[parity][v] adds them up, even and odd keys apart: a sum's grouping must not
// depend on how the tile was cut into runs.
template <int NV>
FLAGATTN_KERNEL void weigh_run(const PanelStatistics& statistics, const Run& run, float factor, float* scores,
                               F32 (&partial)[2][kNV]) {
  constexpr int kKeys = 4;
  static_assert(kMR % kKeys == 0);
  const F32 minus_factor = F32::set1(-factor), farthest = farthest_below(factor);
  for (int v = run.first_vector; v < run.first_vector + NV; ++v) {
    const F32 maximum = F32::load(statistics.maximum + first_column(v));
    F32 even = partial[0][v], odd = partial[1][v];
    for (int32_t key = run.begin; key < run.end; key += kKeys) {
      float* at = scores + key * kPanel + first_column(v);
      F32 weights[kKeys];
      FLAGATTN_UNROLL for (int i = 0; i < kKeys; ++i) weights[i] = maximum - F32::load(at + i * kPanel);
      weights_of_all(weights, minus_factor, farthest);
      FLAGATTN_UNROLL for (int i = 0; i < kKeys; ++i) weights[i].store(at + i * kPanel);
      FLAGATTN_UNROLL for (int i = 0; i < kKeys; i += 2) {
        even = even + weights[i];
        odd = odd + weights[i + 1];
      }
    }
    partial[0][v] = even;
    partial[1][v] = odd;
  }
}

FLAGATTN_INLINE void add_to_sum(PanelStatistics& statistics, const F32 (&partial)[2][kNV]) {
  FLAGATTN_UNROLL for (int v = 0; v < kNV; ++v) {
    float* sum = statistics.sum + first_column(v);
    (F32::load(sum) + (partial[0][v] + partial[1][v])).store(sum);
  }
}

// Chunks -----------------------------------------------------------------------------------------------------------
//
// A row's softmax starts anew in every key chunk. Results join in the order of the chunks, whoever computed them; a
// chunk that a row does not see leaves its result as it was.

// What both sides' sums and outputs are multiplied by.
struct ChunkFactors {
  F32 before[kNV], chunk[kNV];
};

// Takes a chunk's statistics in. Sums of a thousand chunks would lose ten bits in one chain of fp32 additions, which
// round alike where chunks are alike: what is lost is kept.
FLAGATTN_INLINE ChunkFactors merge_statistics(PanelStatistics& statistics, const PanelStatistics& chunk, F32 factor) {
  ChunkFactors factors;
  FLAGATTN_UNROLL for (int v = 0; v < kNV; ++v) {
    const int column = first_column(v);
    const F32 before = F32::load(statistics.maximum + column), other = F32::load(chunk.maximum + column);
    const F32 after = max(before, other);
    factors.before[v] = exp2((before - after) * factor);
    factors.chunk[v] = exp2((other - after) * factor);
    after.store(statistics.maximum + column);
    const F32 earlier = F32::load(statistics.sum + column) * factors.before[v];
    const F32 added = F32::load(chunk.sum + column) * factors.chunk[v];
    const F32 sum = earlier + added;
    const F32 share = sum - earlier;  // of `added` in the rounded sum
    const F32 lost = (earlier - (sum - share)) + (added - share);
    fma(F32::load(statistics.rest + column), factors.before[v], lost).store(statistics.rest + column);
    sum.store(statistics.sum + column);
  }
  return factors;
}

// Results ----------------------------------------------------------------------------------------------------------

// What a row's outputs are multiplied by, 0 where it saw no key; and the natural logarithm of its sum of exponentials.
struct RowResult {
  float normaliser;
  float lse;
};

inline double sum_of(const PanelStatistics& statistics, int column) {
  return static_cast<double>(statistics.sum[column]) + statistics.rest[column];
}

// `factor` makes an exponent to base e of a score. In double, since the parts of a large LSE would each be rounded at
// its size.
FLAGATTN_INLINE RowResult row_result(const PanelStatistics& statistics, int column, double factor) {
  const double sum = sum_of(statistics, column);
  if (sum == 0.0) return {0.0f, kHidden};
  return {1.0f / static_cast<float>(sum), static_cast<float>(statistics.maximum[column] * factor + ::log(sum))};
}

// A sink, one more exponent, joins the sum: relative to whichever is larger, so that nothing overflows.
FLAGATTN_INLINE RowResult row_result_with_sink(const PanelStatistics& statistics, int column, double factor,
                                               float sink) {
  const double sum = sum_of(statistics, column), maximum = statistics.maximum[column] * factor;
  if (sum == 0.0) return {0.0f, sink};
  if (sink > maximum) {
    const double weight = ::exp(maximum - sink), total = 1.0 + weight * sum;
    return {static_cast<float>(weight / total), static_cast<float>(sink + ::log(total))};
  }
  const double total = sum + ::exp(sink - maximum);
  return {static_cast<float>(1.0 / total), static_cast<float>(maximum + ::log(total))};
}

}  // namespace flagattn::FLAGATTN_ISA
