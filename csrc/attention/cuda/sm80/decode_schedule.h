// How attention over caches is cut on CUDA. Pure functions of shapes.
#pragma once

#include <cstdint>

#include "arch/host_device.h"
#include "attention/params.h"

namespace flagattn::sm80 {

// Keys of a split: it begins at a multiple of this.
inline constexpr int kDecodeSplit = 512;

// The query rows of a group's heads are numbered row by row: column c is row c / group of the group's head c % group. A
// block takes a tile of this many columns.
inline constexpr int kDecodeColumns = 64;

// Whether one block leads all of a sequence's keys past a tile of columns and writes the output. Several tiles fill a
// GPU without splits, whose results would take more memory than they are worth. It depends on the sequence alone, and
// so do its bits: neither the rest of the batch nor the size of the cache changes them.
FLAGATTN_HOST_DEVICE constexpr bool attends_at_once(int columns, int keys) {
  return columns > kDecodeColumns || keys <= kDecodeSplit;
}

// The blocks of a sequence and key/value head: one for each split of the first tile of columns, then one for each other
// tile. Packed sequences differ, so that there may be more of either than a sequence needs; those end at once.
struct DecodeSchedule {
  int sequences;  // of a launch, as many as the workspace has room for; packed queries have one more than their
                  // batch: the rows behind the last
  int heads_k;
  int column_tiles;  // the most that a sequence may have
  int splits;        // the same
  int columns;       // of a sequence that is split: the most

  struct Work {
    int split;
    int column_tile;
    int head_k;
    int sequence;
  };

  constexpr int blocks_per_pair() const { return splits + column_tiles - 1; }
  constexpr int64_t blocks() const { return int64_t{sequences} * heads_k * blocks_per_pair(); }

  // Splits of one sequence are neighbours.
  FLAGATTN_HOST_DEVICE constexpr Work work_of(int block) const {
    const int pair = block / blocks_per_pair(), number = block % blocks_per_pair();
    const int tile = number < splits ? 0 : number - splits + 1;
    return {tile == 0 ? number : 0, tile, pair % heads_k, pair / heads_k};
  }

  // Rows that the splits of a launch are merged into, those that do not exist counted: as many as the kernel that
  // merges has warps. Row r is column r % columns of pair r / columns.
  constexpr int64_t merged_rows() const { return splits > 1 ? int64_t{sequences} * heads_k * columns : 0; }

  // fp32 numbers of the workspace: for every split of every row an LSE and head_dim_v columns.
  constexpr int64_t workspace(int64_t head_dim_v) const { return merged_rows() * splits * (head_dim_v + 1); }
};

constexpr DecodeSchedule decode_schedule(const AttentionParams& params) {
  constexpr int64_t kMostBytes = 256 << 20;  // of workspace, unless one sequence needs more
  const int64_t columns = params.seqlen_q * (params.heads_q / params.heads_k);
  const int64_t tiles = columns > 0 ? (columns + kDecodeColumns - 1) / kDecodeColumns : 1;
  // Dense sequences have the same columns; packed ones any number up to that.
  const bool splits = params.seqlen_k > kDecodeSplit && (tiles == 1 || params.is_packed());
  const int64_t sequences = params.batch + params.is_packed();
  DecodeSchedule schedule{1, static_cast<int>(params.heads_k), static_cast<int>(tiles),
                          static_cast<int>(splits ? (params.seqlen_k + kDecodeSplit - 1) / kDecodeSplit : 1),
                          static_cast<int>(columns < kDecodeColumns ? columns : kDecodeColumns)};
  const int64_t bytes = schedule.workspace(params.head_dim_v) * static_cast<int64_t>(sizeof(float));
  const int64_t fitting = bytes > 0 ? kMostBytes / bytes : sequences;
  schedule.sequences = static_cast<int>(fitting < 1 ? 1 : fitting < sequences ? fitting : sequences);
  return schedule;
}

}  // namespace flagattn::sm80
