// Attention forward: one block takes one tile of query rows of one head and passes its keys and values by.
#pragma once

#include "attention/cuda/sm80/epilogue.cuh"
#include "attention/cuda/sm80/products.cuh"
#include "attention/cuda/sm80/sequence_rows.cuh"
#include "attention/cuda/sm80/softmax.cuh"
#include "attention/cuda/sm80/tile_stream.cuh"

namespace flagattn::sm80 {

struct ForwardArguments {
  AttentionParams params;
  ForwardSchedule schedule;
  ScoreScale scale;
};

// Rows behind the last sequence of a packed operand: output 0, LSE -inf. As many as there may be, in strides of all
// blocks.
template <typename Element>
FLAGATTN_DEVICE void clear_rows_behind(const AttentionParams& p, int head, int first_row, int row_step) {
  const int64_t end = p.cu_seqlens_q[p.batch];
  for (int64_t row = (end > 0 ? end : 0) + first_row; row < p.total_q; row += row_step) {
    p.lse.data[head * p.lse.head_stride + row] = -INFINITY;
    Element* out = static_cast<Element*>(p.out.data) + row * p.out.row_stride + head * p.out.head_stride;
    for (int column = 0; column < p.head_dim_v; column += 8) ptx::store_global_16(out + column, {});
  }
}

template <typename Traits>
FLAGATTN_KERNEL(Traits::kThreads, 2)
attention_forward_kernel(FLAGATTN_KERNEL_ARGUMENT ForwardArguments arguments) {
  using Element = typename Traits::Element;
  const AttentionParams& p = arguments.params;
  auto& shared = ptx::shared_storage<typename Traits::SharedStorage>();
  const int lane = ptx::thread_index() % ptx::kWarpSize;
  const int warp = ptx::thread_index() / ptx::kWarpSize;

  // The block's work. Packed sequences may be shorter than the grid was made for.
  const auto work = arguments.schedule.work_of(ptx::block_index());
  const bool packed = p.is_packed();
  if (work.sequence == p.batch) {
    return clear_rows_behind<Element>(p, work.head, work.query_tile * Traits::kThreads + ptx::thread_index(),
                                      arguments.schedule.query_tiles * Traits::kThreads);
  }
  const SequenceRows q_rows = sequence_rows(p.cu_seqlens_q, work.sequence, p.seqlen_q, p.total_q);
  const SequenceRows k_rows = sequence_rows(p.cu_seqlens_k, work.sequence, p.seqlen_k, p.total_k);
  const int first_row = work.query_tile * Traits::kBlockM;
  if (first_row >= q_rows.length) return;
  const int head_k = work.head / static_cast<int>(p.heads_q / p.heads_k);
  const auto q = head_rows<const Element>(p.q, packed, work.sequence, q_rows, work.head, p.head_dim);
  const auto k = head_rows<const Element>(p.k, packed, work.sequence, k_rows, head_k, p.head_dim);
  const auto v = head_rows<const Element>(p.v, packed, work.sequence, k_rows, head_k, p.head_dim_v);

  // The keys its rows see, in tiles, and those that all of them see.
  const MaskShape mask{q_rows.length, k_rows.length, p.mask};
  const int64_t end_row = first_row + Traits::kBlockM;
  const int64_t last_row = (end_row < q_rows.length ? end_row : q_rows.length) - 1;
  const KeyRange visible = mask.keys_of_any_row(first_row, last_row);
  const KeyRange unmasked = mask.keys_of_every_row(first_row, last_row);
  const int first_tile = static_cast<int>(visible.begin / Traits::kBlockN);
  const int end_tile = visible.empty() ? first_tile : static_cast<int>((visible.end - 1) / Traits::kBlockN) + 1;

  // Mainloop.
  const ElementMask element_mask(mask);
  const int first_unmasked = static_cast<int>(unmasked.begin), end_unmasked = static_cast<int>(unmasked.end);
  typename Traits::Output output = {};
  OnlineSoftmax<Traits> softmax;
  const int warp_row = first_row + warp * Traits::kRowsPerWarp;
  if (first_tile < end_tile) {
    const ptx::SharedAddress queries = ptx::shared_address(shared.q);
    start_loading_tile<Traits::kBlockM, Traits::kHeadDim, Traits::kThreads>(queries, q, first_row);
    TileStream<Traits> stream(shared, k, v, first_tile, end_tile);
    for (int tile = end_tile - 1; tile >= first_tile; --tile) {
      const int first_key = tile * Traits::kBlockN;
      typename Traits::Scores scores;
      multiply_queries_keys<Traits>(scores, queries, stream.keys(tile), warp, lane);
      if (arguments.scale.transforms) transform_scores<Traits>(scores, arguments.scale);
      if (first_key < first_unmasked || first_key + Traits::kBlockN > end_unmasked) {
        mask_scores<Traits>(scores, element_mask, warp_row, first_key, lane);
      }
      softmax.update(scores, output, arguments.scale.exponent_scale);
      multiply_weights_values<Traits>(output, scores, stream.values(tile), lane);
    }
  }

  // Epilogue.
  softmax.finish();
  float* lse =
      p.lse.data + work.head * p.lse.head_stride + (packed ? q_rows.first : work.sequence * p.lse.batch_stride);
  store_log_sum_exp(softmax, arguments.scale.exponent_scale, lse, q_rows.length, warp_row, lane);
  const auto out = head_rows<Element>(p.out, packed, work.sequence, q_rows, work.head, p.head_dim_v);
  store_output(output, softmax, shared.q, out, warp_row, warp, lane);
}

}  // namespace flagattn::sm80
