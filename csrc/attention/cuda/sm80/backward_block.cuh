// What the main kernel of the backward is told, and a block's place in the problem.
#pragma once

#include <new>

#include "attention/cuda/sm80/backward_scores.cuh"
#include "attention/cuda/sm80/backward_traits.cuh"
#include "attention/cuda/sm80/sequence_rows.cuh"

namespace flagattn::sm80 {

struct BackwardArguments {
  AttentionBackwardParams params;
  BackwardSchedule schedule;
  BackwardWorkspace workspace;
  GradientScale scale;
};

// Lies in shared memory: it is needed now and then in every step, when the accumulators leave no register to keep it.
struct BackwardBlock {
  SequenceRows q_rows, k_rows;
  int sequence, head_k, group;
  int key_tile;
  VisibleBand band;
  TileRange query_tiles;

  FLAGATTN_DEVICE BackwardBlock(const AttentionParams& p, const BackwardSchedule::Work& work, int block_m, int block_n)
      : q_rows(sequence_rows(p.cu_seqlens_q, work.sequence, p.seqlen_q, p.total_q)),
        k_rows(sequence_rows(p.cu_seqlens_k, work.sequence, p.seqlen_k, p.total_k)),
        sequence(work.sequence),
        head_k(work.head_k),
        group(static_cast<int>(p.heads_q / p.heads_k)),
        key_tile(work.key_tile),
        band(MaskShape{q_rows.length, k_rows.length, p.mask}),
        query_tiles(band.query_tiles(key_tile, block_m, block_n)) {}

  // The rows of an operand of queries, of head `head` of the group; and those of an operand of keys.
  template <typename Element>
  FLAGATTN_DEVICE HeadRows<Element> query_rows(const AttentionParams& p, const HeadsView& view, int head,
                                               int64_t columns) const {
    return head_rows<Element>(view, p.is_packed(), sequence, q_rows, head_k * group + head, columns);
  }
  template <typename Element>
  FLAGATTN_DEVICE HeadRows<Element> key_rows(const AttentionParams& p, const HeadsView& view, int64_t columns) const {
    return head_rows<Element>(view, p.is_packed(), sequence, k_rows, head_k, columns);
  }

  // Where a tile of queries keeps its part of the workspace.
  FLAGATTN_DEVICE int64_t workspace_tile(const AttentionParams& p, const BackwardWorkspace& workspace, int head,
                                         int tile) const {
    return workspace.tile_of(p.is_packed(), sequence, q_rows.first, head_k * group + head, tile);
  }
};

template <typename Traits>
struct BackwardStorage {
  typename Traits::Tiles tiles;
  BackwardBlock block;
};

}  // namespace flagattn::sm80
