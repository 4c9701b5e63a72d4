// Attention over caches: few query rows against many keys. A block takes the query rows of a group's heads as the rows
// of one tile and passes the keys of one split by; a second kernel merges the splits in order (decode_merge.cuh).
// Sequences that need no splits are finished here.
#pragma once

#include "attention/cuda/sm80/decode_block.cuh"
#include "attention/cuda/sm80/epilogue.cuh"
#include "attention/cuda/sm80/products.cuh"
#include "attention/cuda/sm80/softmax.cuh"
#include "attention/cuda/sm80/tile_stream.cuh"

namespace flagattn::sm80 {

// Of the thread's r-th column.
template <typename Traits>
FLAGATTN_DEVICE const ColumnPlace& planned_column(int warp, int lane, int r) {
  return ptx::shared_storage<DecodeShared<Traits>>().columns[warp * Traits::kRowsPerWarp + lane / 4 + 8 * r];
}

// Scores of a tile whose first key for this thread is `first_key`.
template <typename Traits>
FLAGATTN_DEVICE void add_alibi(typename Traits::Scores& scores, float unit, int aligned, int first_key, int warp,
                               int lane) {
  FLAGATTN_UNROLL_ALL
  for (int r = 0; r < Traits::kRowsPerThread; ++r) {
    const ColumnPlace column = planned_column<Traits>(warp, lane, r);
    const int distance = column.row + aligned - first_key;  // of the thread's first score
    FLAGATTN_UNROLL_ALL
    for (int j = 0; j < Traits::kBlockN / 8; ++j) {
      FLAGATTN_UNROLL_ALL
      for (int e = 0; e < 2; ++e) {
        float& score = scores[r / 2][j][r % 2 * 2 + e];
        score = std::fma(-column.slope, std::fabs(static_cast<float>(distance - 8 * j - e)), score * unit);
      }
    }
  }
}

template <typename Traits>
FLAGATTN_DEVICE void hide_keys(typename Traits::Scores& scores, const ElementMask& mask, int first_key, int warp,
                               int lane) {
  FLAGATTN_UNROLL_ALL
  for (int r = 0; r < Traits::kRowsPerThread; ++r) {
    const int row = planned_column<Traits>(warp, lane, r).row, last = mask.end_diagonal + row;
    const int begin = mask.first_diagonal + row - first_key;
    const int end = (last < mask.keys ? last : mask.keys) - first_key;
    FLAGATTN_UNROLL_ALL
    for (int j = 0; j < Traits::kBlockN / 8; ++j) {
      FLAGATTN_UNROLL_ALL
      for (int e = 0; e < 2; ++e) {
        if (8 * j + e < begin || 8 * j + e >= end) scores[r / 2][j][r % 2 * 2 + e] = -INFINITY;
      }
    }
  }
}

// The keys that the thread's columns see, as MaskedKeys tells those of rows.
template <typename Traits>
struct PlannedKeys {
  const ElementMask& mask;
  int first_key, warp, lane;

  FLAGATTN_DEVICE bool has(int r, int key) const {
    const int diagonal = first_key + key - planned_column<Traits>(warp, lane, r).row;
    return diagonal >= mask.first_diagonal && diagonal < mask.end_diagonal;
  }
};

// The results of a split, of the warp's columns from `first_column` on.
template <typename Traits>
FLAGATTN_DEVICE void store_split(const typename Traits::Output& output, const RowResults<Traits>& results,
                                 const DecodeArguments& arguments, const DecodePlan<typename Traits::Element>& plan,
                                 int first_column, int lane) {
  FLAGATTN_UNROLL_ALL
  for (int r = 0; r < Traits::kRowsPerThread; ++r) {
    const int column = first_column + lane / 4 + 8 * r;
    if (column >= plan.end_column) continue;
    if (lane % 4 == 0) ptx::store_global(arguments.lses_of(plan.pair, column) + plan.split, results.lse[r]);
    if (results.lse[r] == -INFINITY) continue;
    float* out = arguments.output_of(plan.pair, plan.split, column) + 2 * (lane % 4);
    FLAGATTN_UNROLL_ALL
    for (int j = 0; j < Traits::kHeadDim / 8; ++j) {
      if (8 * j >= arguments.params.head_dim_v) break;
      const float pair[2] = {output[0][j][r % 2 * 2] * results.factor[r],
                             output[0][j][r % 2 * 2 + 1] * results.factor[r]};
      uint64_t bits;
      std::memcpy(&bits, pair, sizeof bits);
      ptx::store_global(reinterpret_cast<uint64_t*>(out + 8 * j), bits);
    }
  }
}

// The output and the LSE of a sequence without splits.
template <typename Traits>
FLAGATTN_DEVICE void store_columns(typename Traits::Output& output, RowResults<Traits>& results,
                                   typename Traits::Element* staging, const AttentionParams& p,
                                   const DecodePlan<typename Traits::Element>& plan, int head_k, int warp, int lane) {
  const int group = static_cast<int>(p.heads_q / p.heads_k);
  const int first_column = plan.first_column + warp * Traits::kRowsPerWarp;
  FLAGATTN_UNROLL_ALL
  for (int r = 0; r < Traits::kRowsPerThread; ++r) {
    const int column = first_column + lane / 4 + 8 * r, head = head_k * group + column % group;
    if (column >= plan.end_column) continue;
    if (p.sinks != nullptr) results.join_sink(r, ptx::load_global(p.sinks + head));
    const int64_t row =
        plan.sequence.batch_q * p.lse.batch_stride + head * p.lse.head_stride + plan.sequence.first_q + column / group;
    if (lane % 4 == 0) ptx::store_global(p.lse.data + row, results.lse[r]);
  }
  const auto out = column_rows<typename Traits::Element>(p.out, plan.sequence, head_k, group, p.head_dim_v);
  store_output(output, results, staging, out, first_column, warp, lane);
}

template <typename Traits>
FLAGATTN_KERNEL(Traits::kThreads, 2)
attention_decode_kernel(FLAGATTN_KERNEL_ARGUMENT DecodeArguments arguments) {
  using Element = typename Traits::Element;
  static_assert(Traits::kBlockM == kDecodeColumns && Traits::kRowTiles == 1 && kDecodeSplit % Traits::kBlockN == 0);
  const AttentionParams& p = arguments.params;
  auto& shared = ptx::shared_storage<DecodeShared<Traits>>();
  const DecodePlan<Element>& plan = shared.plan;
  const int lane = ptx::thread_index() % ptx::kWarpSize;
  const int warp = ptx::thread_index() / ptx::kWarpSize;

  // The block's work.
  const auto work = arguments.schedule.work_of(ptx::block_index());
  if (arguments.first_sequence + work.sequence == p.batch) {
    const int group = static_cast<int>(p.heads_q / p.heads_k), blocks = arguments.schedule.blocks_per_pair();
    const int thread = ptx::block_index() % blocks * Traits::kThreads + ptx::thread_index();
    for (int h = 0; h < group; ++h) {
      clear_unwritten_rows<Element>(p, work.head_k * group + h, thread, blocks * Traits::kThreads);
    }
    return;
  }
  if (ptx::thread_index() == 0) shared.plan = plan_decode<Traits>(arguments, work);
  ptx::sync_block();
  if (plan.first_column == plan.end_column) return;
  if (ptx::thread_index() < Traits::kBlockM) {
    shared.columns[ptx::thread_index()] =
        column_place(p, arguments.first_sequence + work.sequence, work.head_k, plan.first_column, plan.end_column,
                     ptx::thread_index());  // seen behind the first tile's barrier
  }
  const int warp_column = plan.first_column + warp * Traits::kRowsPerWarp;
  const bool is_idle = warp_column >= plan.end_column;  // the warp only copies

  // The parts, near and far, as in forward_kernel.cuh.
  typename Traits::Output output = {};
  OnlineSoftmax<Traits> softmax;
  const int num_parts = p.is_piecewise() ? 2 : 1;
  for (int number = 0; number < num_parts; ++number) {
    const PartPlan& part = plan.parts[number];
    const int first_tile = part.first_tile, end_tile = part.end_tile;
    if (first_tile >= end_tile) continue;

    if (number == 1 && !planted(Fault::kMissingPartBarrier)) ptx::sync_block();  // the near part's readers are done
    const ptx::SharedAddress queries = ptx::shared_address(shared.q);
    start_loading_tile<Traits::kBlockM, Traits::kHeadDim, Traits::kThreads>(queries, PlannedQueries<Traits>{number},
                                                                            plan.first_column);
    TileStream<Traits, PlannedRows<Traits>> stream(shared, {number}, {2}, first_tile, end_tile);
    for (int tile = end_tile - 1; tile >= first_tile; --tile) {
      const int first_key = tile * Traits::kBlockN, thread_key = first_key + 2 * (lane % 4);
      typename Traits::Scores scores;
      const ptx::SharedAddress keys = stream.keys(tile);
      if (!is_idle) {
        multiply_queries_keys<Traits>(scores, queries, keys, warp, lane);
        if (arguments.scale.transforms) transform_scores<Traits>(scores, arguments.scale);
        if (p.alibi.slopes != nullptr) {
          const int aligned = plan.sequence.seqlen_k - plan.sequence.seqlen_q;
          add_alibi<Traits>(scores, arguments.scale.term_unit, aligned, thread_key, warp, lane);
        }
        if (part.is_edge(first_key, Traits::kBlockN)) hide_keys<Traits>(scores, part.mask, thread_key, warp, lane);
        softmax.update(scores, output, arguments.scale.exponent_scale);
      }
      const ptx::SharedAddress values = stream.values(tile);
      if (part.is_edge(first_key, Traits::kBlockN)) {
        set_not_finite_apart<Traits>(output, values, ptx::shared_address(&shared.votes), [&](int lane_now) {
          return PlannedKeys<Traits>{part.mask, first_key, warp, lane_now};
        });
      }
      if (!is_idle) multiply_weights_values<Traits>(output, scores, values, lane);
    }
  }
  if (is_idle) return;

  // Way out.
  softmax.finish();
  RowResults<Traits> results(softmax, arguments.scale.exponent_scale, nullptr, 1.0f);
  if (plan.at_once) {
    store_columns(output, results, shared.q, p, plan, work.head_k, warp, lane);
  } else {
    store_split(output, results, arguments, plan, warp_column, lane);
  }
}

}  // namespace flagattn::sm80
