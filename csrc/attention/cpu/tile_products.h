// The products of the forward in tile registers, for bf16 at the amx level.
#pragma once

#include <cstdint>

#include "arch/simd/tiles.h"
#include "attention/cpu/forward_scratch.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/row_list.h"
#include "attention/cpu/softmax.h"
#include "attention/cpu/tile_outputs.h"
#include "attention/cpu/tile_pack.h"
#include "attention/cpu/tile_scores.h"
#include "attention/cpu/tile_softmax.h"
#include "attention/heuristics.h"
#include "attention/params.h"

namespace flagattn::FLAGATTN_ISA {

class TileProducts {
 public:
  using Scope = TileScope;
  using Context = TileContext;
  using Keys = TileOperands;
  using Values = TileValues;

  template <typename Body>
  static FLAGATTN_INLINE void dispatch(DType, Body&& body) {
    body(BFloat16{});
  }

  // Operands ----------------------------------------------------------------------------------------------------------

  static constexpr int64_t floats(int64_t halves) { return halves / 2; }
  static constexpr int64_t kWeightFloats = kCpuKeyTile * kPanel / 2;
  static constexpr int64_t query_floats(int64_t dim) { return floats(depth_steps(dim) * kTileDepth * kPanel); }
  static constexpr int64_t key_floats(int64_t dim) { return floats(depth_steps(dim) * kTileDepth * kCpuKeyTile); }
  static constexpr int64_t value_floats(int64_t dim) { return floats(row_blocks(dim) * kTileRows * kCpuKeyTile); }

  static void pack_queries(const BFloat16* const* rows, int64_t dim, float factor, float* dst) {
    pack_query_pairs(rows, dim, factor, halves(dst));
  }
  static const BFloat16* queries(float* packed) { return halves(packed); }

  // Whole tiles are read where they lie, unless their rows are far apart or a row is parted by a cache line's end.
  template <typename T>
  static bool in_place(const HeadsView& view, int32_t num_keys, int64_t dim) {
    constexpr int64_t kMostStride = 512 / sizeof(T);
    return view.row_stride <= kMostStride && view.row_stride % kTileDepth == 0 && num_keys % kTileRows == 0 &&
           dim % kTileDepth == 0 && reinterpret_cast<uintptr_t>(view.data) % 64 == 0 &&
           view.head_stride % kTileDepth == 0 && view.batch_stride % kTileDepth == 0;
  }
  static Keys keys_in_place(const BFloat16* rows, int64_t stride) {
    return {rows, stride, kTileDepth, kTileRows * stride, nullptr};
  }

  template <typename Stretches>
  static void pack_keys(const Stretches& stretches, int64_t stride, int32_t num_keys, int64_t dim, float* packed) {
    stretches([&](const BFloat16* rows, int64_t offset, int64_t count) {
      for (int64_t i = 0; i < count; ++i) pack_key_row(rows + i * stride, offset + i, dim, halves(packed));
    });
    for (int64_t key = num_keys; key % kTileRows != 0; ++key) pack_key_row(nullptr, key, dim, halves(packed));
  }
  static Keys packed_keys(float* packed, int64_t dim) {
    return {halves(packed), kTileDepth, kTileHalves, depth_steps(dim) * kTileHalves, nullptr};
  }

  template <typename Stretches>
  static Values values(const Stretches& stretches, int64_t stride, int32_t num_keys, int64_t dim, bool packs,
                       float* tiles) {
    Values values{halves(tiles), num_keys, dim, {}};
    stretches([&](const BFloat16* rows, int64_t offset, int64_t count) {
      for (int64_t i = 0; i < count; ++i) values.rows[offset + i] = rows + i * stride;
    });
    for (int64_t step = 0; packs && step < depth_steps(num_keys); ++step) {
      pack_value_step(values.rows + step * kTileDepth, dim, values.tiles + step * kTileHalves);
    }
    return values;
  }
  static bool finite(const Values& values) { return make_finite(values); }

  // One panel against one tile ----------------------------------------------------------------------------------------

  // Rows are asked for between blocks of products and while weights are computed; those of a whole tile at the latest
  // with its outputs.
  static constexpr int64_t kShares = kCpuKeyTile / kTileRows + kNV * kTileSteps;

  explicit TileProducts(const ForwardScratch& scratch)
      : scores_(scratch.scores), sums_(scratch.sums), weights_(halves(scratch.weights)) {}

  void score(const Context& context, const PanelMask& mask, const Runs& runs, F32 (&largest)[kNV],
             RowList& ahead) const {
    ahead.share(kShares);
    multiply_tile(context, mask, runs, scores_, ahead);
    for (const Run& run : runs) {
      with_vectors(run.num_vectors, [&]<int NV>() { finish_scores<NV>(context, mask, run, scores_, largest); });
    }
  }

  void weigh(const PanelStatistics& statistics, const Runs& runs, float factor, const float* dropout,
             F32 (&partial)[2][kNV], RowList& ahead) const {
    if (!fills_steps(runs)) clear_weights(share_of(runs));
    for (const Run& run : runs) {
      with_vectors(run.num_vectors, [&]<int NV>() {
        if (dropout == nullptr) {
          weigh_in_pairs<NV, false>(statistics, run, factor, scores_, dropout, partial, weights_, ahead);
        } else {
          weigh_in_pairs<NV, true>(statistics, run, factor, scores_, dropout, partial, weights_, ahead);
        }
      });
    }
  }

  void add(const Values& values, const Runs& runs, const F32 (&rescale)[kNV], bool first, float* outputs,
           RowList& ahead) const {
    const TileShare share = share_of(runs);
    if (first && share.num_vectors == kNV) {
      return add_in_tiles<kNV, true>(values, share, weights_, rescale, outputs, ahead);
    }
    if (first) clear_rows(values.head_dim, outputs);
    with_vectors(share.num_vectors,
                 [&]<int NV>() { add_in_tiles<NV, false>(values, share, weights_, rescale, outputs, ahead); });
  }

  void add_not_finite(const Values& values, const Runs& runs, const SeenKeys& seen, const F32 (&rescale)[kNV],
                      bool first, float* outputs) const {
    RowList none;
    float* sums = first ? outputs : sums_;
    clear_rows(values.head_dim, sums);
    add(values, runs, rescale, /*first=*/true, sums, none);
    add_what_is_not_finite(values, share_of(runs), seen, weights_, sums);
    if (!first) join_runs(sums, padded_dim(values.head_dim), rescale, outputs);
  }

 private:
  static BFloat16* halves(float* place) { return reinterpret_cast<BFloat16*>(place); }
  static void clear_rows(int64_t head_dim, float* rows) {
    for (int64_t i = 0; i < padded_dim(head_dim) * kPanel; i += F32::kLanes) F32::zero().store(rows + i);
  }

  static bool fills_steps(const Runs& runs) {
    return runs.count == 1 && runs.at[0].begin % kTileDepth == 0 && runs.at[0].end % kTileDepth == 0;
  }
  void clear_weights(const TileShare& share) const {
    BFloat16* end = weights_ + share.end * kTileRows * 2 * kPanel;
    for (BFloat16* at = weights_ + share.begin * kTileRows * 2 * kPanel; at < end; at += kTileDepth) {
      store_as_pairs(F32::zero(), at);
    }
  }

  float* const scores_;
  float* const sums_;
  BFloat16* const weights_;
};

}  // namespace flagattn::FLAGATTN_ISA
