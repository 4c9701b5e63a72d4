// Attention backward: one block takes one tile of keys of one key/value head, keeps the gradients of its keys and
// values in registers, and passes the queries of all heads of the group by. dQ is added up between blocks, in order.
#pragma once

#include "attention/cuda/sm80/backward_output.cuh"
#include "attention/cuda/sm80/backward_products.cuh"
#include "attention/cuda/sm80/backward_scores.cuh"
#include "attention/cuda/sm80/backward_stream.cuh"
#include "attention/cuda/sm80/backward_turns.cuh"

namespace flagattn::sm80 {

template <typename Traits>
FLAGATTN_KERNEL(Traits::kThreads, 1)
attention_backward_kernel(FLAGATTN_KERNEL_ARGUMENT BackwardArguments arguments) {
  using Element = typename Traits::Element;
  constexpr int kHeadDim = Traits::kHeadDim, kBlockM = Traits::kBlockM, kBlockN = Traits::kBlockN;
  constexpr Depth kAlong = Depth::kAlongRows, kAcross = Depth::kAcrossRows;
  const AttentionBackwardParams& b = arguments.params;
  const AttentionParams& p = b.forward;
  auto& shared = ptx::shared_storage<BackwardStorage<Traits>>();
  const ptx::SharedAddress base = ptx::shared_address(&shared);

  // The block's work. Packed sequences may be shorter than the grid was made for.
  if (ptx::thread_index() == 0) {
    const auto work = arguments.schedule.work_of(ptx::block_index());
    new (&shared.block) BackwardBlock(p, work, kBlockM, kBlockN);
  }
  ptx::sync_block();
  const BackwardBlock& block = shared.block;
  if (block.key_tile * kBlockN >= block.k_rows.length) return;
  const TileRange& tiles = block.query_tiles;

  // Threads find out anew in every step which parts of the products are theirs, for lack of registers.
  typename Traits::KeyGradients dk = {}, dv = {};
  if (tiles.first < tiles.end) {
    start_loading_tile<kBlockN, kHeadDim, Traits::kThreads>(
        base + Traits::kKeys, block.key_rows<const Element>(p, p.k, p.head_dim), block.key_tile * kBlockN);
    start_loading_tile<kBlockN, kHeadDim, Traits::kThreads>(
        base + Traits::kValues, block.key_rows<const Element>(p, p.v, p.head_dim_v), block.key_tile * kBlockN);
    QueryStream<Traits> stream(base, arguments, block);
    for (int head = 0; head < block.group; ++head) {
      for (int tile = tiles.end - 1; tile >= tiles.first; --tile) {
        const int first_row = tile * kBlockM, first_key = block.key_tile * kBlockN;
        stream.advance(head, tile);
        const uint32_t slot = stream.slot_offset();
        const WarpParts<Traits> score(ptx::thread_index_now());
        const auto query_rows = left_operand<kAlong, kHeadDim>(base, score.query_row, score.lane);
        const auto key_rows = right_operand<kAlong, kHeadDim>(base, score.key, score.lane);
        const ScorePlace<Traits> place(base, score);

        // P, from the scores and the rows' LSE.
        typename Traits::Scores weights = {};
        multiply<Element, kHeadDim / 16>(weights, query_rows.of_tile(Traits::kQueries, slot),
                                         key_rows.of_tile(Traits::kKeys));
        find_exponents<Traits>(weights, stream.lse(), arguments.scale, place);
        if (!block.band.covers(first_row, kBlockM, first_key, kBlockN)) {
          hide_keys<Traits>(weights, block.band, place, first_row, first_key);
        }
        store_weights<Traits>(weights, stream.lse(), arguments.scale, place);

        // dS = P (dP - delta).
        typename Traits::Scores dweights;
        start_from_deltas<Traits>(dweights, stream.deltas(), place);
        multiply<Element, kHeadDim / 16>(dweights, query_rows.of_tile(Traits::kDouts, slot),
                                         key_rows.of_tile(Traits::kValues));
        store_dscores<Traits>(weights, dweights, ScorePlace<Traits>(base, WarpParts<Traits>(ptx::thread_index_now())));
        if (!planted(Fault::kMissingScoresBarrier)) ptx::sync_block();  // P and dS are there for all warps

        const WarpParts<Traits> warp(ptx::thread_index_now());
        const auto score_rows = left_operand<kAlong, kBlockN>(base, warp.query_row, warp.lane);
        const auto score_columns = left_operand<kAcross, kBlockN>(base, warp.key_row, warp.lane);
        const auto query_columns = right_operand<kAcross, kHeadDim>(base, warp.key_column, warp.lane);
        const auto key_columns = right_operand<kAcross, kHeadDim>(base, warp.query_column, warp.lane);

        // dV += P^T dO. What other blocks have added to dQ arrives during dK += dS^T Q; dQ += dS K.
        multiply<Element, kBlockM / 16>(dv, score_columns.of_tile(Traits::kWeights),
                                        query_columns.of_tile(Traits::kDouts, slot));
        const QueryTurn<Traits> turn(arguments, block, head, tile, ptx::thread_index_now());
        typename Traits::QueryGradients dq;
        turn.take(dq);
        multiply<Element, kBlockM / 16>(dk, score_columns.of_tile(Traits::kDscores),
                                        query_columns.of_tile(Traits::kQueries, slot));
        multiply<Element, kBlockN / 16>(dq, score_rows.of_tile(Traits::kDscores), key_columns.of_tile(Traits::kKeys));
        if (turn.is_last) {
          const auto to = block.query_rows<Element>(p, b.dq, head, p.head_dim);
          store_gradients(dq, arguments.scale.output_scale, to, first_row + warp.query_row, warp.query_column,
                          warp.lane);
        } else {
          turn.pass_on(dq);
        }
      }
    }
  }

  // Keys that no query sees have the gradient 0.
  const WarpParts<Traits> warp(ptx::thread_index_now());
  const int key = block.key_tile * kBlockN + warp.key_row;
  store_gradients(dk, arguments.scale.output_scale, block.key_rows<Element>(p, b.dk, p.head_dim), key, warp.key_column,
                  warp.lane);
  store_gradients(dv, 1.0f, block.key_rows<Element>(p, b.dv, p.head_dim_v), key, warp.key_column, warp.lane);
}

}  // namespace flagattn::sm80
