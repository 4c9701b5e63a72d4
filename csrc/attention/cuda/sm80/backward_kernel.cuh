// Attention backward: one block takes one tile of keys of one key/value head, keeps the gradients of its keys and
// values in registers, and passes the queries of the heads of the group by, or of a part of them. dQ is added up
// between blocks, in order; so are dK and dV where the group is cut.
#pragma once

#include "attention/cuda/sm80/backward_not_finite.cuh"
#include "attention/cuda/sm80/backward_output.cuh"
#include "attention/cuda/sm80/backward_products.cuh"
#include "attention/cuda/sm80/backward_scores.cuh"
#include "attention/cuda/sm80/backward_stream.cuh"
#include "attention/cuda/sm80/backward_terms.cuh"
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
    new (&shared.block) BackwardBlock(p, work, arguments.schedule.group_parts, kBlockM, kBlockN);
  }
  ptx::sync_block();
  BackwardBlock& block = shared.block;
  if (block.key_tile * kBlockN >= block.k_rows.length) return;

  // Adds the block's share of a gradient to those of the lower parts of the group. Keys that no query sees have the
  // gradient 0, and nobody's share.
  const auto finish = [&](typename Traits::KeyGradients& sums, int which, bool has_share, float scale,
                          const HeadsView& to, int64_t columns) {
    const Turn turn = key_turn<Traits>(arguments, block, which, ptx::thread_index_now());
    if (has_share) turn.add_to(sums);
    if (!turn.is_last) {
      if (has_share) turn.pass_on(sums);
      return;
    }
    const WarpParts<Traits> warp(ptx::thread_index_now());
    store_gradients<Traits::kKeyColumnWarps>(sums, scale, block.key_rows<Element>(p, to, columns),
                                             block.key_tile * kBlockN + warp.key_row, warp.key_group, warp.lane);
  };

  // The parts of the keys, one after the other. Threads find out anew in every step which parts of the products are
  // theirs, for lack of registers.
  typename Traits::KeyGradients dv = {};
  while (true) {
    typename Traits::KeyGradients dk = {};
    if (block.sees(block.part)) {
      const bool is_far = block.part == 1;
      start_loading_tile<kBlockN, kHeadDim, Traits::kThreads>(
          base + Traits::kKeys, block.key_rows<const Element>(p, is_far ? p.k2 : p.k, p.head_dim),
          block.key_tile * kBlockN);
      if (!is_far || !block.sees(0)) {
        start_loading_tile<kBlockN, kHeadDim, Traits::kThreads>(
            base + Traits::kValues, block.key_rows<const Element>(p, p.v, p.head_dim_v), block.key_tile * kBlockN);
      }
      QueryStream<Traits> stream(base, arguments, block);
      for (int head = block.first_head; head < block.end_head; ++head) {
        for (int tile = block.tiles().end - 1; tile >= block.tiles().first; --tile) {
          const int first_row = tile * kBlockM, first_key = block.key_tile * kBlockN;
          const auto hides_some = [&] { return !block.band().covers(first_row, kBlockM, first_key, kBlockN); };
          const auto is_cut = [&] { return (Traits::kTerms && hides_keys(p)) || hides_some(); };
          stream.advance(head, tile);
          const uint32_t slot = stream.slot_offset();
          const WarpParts<Traits> score(ptx::thread_index_now());
          const auto query_rows = left_operand<kAlong, kHeadDim>(base, score.query_row, score.lane);
          const auto key_rows = right_rows<kHeadDim>(base, score.key, score.lane);
          const ThreadScores<Traits> place(base, score);

          // P, from the scores and the rows' LSE.
          typename Traits::Scores weights = {};
          multiply<Element, kHeadDim / 16>(weights, query_rows.of_tile(Traits::kQueries, slot),
                                           key_rows.of_tile(Traits::kKeys));
          if (arguments.scale.caps) cap_scores<Traits>(weights, arguments.scale.input_scale, place);
          if constexpr (Traits::kTerms) {
            join_terms<Traits>(weights, p, arguments.scale.term_unit, block.sequence, block.query_head(head), score,
                               block.band(), first_row, first_key);
          }
          find_exponents<Traits>(weights, stream.lse(), arguments.scale.exponent_scale, place);
          if (hides_some()) {
            hide_keys<Traits>(weights, block.band(), place, first_row, first_key);
          }
          if constexpr (Traits::kTerms) {
            find_weights<Traits>(weights, p, block.sequence, block.query_head(head), score, first_row, first_key);
            store_kept_weights<Traits>(weights, place);
          } else {
            store_weights<Traits>(weights, place);
          }

          // dS = P (dP - delta).
          typename Traits::Scores dweights;
          const bool drops = Traits::kTerms && p.dropout.rng_state != nullptr;
          const WarpParts<Traits> dscore(ptx::thread_index_now());
          start_from_deltas<Traits>(dweights, stream.deltas(), ThreadScores<Traits>(base, dscore),
                                    drops ? 0.0f : -1.0f);
          const auto dout_rows = left_operand<kAlong, kHeadDim>(base, dscore.query_row, dscore.lane);
          const auto value_rows = right_rows<kHeadDim>(base, dscore.key, dscore.lane);
          multiply<Element, kHeadDim / 16>(dweights, dout_rows.of_tile(Traits::kDouts, slot),
                                           value_rows.of_tile(Traits::kValues));
          const ThreadScores<Traits> place_again(base, WarpParts<Traits>(ptx::thread_index_now()));
          if constexpr (Traits::kTerms) {
            if (drops) drop_gradients<Traits>(weights, dweights, p.dropout.scale, stream.deltas(), place_again);
          }
          if (arguments.scale.caps) multiply_by_slopes<Traits>(dweights, place_again);
          if (!Traits::kTerms && hides_some()) forget_hidden<Traits>(weights, dweights);
          store_dscores<Traits>(weights, dweights, place_again);
          if (is_cut()) vote_on_step<Traits>(base, slot, ptx::shared_address(&shared.votes));
          if (!planted(Fault::kMissingScoresBarrier)) ptx::sync_block();  // P and dS are there for all warps

          const auto found = [&](uint32_t where) {
            return is_cut() && (all_votes<Traits::kWarps>(ptx::shared_address(&shared.votes)) & where) != 0;
          };
          if (found(kInQueries)) set_queries_apart<Traits>(dv, base, slot, block.band(), first_row, first_key);

          const WarpParts<Traits> warp(ptx::thread_index_now());
          const auto score_columns = left_operand<kAcross, kBlockN>(base, warp.key_row, warp.lane);
          const auto query_columns = right_columns<kHeadDim, Traits::kKeyColumnWarps>(base, warp.key_group, warp.lane);

          // dV += P^T dO. What other blocks have added to dQ arrives during dK += dS^T Q; dQ += dS K.
          multiply<Element, kBlockM / 16>(dv, score_columns.of_tile(Traits::kWeights),
                                          query_columns.of_tile(Traits::kDouts, slot));
          typename Traits::QueryGradients dq;
          query_turn<Traits>(arguments, block, head, tile, ptx::thread_index_now()).take(dq);
          multiply<Element, kBlockM / 16>(dk, score_columns.of_tile(Traits::kDscores),
                                          query_columns.of_tile(Traits::kQueries, slot));
          stream.release(head, tile);
          const WarpParts<Traits> own(ptx::thread_index_now());
          const auto score_rows = left_operand<kAlong, kBlockN>(base, own.dq_row, own.lane);
          const auto key_columns = right_columns<kHeadDim, Traits::kDqColumnWarps>(base, own.dq_group, own.lane);
          if (found(kInKeys)) clear_keys<Traits>(base);
          multiply<Element, kBlockN / 16>(dq, score_rows.of_tile(Traits::kDscores), key_columns.of_tile(Traits::kKeys));
          if (found(kInKeys)) fetch_keys_again<Traits>(base, block, p);
          const Turn turn = query_turn<Traits>(arguments, block, head, tile, ptx::thread_index_now());
          if (turn.is_last) {
            const WarpParts<Traits> again(ptx::thread_index_now());
            const auto to = block.query_rows<Element>(p, block.part == 0 ? b.dq : b.dq2, head, p.head_dim);
            store_gradients<Traits::kDqColumnWarps>(dq, arguments.scale.output_scale, to, first_row + again.dq_row,
                                                    again.dq_group, again.lane);
          } else {
            turn.pass_on(dq);
          }
        }
      }
    }
    finish(dk, 1 + block.part, block.sees(block.part), arguments.scale.output_scale, block.part == 0 ? b.dk : b.dk2,
           p.head_dim);
    if (!p.is_piecewise() || block.part == 1) break;
    if (!planted(Fault::kMissingPartBarrier)) ptx::sync_block();  // everybody is done with the near part
    if (ptx::thread_index() == 0) block.part = 1;
    ptx::sync_block();
  }
  finish(dv, 0, block.sees(0) || (p.is_piecewise() && block.sees(1)), p.dropout.scale, b.dv, p.head_dim_v);
}

}  // namespace flagattn::sm80
