// What the backward kernels do with a problem: tiles, who visits which, the order of blocks, the workspace. Pure
// functions of shapes.
#pragma once

#include <cstdint>

#include "arch/host_device.h"
#include "attention/mask.h"
#include "attention/params.h"

namespace flagattn::sm80 {

// Tiles per head dim, for eight warps. The gradients of 128 keys and values stay in accumulator registers (64 per
// thread at head dim 64, 128 at 128), and so do, for a while, the scores of all query rows and their gradients (128 and
// 64).
struct BackwardTile {
  int block_m;  // query rows
  int block_n;  // keys
  int warps;
};

constexpr BackwardTile backward_tile(int kernel_head_dim) { return {kernel_head_dim <= 64 ? 128 : 64, 128, 8}; }

// The instantiation that serves these head dims: columns beyond the operand's are zeros. 0 if there is none.
constexpr int backward_kernel_head_dim(int64_t head_dim, int64_t head_dim_v) {
  const int64_t widest = head_dim > head_dim_v ? head_dim : head_dim_v;
  return widest <= 64 ? 64 : widest <= 128 ? 128 : 0;
}

// Tiles [first, end); none where end <= first.
struct TileRange {
  int first;
  int end;
};

// What rows and keys of one sequence have to do with each other, in 32 bits: row i sees key j iff j - i lies in
// [first_diagonal, end_diagonal).
struct VisibleBand {
  int first_diagonal;
  int end_diagonal;
  int rows;
  int keys;

  FLAGATTN_HOST_DEVICE constexpr explicit VisibleBand(const MaskShape& shape)
      : first_diagonal(static_cast<int>(shape.diagonals().begin)),
        end_diagonal(static_cast<int>(shape.diagonals().end)),
        rows(static_cast<int>(shape.seqlen_q)),
        keys(static_cast<int>(shape.seqlen_k)) {}

  // Rows before this one see nothing; behind it every row sees something if there are keys.
  FLAGATTN_HOST_DEVICE constexpr int first_seeing_row() const { return end_diagonal > 0 ? 0 : 1 - end_diagonal; }

  // The tiles of keys that some row of a tile of queries sees: those whose blocks add to its gradient.
  FLAGATTN_HOST_DEVICE constexpr TileRange key_tiles(int query_tile, int block_m, int block_n) const {
    const int first_row = query_tile * block_m;
    const int end_row = first_row + block_m < rows ? first_row + block_m : rows;
    const int first = first_row + first_diagonal > 0 ? first_row + first_diagonal : 0;
    const int end = end_row - 1 + end_diagonal < keys ? end_row - 1 + end_diagonal : keys;
    if (end <= first || end_row <= first_row) return {0, 0};
    return {first / block_n, (end - 1) / block_n + 1};
  }

  // The tiles of queries with a row that sees some key of a tile of keys.
  FLAGATTN_HOST_DEVICE constexpr TileRange query_tiles(int key_tile, int block_m, int block_n) const {
    const int first_key = key_tile * block_n;
    const int end_key = first_key + block_n < keys ? first_key + block_n : keys;
    const int first = first_key - end_diagonal + 1 > 0 ? first_key - end_diagonal + 1 : 0;
    const int end = end_key - first_diagonal < rows ? end_key - first_diagonal : rows;
    if (end <= first || end_key <= first_key) return {0, 0};
    return {first / block_m, (end - 1) / block_m + 1};
  }

  // Whether every row of a tile sees every key of the other: no mask is needed.
  FLAGATTN_HOST_DEVICE constexpr bool covers(int first_row, int block_m, int first_key, int block_n) const {
    return first_key + block_n <= keys && first_key - (first_row + block_m - 1) >= first_diagonal &&
           first_key + block_n - 1 - first_row < end_diagonal;
  }
};

// Block -> (key tile, key/value head, batch). The first key tiles come first: under a causal mask they are the longest,
// and a block adds to the gradients of queries after those of lower tiles, which must have started before it.
struct BackwardSchedule {
  int key_tiles;
  int heads_k;
  int sequences;

  struct Work {
    int key_tile;
    int head_k;
    int sequence;
  };

  constexpr int64_t blocks() const { return int64_t{key_tiles} * heads_k * sequences; }

  FLAGATTN_HOST_DEVICE constexpr Work work_of(int block) const {
    const int pairs = heads_k * sequences;
    const int pair = block % pairs;
    return {block / pairs, pair % heads_k, pair / heads_k};
  }
};

constexpr BackwardSchedule backward_schedule(const AttentionParams& params, int block_n) {
  return {static_cast<int>((params.seqlen_k + block_n - 1) / block_n), static_cast<int>(params.heads_k),
          static_cast<int>(params.batch)};
}

// Block -> (query tile, query head, batch) of the kernel that goes before. Packed problems have one more "sequence"
// than their batch: the rows behind the last one.
struct RowsSchedule {
  int query_tiles;
  int heads_q;
  int sequences;

  struct Work {
    int query_tile;
    int head;
    int sequence;
  };

  constexpr int64_t blocks() const { return int64_t{query_tiles} * heads_q * sequences; }

  FLAGATTN_HOST_DEVICE constexpr Work work_of(int block) const {
    const int pair = block / query_tiles;
    return {block % query_tiles, pair % heads_q, pair / heads_q};
  }
};

constexpr RowsSchedule rows_schedule(const AttentionParams& params, int block_m) {
  const int query_tiles = static_cast<int>((params.seqlen_q + block_m - 1) / block_m);
  return {query_tiles == 0 && params.is_packed() ? 1 : query_tiles, static_cast<int>(params.heads_q),
          static_cast<int>(params.batch + params.is_packed())};
}

// What the kernels tell each other, per query head and query tile:
//   statistics  2 block_m floats: LSE times log2(e), +inf for rows that take no gradient; then delta
//   turns       a counter per warp of the blocks that have added their share of dQ
//   dq          block_m * head dim floats, in the order of the warps' registers; only where there are several key tiles
struct BackwardWorkspace {
  int64_t query_tiles;         // per head, of all sequences
  int64_t tiles_per_sequence;  // dense
  int block_m;
  int warps;
  int kernel_head_dim;
  bool has_partial_dq;
  float* statistics;
  uint32_t* turns;
  float* dq;

  // Packed sequences may begin anywhere: each leaves at most one tile partly empty.
  FLAGATTN_HOST_DEVICE constexpr int64_t tile_of(bool packed, int sequence, int first_row, int head, int tile) const {
    const int64_t first = packed ? first_row / block_m + sequence : sequence * tiles_per_sequence;
    return head * query_tiles + first + tile;
  }
  FLAGATTN_HOST_DEVICE constexpr int64_t statistics_of(int64_t tile) const { return tile * 2 * block_m; }
  FLAGATTN_HOST_DEVICE constexpr int64_t turns_of(int64_t tile) const { return tile * warps; }
  FLAGATTN_HOST_DEVICE constexpr int64_t dq_of(int64_t tile) const { return tile * block_m * kernel_head_dim; }

  static BackwardWorkspace of(const AttentionParams& params) {
    BackwardWorkspace workspace = {};
    workspace.kernel_head_dim = backward_kernel_head_dim(params.head_dim, params.head_dim_v);
    const BackwardTile tile = backward_tile(workspace.kernel_head_dim);
    workspace.block_m = tile.block_m;
    workspace.warps = tile.warps;
    workspace.tiles_per_sequence = (params.seqlen_q + tile.block_m - 1) / tile.block_m;
    workspace.query_tiles =
        params.is_packed() ? params.total_q / tile.block_m + params.batch : workspace.tiles_per_sequence * params.batch;
    workspace.has_partial_dq = params.seqlen_k > tile.block_n;
    return workspace;
  }

  int64_t floats(const AttentionParams& params) const {
    const int64_t tiles = params.heads_q * query_tiles;
    return statistics_of(tiles) + turns_of(tiles) + (has_partial_dq ? dq_of(tiles) : 0);
  }

  // `memory` begins at a multiple of 16 bytes; so does then every tile's part.
  void place(const AttentionParams& params, float* memory) {
    const int64_t tiles = params.heads_q * query_tiles;
    statistics = memory;
    turns = reinterpret_cast<uint32_t*>(memory + statistics_of(tiles));
    dq = memory + statistics_of(tiles) + turns_of(tiles);
  }
};

}  // namespace flagattn::sm80
