// Attention forward: one block takes one tile of query rows of one head and passes its keys and values by.
#pragma once

#include "attention/cuda/sm80/dropout.cuh"
#include "attention/cuda/sm80/epilogue.cuh"
#include "attention/cuda/sm80/not_finite.cuh"
#include "attention/cuda/sm80/part_plan.cuh"
#include "attention/cuda/sm80/products.cuh"
#include "attention/cuda/sm80/score_terms.cuh"
#include "attention/cuda/sm80/sequence_rows.cuh"
#include "attention/cuda/sm80/softmax.cuh"
#include "attention/cuda/sm80/tile_stream.cuh"

namespace flagattn::sm80 {

struct ForwardArguments {
  AttentionParams params;
  ForwardSchedule schedule;
  ScoreScale scale;
};

// What a block computes once and rarely reads waits in shared memory: the main loop needs the registers. Keys come in
// one part, or in two: near ones against (q, k), then far ones against (q2, k2).
struct BlockPlan {
  ForwardSchedule::Work work;
  SequenceRows q_rows;
  SequenceRows k_rows;
  int first_row;
  PartPlan parts[2];
};

template <typename Traits>
struct ForwardShared : Traits::SharedStorage {
  BlockPlan plan;
  WarpVotes<Traits::kThreads / ptx::kWarpSize> votes;
};

template <typename Traits>
FLAGATTN_DEVICE BlockPlan plan_block(const AttentionParams& p, const ForwardSchedule::Work& work) {
  BlockPlan plan;
  plan.work = work;
  plan.q_rows = sequence_rows(p.cu_seqlens_q, work.sequence, p.seqlen_q, p.total_q);
  plan.k_rows = sequence_rows(p.cu_seqlens_k, work.sequence, p.seqlen_k, p.total_k);
  plan.first_row = work.query_tile * Traits::kBlockM;
  const MaskShape mask{plan.q_rows.length, plan.k_rows.length, p.mask};
  const KeyRange all{0, plan.k_rows.length};
  const int end_row = plan.first_row + Traits::kBlockM;
  const int last_row = (end_row < plan.q_rows.length ? end_row : plan.q_rows.length) - 1;
  const KeyPart first = p.is_piecewise() ? KeyPart::kNear : KeyPart::kAll;
  plan.parts[0] = plan_part<Traits>({mask, first, p.dist_threshold}, plan.first_row, last_row, all);
  plan.parts[1] = plan_part<Traits>({mask, KeyPart::kFar, p.dist_threshold}, plan.first_row, last_row, all);
  return plan;
}

template <typename Traits>
FLAGATTN_KERNEL(Traits::kThreads, 2)
attention_forward_kernel(FLAGATTN_KERNEL_ARGUMENT ForwardArguments arguments) {
  using Element = typename Traits::Element;
  const AttentionParams& p = arguments.params;
  auto& shared = ptx::shared_storage<ForwardShared<Traits>>();
  const BlockPlan& plan = shared.plan;
  const int lane = ptx::thread_index() % ptx::kWarpSize;
  const int warp = ptx::thread_index() / ptx::kWarpSize;

  // The block's work. Packed sequences may be shorter than the grid was made for.
  const auto work = arguments.schedule.work_of(ptx::block_index());
  const bool packed = p.is_packed();
  if (work.sequence == p.batch) {
    return clear_unwritten_rows<Element>(p, work.head, work.query_tile * Traits::kThreads + ptx::thread_index(),
                                         arguments.schedule.query_tiles * Traits::kThreads);
  }
  if (ptx::thread_index() == 0) shared.plan = plan_block<Traits>(p, work);
  ptx::sync_block();
  if (plan.first_row >= plan.q_rows.length) return;

  // What joins the scores.
  const ScoreTerms<Traits> terms(p, work.sequence, work.head, arguments.scale.term_unit);
  const Dropout<Traits> dropout(p, work.sequence, work.head);

  // The parts, one after the other; tiles on the border between them pass twice.
  typename Traits::Output output = {};
  OnlineSoftmax<Traits> softmax;
  const int num_parts = p.is_piecewise() ? 2 : 1;
  for (int number = 0; number < num_parts; ++number) {
    const bool is_far = number == 1;
    const PartPlan& part = plan.parts[number];
    const int first_tile = part.first_tile, end_tile = part.end_tile;
    if (first_tile >= end_tile) continue;

    // Queries stay, tiles pass.
    const int head_k = plan.work.head / static_cast<int>(p.heads_q / p.heads_k);
    const auto q = head_rows<const Element>(is_far ? p.q2 : p.q, packed, plan.work.sequence, plan.q_rows,
                                            plan.work.head, p.head_dim);
    const auto k =
        head_rows<const Element>(is_far ? p.k2 : p.k, packed, plan.work.sequence, plan.k_rows, head_k, p.head_dim);
    const auto v = head_rows<const Element>(p.v, packed, plan.work.sequence, plan.k_rows, head_k, p.head_dim_v);
    if (is_far && !planted(Fault::kMissingPartBarrier)) ptx::sync_block();  // the near part's last readers are done
    const ptx::SharedAddress queries = ptx::shared_address(shared.q);
    start_loading_tile<Traits::kBlockM, Traits::kHeadDim, Traits::kThreads>(queries, q, plan.first_row);
    TileStream<Traits> stream(shared, k, v, first_tile, end_tile);
    for (int tile = end_tile - 1; tile >= first_tile; --tile) {
      const int first_key = tile * Traits::kBlockN;
      const auto warp_row = [&] { return plan.first_row + warp * Traits::kRowsPerWarp; };
      typename Traits::Scores scores;
      multiply_queries_keys<Traits>(scores, queries, stream.keys(tile), warp, lane);
      if (arguments.scale.transforms) transform_scores<Traits>(scores, arguments.scale);
      if constexpr (Traits::kTerms) {
        terms.join(scores, {warp_row(), first_key, plan.q_rows.length, plan.k_rows.length}, lane);
      }
      if (part.is_edge(first_key, Traits::kBlockN)) {
        mask_scores<Traits>(scores, part.mask, warp_row(), first_key, lane);
      }
      softmax.update(scores, output, arguments.scale.exponent_scale);
      if constexpr (Traits::kTerms) {
        if (p.dropout.rng_state != nullptr) dropout.drop(scores, warp_row(), first_key, lane);
      }
      const ptx::SharedAddress values = stream.values(tile);
      bool is_cut = part.is_edge(tile * Traits::kBlockN, Traits::kBlockN);
      if constexpr (Traits::kTerms) is_cut = is_cut || hides_keys(p);
      if (is_cut) {
        set_not_finite_apart<Traits>(output, values, ptx::shared_address(&shared.votes), [&](int lane_now) {
          if constexpr (Traits::kTerms) {
            return WeighedKeys<Traits>(scores, lane_now);
          } else {
            return MaskedKeys(part.mask, warp_row() + lane_now / 4, tile * Traits::kBlockN);
          }
        });
      }
      multiply_weights_values<Traits>(output, scores, values, lane);
    }
  }

  // Epilogue.
  softmax.finish();
  const RowResults<Traits> results(softmax, arguments.scale.exponent_scale,
                                   p.sinks == nullptr ? nullptr : p.sinks + plan.work.head, p.dropout.scale);
  const int warp_row = plan.first_row + warp * Traits::kRowsPerWarp;
  float* lse = p.lse.data + plan.work.head * p.lse.head_stride +
               (packed ? plan.q_rows.first : plan.work.sequence * p.lse.batch_stride);
  store_log_sum_exp(results, lse, plan.q_rows.length, warp_row, lane);
  const auto out = head_rows<Element>(p.out, packed, plan.work.sequence, plan.q_rows, plan.work.head, p.head_dim_v);
  store_output(output, results, shared.q, out, warp_row, warp, lane);
}

}  // namespace flagattn::sm80
