// Sums that several blocks add to in fp32, one after the other in a fixed order: dQ of a tile of queries in the order
// of the key tiles that see it, and where a group is cut, dK and dV in the order of its parts. The same warps of all
// blocks own the same part of the sum, so they take turns by themselves, without the rest of their blocks; the sum lies
// in memory as it lies in their registers.
#pragma once

#include <cstring>

#include "arch/ptx/atomic.cuh"
#include "arch/ptx/copy.cuh"
#include "arch/ptx/warp.cuh"
#include "attention/cuda/sm80/backward_block.cuh"

namespace flagattn::sm80 {

struct Turn {
  uint32_t* blocks_done;  // of the warp's part
  float* partial;         // of the warp's part
  int index;              // of this block among those that add
  bool is_last;
  int lane;

  // Waits for the blocks before and starts from their sum.
  template <int kRowTiles, int kColumnTiles>
  FLAGATTN_DEVICE void take(float (&sums)[kRowTiles][kColumnTiles][4]) const {
    wait();
    for_each_four(sums, [&](float(&four)[4], float* place) {
      ptx::Bytes16 bytes = {};
      if (index > 0) bytes = ptx::load_global_written_16(place);
      std::memcpy(four, &bytes, sizeof bytes);
    });
  }

  // Waits for the blocks before and adds their sum.
  template <int kRowTiles, int kColumnTiles>
  FLAGATTN_DEVICE void add_to(float (&sums)[kRowTiles][kColumnTiles][4]) const {
    if (index == 0) return;
    wait();
    for_each_four(sums, [&](float(&four)[4], float* place) {
      const ptx::Bytes16 bytes = ptx::load_global_written_16(place);
      float others[4];
      std::memcpy(others, &bytes, sizeof bytes);
      FLAGATTN_UNROLL_ALL
      for (int e = 0; e < 4; ++e) four[e] = others[e] + four[e];
    });
  }

  // Leaves the sum to the next block.
  template <int kRowTiles, int kColumnTiles>
  FLAGATTN_DEVICE void pass_on(float (&sums)[kRowTiles][kColumnTiles][4]) const {
    for_each_four(sums, [&](float(&four)[4], float* place) {
      ptx::Bytes16 bytes;
      std::memcpy(&bytes, four, sizeof bytes);
      ptx::store_global_16(place, bytes);
    });
    if (!planted(Fault::kMissingWarpSync)) ptx::sync_warp();
    if (lane == 0 && !planted(Fault::kMissingSignal)) ptx::signal(blocks_done);
  }

 private:
  FLAGATTN_DEVICE void wait() const {
    if (index == 0) return;
    if (lane == 0 && !planted(Fault::kMissingGlobalWait)) ptx::global_wait(blocks_done, static_cast<uint32_t>(index));
    ptx::sync_warp();
  }

  template <int kRowTiles, int kColumnTiles, typename Body>
  FLAGATTN_DEVICE void for_each_four(float (&sums)[kRowTiles][kColumnTiles][4], Body&& body) const {
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < kRowTiles; ++i) {
      FLAGATTN_UNROLL_ALL
      for (int j = 0; j < kColumnTiles; ++j) {
        body(sums[i][j], partial + ((i * kColumnTiles + j) * ptx::kWarpSize + lane) * 4);
      }
    }
  }
};

// Of a warp at dQ of a tile.
template <typename Traits>
FLAGATTN_DEVICE Turn query_turn(const BackwardArguments& arguments, const BackwardBlock& block, int head, int tile,
                                int thread) {
  const BackwardWorkspace& workspace = arguments.workspace;
  const int64_t place = block.workspace_tile(arguments.params.forward, workspace, head, tile);
  const int warp = thread / ptx::kWarpSize;
  const TileRange key_tiles = block.band().key_tiles(tile, Traits::kBlockM, Traits::kBlockN);
  const int index = planted(Fault::kWrongOrder) ? key_tiles.end - 1 - block.key_tile : block.key_tile - key_tiles.first;
  return {
      workspace.turns + workspace.turns_of(place, block.part) + warp,
      workspace.dq + workspace.dq_of(place, block.part) + warp * (Traits::kBlockM * Traits::kHeadDim / Traits::kWarps),
      index, index == key_tiles.end - key_tiles.first - 1, thread % ptx::kWarpSize};
}

// At one of the gradients of the block's keys and values (BackwardWorkspace).
template <typename Traits>
FLAGATTN_DEVICE Turn key_turn(const BackwardArguments& arguments, const BackwardBlock& block, int which, int thread) {
  const BackwardWorkspace& workspace = arguments.workspace;
  const int64_t head = int64_t{block.sequence} * arguments.schedule.heads_k + block.head_k;
  const int64_t place = workspace.key_gradient_of(head, arguments.schedule.key_tiles, block.key_tile, which);
  const int warp = thread / ptx::kWarpSize;
  return {workspace.key_turns + place * Traits::kWarps + warp,
          workspace.key_sums + (place * Traits::kWarps + warp) * (Traits::kBlockN * Traits::kHeadDim / Traits::kWarps),
          block.group_part, block.group_part == workspace.group_parts - 1, thread % ptx::kWarpSize};
}

}  // namespace flagattn::sm80
