// The products of the forward in vectors of fp32: panels of transposed queries, keys as rows, values in strips.
#pragma once

#include <cstdint>
#include <type_traits>

#include "attention/cpu/dropout.h"
#include "attention/cpu/forward_scratch.h"
#include "attention/cpu/outputs.h"
#include "attention/cpu/pack.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/row_list.h"
#include "attention/cpu/scores.h"
#include "attention/cpu/softmax.h"
#include "attention/heuristics.h"
#include "attention/params.h"

namespace flagattn::FLAGATTN_ISA {

class VectorProducts {
 public:
  struct Scope {};
  using Context = ScoreContext;
  using Keys = ScoreOperands;
  using Values = ValueTile;

  template <typename Body>
  static FLAGATTN_INLINE void dispatch(DType dtype, Body&& body) {
    flagattn::dispatch(dtype, body);
  }

  // Operands ----------------------------------------------------------------------------------------------------------

  static constexpr int64_t kWeightFloats = 0;  // weights take the place of the scores
  static constexpr int64_t query_floats(int64_t dim) { return padded_dim(dim) * kPanel; }
  static constexpr int64_t key_floats(int64_t dim) { return padded_dim(dim) * kCpuKeyTile; }
  static constexpr int64_t value_floats(int64_t dim) { return padded_dim(dim) / kStrip * strip_stride(kCpuKeyTile); }

  template <typename T>
  static void pack_queries(const T* const* rows, int64_t dim, float factor, float* dst) {
    pack_columns(rows, dim, factor, dst);
  }
  static const float* queries(const float* packed) { return packed; }

  // Keys that need neither widening nor padding are read where they lie, unless their rows are so far apart that a tile
  // spreads over many more pages and cache sets than it fills.
  template <typename T>
  static bool in_place(const HeadsView& view, int32_t num_keys, int64_t dim) {
    constexpr int64_t kMostStride = 512 / sizeof(float);
    return std::is_same_v<T, float> && view.row_stride <= kMostStride && num_keys % kMR == 0 && dim == padded_dim(dim);
  }
  static Keys keys_in_place(const float* rows, int64_t stride) { return {rows, stride, nullptr}; }
  template <typename Half>
  static Keys keys_in_place(const Half*, int64_t) {
    return {};
  }

  // `stretches(body)` calls body(rows, offset, count) for rows that lie `stride` apart.
  template <typename Stretches>
  static void pack_keys(const Stretches& stretches, int64_t stride, int32_t num_keys, int64_t dim, float* packed) {
    const int64_t ld = padded_dim(dim);
    stretches([&](const auto* rows, int64_t offset, int64_t count) {
      const bool last = offset + count == num_keys;
      const int64_t padded = last ? strip_ceil(num_keys) - offset : count;
      pack_rows(rows, stride, count, padded, dim, packed + offset * ld, ld);
    });
  }
  static Keys packed_keys(const float* packed, int64_t dim) { return {packed, padded_dim(dim), nullptr}; }

  template <typename Stretches>
  static Values values(const Stretches& stretches, int64_t stride, int32_t num_keys, int64_t dim, bool packs,
                       float* strips) {
    constexpr int64_t kStride = strip_stride(kCpuKeyTile);
    if (packs) {
      stretches([&](const auto* rows, int64_t offset, int64_t count) {
        pack_strips(rows, stride, count, dim, strips + offset * kStrip, kStride);
      });
    }
    return {strips, kStride, num_keys, padded_dim(dim)};
  }
  static bool finite(const Values& values) { return all_finite(values); }

  // One panel against one tile ----------------------------------------------------------------------------------------

  explicit VectorProducts(const ForwardScratch& scratch) : scores_(scratch.scores), sums_(scratch.sums) {}

  void score(const Context& context, const PanelMask& mask, const Runs& runs, F32 (&largest)[kNV], RowList&) const {
    for (const Run& run : runs) {
      with_vectors(run.num_vectors, [&]<int NV>() { score_run<NV>(context, mask, run, scores_, largest); });
    }
  }

  void weigh(const PanelStatistics& statistics, const Runs& runs, float factor, const float* dropout,
             F32 (&partial)[2][kNV], RowList&) const {
    for (const Run& run : runs) {
      with_vectors(run.num_vectors, [&]<int NV>() { weigh_run<NV>(statistics, run, factor, scores_, partial); });
    }
    if (dropout == nullptr) return;
    for (const Run& run : runs) drop_weights(run, dropout, scores_);
  }

  void add(const Values& values, const Runs& runs, const F32 (&rescale)[kNV], bool first, float* outputs,
           RowList& ahead) const {
    const Run& run = runs.at[0];
    if (runs.count == 1 && (!first || run.num_vectors == kNV)) {
      if (first) return add_whole_tile<kNV, true>(values, run, scores_, rescale, outputs, ahead);
      return with_vectors(run.num_vectors,
                          [&]<int NV>() { add_whole_tile<NV, false>(values, run, scores_, rescale, outputs, ahead); });
    }
    int64_t steps = 0;
    for (const Run& some : runs) steps += values.head_dim / (some.num_vectors == 1 ? kBlockRows<1> : kMR);
    ahead.share(steps);
    add_runs(values.head_dim, runs, rescale, first, outputs, [&](const Run& some, float* sums) {
      with_vectors(some.num_vectors, [&]<int NV>() { add_run<NV>(values, some, scores_, sums, ahead); });
    });
  }

  void add_not_finite(const Values& values, const Runs& runs, const SeenKeys& seen, const F32 (&rescale)[kNV],
                      bool first, float* outputs) const {
    add_runs(values.head_dim, runs, rescale, first, outputs,
             [&](const Run& run, float* sums) { add_seen_keys(values, seen, run, scores_, sums); });
  }

 private:
  template <typename Add>
  FLAGATTN_INLINE void add_runs(int64_t head_dim, const Runs& runs, const F32 (&rescale)[kNV], bool first,
                                float* outputs, Add&& add) const {
    float* sums = first ? outputs : sums_;
    for (int64_t i = 0; i < head_dim * kPanel; i += F32::kLanes) F32::zero().store(sums + i);
    for (const Run& run : runs) add(run, sums);
    if (!first) join_runs(sums, head_dim, rescale, outputs);
  }

  float* const scores_;
  float* const sums_;
};

}  // namespace flagattn::FLAGATTN_ISA
