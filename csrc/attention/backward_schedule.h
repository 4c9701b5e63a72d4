// How the attention backward on the CPU is cut into parts: pure functions, unit-tested on the host.
//
// As in the forward, the query rows of a group's heads are numbered as columns, row by row: column c is row c / group
// of the group's head c % group. A part is a run of columns of one (sequence, key/value head): it finishes its dQ and
// adds up its share of dK and dV; the shares of a sequence are summed in a fixed order. The cut is a function of one
// sequence's own sizes, never of the batch or of the threads: gradients have the same bits wherever a sequence is
// computed.
#pragma once

#include <cstdint>

#include "attention/schedule.h"

namespace flagattn {

// Keys of a tile, counted from key 0 of the sequence.
inline constexpr int64_t kBackwardKeyTile = 64;

// Parts and blocks begin at multiples of this many columns of their sequence: whole vectors on every ISA level.
inline constexpr int64_t kBackwardQuantum = 16;

// A block's columns are a multiple of this many: whole panels, three vectors wide, on every ISA level.
inline constexpr int64_t kBackwardBlock = 48;

constexpr int64_t round_up_to(int64_t value, int64_t quantum) { return (value + quantum - 1) / quantum * quantum; }

struct BackwardSplit {
  int64_t columns_per_part;
  int64_t parts;  // at least 1: a sequence without queries still has gradients (zeros) for its keys
};

constexpr BackwardSplit backward_split(int64_t seqlen_q, int64_t group) {
  // A part's share of dK and dV is written once and read once, whatever its columns: about 24 / columns of the part's
  // time where it goes through main memory, less where it stays in L3.
  constexpr int64_t kColumns = 512;
  const int64_t columns = seqlen_q * group;
  const int64_t wanted = columns < kColumns ? 1 : columns / kColumns;
  const int64_t per_part = round_up_to((columns + wanted - 1) / wanted, kBackwardQuantum);
  if (per_part == 0) return {kBackwardQuantum, 1};
  return {per_part, (columns + per_part - 1) / per_part};
}

// Most columns of a block, which meets one key tile after another: what it needs against a tile stays in L2. Piecewise
// attention needs no more, since nearly all tiles are near or far as a whole.
constexpr int64_t backward_most_columns(int64_t head_dim, int64_t head_dim_v) {
  constexpr int64_t kBytes = 288 * 1024;  // half a MiB is the smallest L2 around
  constexpr int64_t kMost = 144;
  // Queries and dO both as rows and transposed, dQ, and P and dS against one tile.
  const int64_t floats = 3 * head_dim + 2 * head_dim_v + 2 * kBackwardKeyTile;
  const int64_t most = kBytes / (floats * static_cast<int64_t>(sizeof(float))) / kBackwardBlock * kBackwardBlock;
  return most < kBackwardBlock ? kBackwardBlock : most > kMost ? kMost : most;
}

// Columns of the blocks of a part, at most `most`: whole panels, and a rest in the last one.
constexpr int64_t backward_block_columns(int64_t part_columns, int64_t most) {
  if (part_columns == 0) return kBackwardBlock;  // a sequence without queries
  const int64_t blocks = (part_columns + most - 1) / most;
  return round_up_to((part_columns + blocks - 1) / blocks, kBackwardBlock);
}

struct BackwardPart {
  Sequence sequence;
  int64_t head_k;
  int64_t first_column;
  int64_t num_columns;
  int64_t sequence_index = 0;  // in the batch
};

// Parts are taken, and their shares summed, from the last columns to the first: under a causal mask the later ones see
// more keys, so that what is left for the end is light.
constexpr BackwardPart backward_part(const Sequence& sequence, int64_t head_k, int64_t group,
                                     const BackwardSplit& split, int64_t index) {
  const int64_t first = (split.parts - 1 - index) * split.columns_per_part;
  const int64_t rest = sequence.seqlen_q * group - first;
  return {sequence, head_k, first, rest < split.columns_per_part ? rest : split.columns_per_part};
}

}  // namespace flagattn
