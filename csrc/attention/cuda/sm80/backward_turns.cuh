// dQ of a tile of queries: every block that sees it adds its share in fp32, one after the other in the order of the key
// tiles. The same warps of all blocks own the same part of the tile, so they take turns by themselves, without the rest
// of their blocks; the sum lies in memory as it lies in their registers.
#pragma once

#include <cstring>

#include "arch/ptx/atomic.cuh"
#include "arch/ptx/copy.cuh"
#include "arch/ptx/warp.cuh"
#include "attention/cuda/sm80/backward_block.cuh"

namespace flagattn::sm80 {

template <typename Traits>
struct QueryTurn {
  uint32_t* blocks_done;  // of the warp's part
  float* partial;         // of the warp's part
  int index;              // of this block among those that add
  bool is_last;
  int lane;

  FLAGATTN_DEVICE QueryTurn(const BackwardArguments& arguments, const BackwardBlock& block, int head, int tile,
                            int thread)
      : lane(thread % ptx::kWarpSize) {
    const BackwardWorkspace& workspace = arguments.workspace;
    const int64_t place = block.workspace_tile(arguments.params.forward, workspace, head, tile);
    const int warp = thread / ptx::kWarpSize;
    blocks_done = workspace.turns + workspace.turns_of(place) + warp;
    partial = workspace.dq + workspace.dq_of(place) + warp * (Traits::kBlockM * Traits::kHeadDim / Traits::kWarps);
    const TileRange key_tiles = block.band.key_tiles(tile, Traits::kBlockM, Traits::kBlockN);
    index = planted(Fault::kWrongOrder) ? key_tiles.end - 1 - block.key_tile : block.key_tile - key_tiles.first;
    is_last = index == key_tiles.end - key_tiles.first - 1;
  }

  // Waits for the blocks of lower key tiles and starts from their sum.
  FLAGATTN_DEVICE void take(typename Traits::QueryGradients& sums) const {
    if (index > 0) {
      if (lane == 0 && !planted(Fault::kMissingGlobalWait)) ptx::global_wait(blocks_done, static_cast<uint32_t>(index));
      ptx::sync_warp();
    }
    for_each_four([&](int i, int j, float* place) {
      ptx::Bytes16 four = {};
      if (index > 0) four = ptx::load_global_written_16(place);
      std::memcpy(sums[i][j], &four, sizeof four);
    });
  }

  // Leaves the sum to the next block.
  FLAGATTN_DEVICE void pass_on(const typename Traits::QueryGradients& sums) const {
    for_each_four([&](int i, int j, float* place) {
      ptx::Bytes16 four;
      std::memcpy(&four, sums[i][j], sizeof four);
      ptx::store_global_16(place, four);
    });
    if (!planted(Fault::kMissingWarpSync)) ptx::sync_warp();
    if (lane == 0 && !planted(Fault::kMissingSignal)) ptx::signal(blocks_done);
  }

 private:
  template <typename Body>
  FLAGATTN_DEVICE void for_each_four(Body&& body) const {
    constexpr int kColumnTiles = Traits::kWarpQueryColumns / 8;
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < Traits::kRowTiles; ++i) {
      FLAGATTN_UNROLL_ALL
      for (int j = 0; j < kColumnTiles; ++j) body(i, j, partial + ((i * kColumnTiles + j) * ptx::kWarpSize + lane) * 4);
    }
  }
};

}  // namespace flagattn::sm80
