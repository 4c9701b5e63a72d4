// What the main kernel of the backward is told, and a block's place in the problem.
#pragma once

#include <new>

#include "attention/cuda/sm80/backward_scores.cuh"
#include "attention/cuda/sm80/backward_traits.cuh"
#include "attention/cuda/sm80/not_finite.cuh"
#include "attention/cuda/sm80/sequence_rows.cuh"

namespace flagattn::sm80 {

struct BackwardArguments {
  AttentionBackwardParams params;
  BackwardSchedule schedule;
  BackwardWorkspace workspace;
  GradientScale scale;
};

// The keys that one product scores, of those of the block: all, or the near or the far ones.
struct BackwardPart {
  VisibleBand band;
  TileRange query_tiles;
};

// Lies in shared memory: it is needed now and then in every step, when the accumulators leave no register to keep it.
struct BackwardBlock {
  SequenceRows q_rows, k_rows;
  int sequence, head_k, group;
  int group_part, first_head, end_head;  // the query heads of the group that are the block's
  int key_tile;
  int first_seeing_row;
  int part = 0;  // that the block is at
  BackwardPart parts[2];

  FLAGATTN_DEVICE BackwardBlock(const AttentionParams& p, const BackwardSchedule::Work& work, int group_parts,
                                int block_m, int block_n)
      : q_rows(sequence_rows(p.cu_seqlens_q, work.sequence, p.seqlen_q, p.total_q)),
        k_rows(sequence_rows(p.cu_seqlens_k, work.sequence, p.seqlen_k, p.total_k)),
        sequence(work.sequence),
        head_k(work.head_k),
        group(static_cast<int>(p.heads_q / p.heads_k)),
        group_part(work.group_part),
        first_head(group_part * ((group + group_parts - 1) / group_parts)),
        end_head(group_part == group_parts - 1 ? group : first_head + (group + group_parts - 1) / group_parts),
        key_tile(work.key_tile),
        first_seeing_row(band_of(p, KeyPart::kAll).first_seeing_row()),
        parts{part_of(p, p.is_piecewise() ? KeyPart::kNear : KeyPart::kAll, block_m, block_n),
              part_of(p, KeyPart::kFar, block_m, block_n)} {}

  FLAGATTN_DEVICE const VisibleBand& band() const { return parts[part].band; }
  FLAGATTN_DEVICE const TileRange& tiles() const { return parts[part].query_tiles; }
  FLAGATTN_DEVICE bool sees(int number) const {
    return parts[number].query_tiles.first < parts[number].query_tiles.end;
  }

  FLAGATTN_DEVICE int query_head(int head) const { return head_k * group + head; }

  // The rows of an operand of queries, of head `head` of the group; and those of an operand of keys.
  template <typename Element>
  FLAGATTN_DEVICE HeadRows<Element> query_rows(const AttentionParams& p, const HeadsView& view, int head,
                                               int64_t columns) const {
    return head_rows<Element>(view, p.is_packed(), sequence, q_rows, query_head(head), columns);
  }
  template <typename Element>
  FLAGATTN_DEVICE HeadRows<Element> key_rows(const AttentionParams& p, const HeadsView& view, int64_t columns) const {
    return head_rows<Element>(view, p.is_packed(), sequence, k_rows, head_k, columns);
  }

  // Where a tile of queries keeps its part of the workspace.
  FLAGATTN_DEVICE int64_t workspace_tile(const AttentionParams& p, const BackwardWorkspace& workspace, int head,
                                         int tile) const {
    return workspace.tile_of(p.is_packed(), sequence, q_rows.first, query_head(head), tile);
  }

 private:
  FLAGATTN_DEVICE VisibleBand band_of(const AttentionParams& p, KeyPart part) const {
    return VisibleBand(PartShape{{q_rows.length, k_rows.length, p.mask}, part, p.dist_threshold});
  }
  FLAGATTN_DEVICE BackwardPart part_of(const AttentionParams& p, KeyPart part, int block_m, int block_n) const {
    const VisibleBand band = band_of(p, part);
    return {band, band.query_tiles(key_tile, block_m, block_n)};
  }
};

template <typename Traits>
struct BackwardStorage {
  typename Traits::Tiles tiles;
  BackwardBlock block;
  WarpVotes<Traits::kWarps> votes;
};

}  // namespace flagattn::sm80
