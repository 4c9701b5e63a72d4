// What the backward kernels do with a problem: who visits which tiles, the order of blocks, the workspace. Pure
// functions of shapes.
#pragma once

#include <cstdint>

#include "arch/host_device.h"
#include "attention/cuda/sm80/backward_tiles.h"
#include "attention/mask.h"
#include "attention/params.h"

namespace flagattn::sm80 {

// Tiles [first, end); none where end <= first.
struct TileRange {
  int first;
  int end;
};

// What rows and keys of one sequence, or of one part of its keys, have to do with each other, in 32 bits: row i sees
// key j iff j - i lies in [first_diagonal, end_diagonal).
struct VisibleBand {
  int first_diagonal;
  int end_diagonal;
  int rows;
  int keys;

  FLAGATTN_HOST_DEVICE constexpr explicit VisibleBand(const PartShape& part)
      : first_diagonal(static_cast<int>(part.diagonals().begin)),
        end_diagonal(static_cast<int>(part.diagonals().end)),
        rows(static_cast<int>(part.shape.seqlen_q)),
        keys(part.diagonals().empty() ? 0 : static_cast<int>(part.shape.seqlen_k)) {}

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

// Block -> (key tile, part of the group, key/value head, batch). The first key tiles come first: under a causal mask
// they are the longest, and a block adds to the gradients of queries after those of lower tiles, which must have
// started before it. So must the lower parts of a group, to whose dK and dV it adds.
struct BackwardSchedule {
  int key_tiles;
  int heads_k;
  int sequences;
  int group_parts;

  struct Work {
    int key_tile;
    int head_k;
    int sequence;
    int group_part;
  };

  constexpr int64_t blocks() const { return int64_t{key_tiles} * heads_k * sequences * group_parts; }

  FLAGATTN_HOST_DEVICE constexpr Work work_of(int block) const {
    const int pairs = heads_k * sequences, of_tile = block % (pairs * group_parts);
    const int pair = of_tile % pairs;
    return {block / (pairs * group_parts), pair % heads_k, pair / heads_k, of_tile / pairs};
  }
};

// Into how many parts the query heads of a group are cut, each a block's: enough to give every multiprocessor of an
// H100 a block where one sequence's keys and heads do not. Neither the batch nor the GPU in use matters, since the
// order of the sums follows. Packed batches have several sequences, of lengths that only the device knows: their groups
// stay whole.
constexpr int backward_group_parts(const AttentionParams& params, int block_n) {
  constexpr int64_t kMultiprocessors = 132;
  const int64_t blocks = params.heads_k * ((params.seqlen_k + block_n - 1) / block_n);
  if (params.is_packed() || blocks == 0) return 1;
  const int64_t group = params.heads_q / params.heads_k, wanted = (kMultiprocessors + blocks - 1) / blocks;
  const int64_t heads = wanted < group ? group / wanted : 1;  // of a part
  return static_cast<int>((group + heads - 1) / heads);
}

constexpr BackwardSchedule backward_schedule(const AttentionParams& params, int block_n) {
  return {static_cast<int>((params.seqlen_k + block_n - 1) / block_n), static_cast<int>(params.heads_k),
          static_cast<int>(params.batch), backward_group_parts(params, block_n)};
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

  FLAGATTN_HOST_DEVICE constexpr int64_t blocks() const { return int64_t{query_tiles} * heads_q * sequences; }

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

// Block -> what it owns of the gradient of a bias. A dimension that the bias repeats is passed by every block as a
// whole.
struct BiasSchedule {
  int batch, heads, query_tiles, key_tiles;  // of the problem
  bool by_batch, by_head, by_row, by_key;    // the bias has this dimension

  struct Work {
    TileRange batch, heads, query_tiles, key_tiles;
  };

  constexpr int64_t blocks() const {
    return int64_t{by_batch ? batch : 1} * (by_head ? heads : 1) * (by_row ? query_tiles : 1) *
           (by_key ? key_tiles : 1);
  }

  FLAGATTN_HOST_DEVICE constexpr Work work_of(int block) const {
    Work work = {};
    work.key_tiles = take(by_key, key_tiles, block);
    work.query_tiles = take(by_row, query_tiles, block);
    work.heads = take(by_head, heads, block);
    work.batch = take(by_batch, batch, block);
    return work;
  }

 private:
  // One of `count`, whose number is the lowest digit of what is left of `block`; or all.
  FLAGATTN_HOST_DEVICE static constexpr TileRange take(bool one, int count, int& block) {
    if (!one) return {0, count};
    const int index = block % count;
    block /= count;
    return {index, index + 1};
  }
};

constexpr BiasSchedule bias_schedule(const AttentionBackwardParams& params, const BackwardTile& tile) {
  const AttentionParams& p = params.forward;
  const ScoresView& bias = params.dbias;
  return {static_cast<int>(p.batch),
          static_cast<int>(p.heads_q),
          static_cast<int>((p.seqlen_q + tile.block_m - 1) / tile.block_m),
          static_cast<int>((p.seqlen_k + tile.block_n - 1) / tile.block_n),
          bias.batch_stride != 0,
          bias.head_stride != 0,
          bias.row_stride != 0,
          bias.key_stride != 0};
}

// What the kernels tell each other, per query head and query tile:
//   statistics  2 block_m floats: LSE times log2(e), +inf for rows that take no gradient; then delta
// and for each part (near and far keys have a dQ of their own):
//   turns       a counter per warp of the blocks that have added their share of dQ
//   dq          block_m * head dim floats, in the order of the warps' registers; only where there are several key tiles
// Where groups are cut, per key/value head and key tile, for dV and the dK of each part:
//   key_turns   a counter per warp of the blocks that have added their share
//   key_sums    block_n * head dim floats, in the order of the warps' registers
struct BackwardWorkspace {
  int64_t query_tiles;         // per head, of all sequences
  int64_t tiles_per_sequence;  // dense
  int64_t all_tiles;
  int block_m;
  int block_n;
  int warps;
  int kernel_head_dim;
  int parts;
  bool has_partial_dq;
  int group_parts;
  int64_t key_gradients;  // of all key tiles, dV and each dK
  float* statistics;
  uint32_t* turns;
  float* dq;
  uint32_t* key_turns;
  float* key_sums;

  // Packed sequences may begin anywhere: each leaves at most one tile partly empty.
  FLAGATTN_HOST_DEVICE constexpr int64_t tile_of(bool packed, int sequence, int first_row, int head, int tile) const {
    const int64_t first = packed ? first_row / block_m + sequence : sequence * tiles_per_sequence;
    return head * query_tiles + first + tile;
  }
  FLAGATTN_HOST_DEVICE constexpr int64_t statistics_of(int64_t tile) const { return tile * 2 * block_m; }
  FLAGATTN_HOST_DEVICE constexpr int64_t turns_of(int64_t tile, int part) const {
    return (part * all_tiles + tile) * warps;
  }
  FLAGATTN_HOST_DEVICE constexpr int64_t dq_of(int64_t tile, int part) const {
    return (part * all_tiles + tile) * block_m * kernel_head_dim;
  }

  // Of gradient `which` of a tile: 0 is dV, 1 and 2 are the dK of the parts.
  FLAGATTN_HOST_DEVICE constexpr int64_t key_gradient_of(int64_t head, int64_t key_tiles, int key_tile,
                                                         int which) const {
    return (head * key_tiles + key_tile) * (1 + parts) + which;
  }

  static BackwardWorkspace of(const AttentionParams& params, const BackwardKernel& kernel) {
    BackwardWorkspace workspace = {};
    workspace.kernel_head_dim = kernel.head_dim;
    const BackwardTile tile = kernel.tile();
    workspace.block_m = tile.block_m;
    workspace.block_n = tile.block_n;
    workspace.warps = tile.warps;
    workspace.parts = params.is_piecewise() ? 2 : 1;
    workspace.tiles_per_sequence = (params.seqlen_q + tile.block_m - 1) / tile.block_m;
    workspace.query_tiles =
        params.is_packed() ? params.total_q / tile.block_m + params.batch : workspace.tiles_per_sequence * params.batch;
    workspace.all_tiles = params.heads_q * workspace.query_tiles;
    workspace.has_partial_dq = params.seqlen_k > tile.block_n;
    workspace.group_parts = backward_group_parts(params, tile.block_n);
    const int64_t key_tiles = params.heads_k * params.batch * ((params.seqlen_k + tile.block_n - 1) / tile.block_n);
    workspace.key_gradients = workspace.group_parts > 1 ? key_tiles * (1 + workspace.parts) : 0;
    return workspace;
  }

  int64_t floats() const {
    return statistics_of(all_tiles) + turns_of(0, parts) + (has_partial_dq ? dq_of(0, parts) : 0) +
           key_gradients * (warps + block_n * kernel_head_dim);
  }

  // `memory` begins at a multiple of 16 bytes; so does then every tile's part.
  void place(float* memory) {
    statistics = memory;
    turns = reinterpret_cast<uint32_t*>(memory + statistics_of(all_tiles));
    dq = memory + statistics_of(all_tiles) + turns_of(0, parts);
    float* behind = dq + (has_partial_dq ? dq_of(0, parts) : 0);
    key_turns = reinterpret_cast<uint32_t*>(behind);
    key_sums = behind + key_gradients * warps;
  }
};

}  // namespace flagattn::sm80
