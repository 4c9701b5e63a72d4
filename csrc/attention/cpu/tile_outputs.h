// O^T[d][column] = rescale * O^T + sum over the keys of a tile of V[key][d] * P^T[key][column], by products of tiles:
// one chain of four, 32 keys each, from zero.
#pragma once

#include <cstdint>
#include <cstring>

#include "arch/simd.h"
#include "arch/simd/tiles.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/outputs.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/row_list.h"
#include "attention/cpu/tile_blocks.h"
#include "attention/cpu/tile_pack.h"
#include "attention/cpu/tile_softmax.h"

namespace flagattn::FLAGATTN_ISA {

struct TileValues {
  BFloat16* tiles;
  int32_t num_keys;
  int64_t head_dim;                   // as it is
  const BFloat16* rows[kCpuKeyTile];  // where they came from
};

// The vectors and steps of 32 keys that the runs of a tile cover.
struct TileShare {
  int first_vector, num_vectors;
  int64_t begin, end;  // steps
};

inline TileShare share_of(const Runs& runs) {
  int first = kNV, end = 0;
  for (const Run& run : runs) {
    if (run.first_vector < first) first = run.first_vector;
    if (run.first_vector + run.num_vectors > end) end = run.first_vector + run.num_vectors;
  }
  return {first, end - first, runs.at[0].begin / kTileDepth, depth_steps(runs.at[runs.count - 1].end)};
}

// Up to sixteen rows of the sum join those of the outputs; without what was there where it is the first tile.
template <int NV, bool kFirst>
FLAGATTN_INLINE void join_block(const float* sums, int64_t rows, const F32* rescale, float* out) {
  F32 scale[NV];
  FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) scale[v] = rescale[v];
  for (int64_t r = 0; r < rows; ++r) {
    FLAGATTN_UNROLL for (int v = 0; v < NV; ++v) {
      const int64_t at = r * kPanel + v * F32::kLanes;
      const F32 sum = F32::load(sums + at);
      (kFirst ? sum : fma(F32::load(out + at), scale[v], sum)).store(out + at);
    }
  }
}

// Sixteen rows of the sum after another.
template <int NV, bool kFirst>
FLAGATTN_KERNEL void add_in_tiles(const TileValues& values, const TileShare& share, const BFloat16* weights,
                                  const F32* rescale, float* outputs, RowList& ahead) {
  alignas(64) float sums[2][kTileRows * kPanel];
  const int64_t blocks = row_blocks(values.head_dim), rows = padded_dim(values.head_dim);
  const int column = first_column(share.first_vector);
  const TileFactors factors{values.tiles + share.begin * kTileHalves, kTileDepth, kTileHalves,
                            weights + (share.begin * kTileRows * kPanel + column) * 2, share.end - share.begin};
  multiply_blocks<NV>(
      factors, kTileSteps * kTileHalves, blocks, [&](int64_t block) { return sums[block % 2]; },
      [&](int64_t block) {
        const int64_t row = block * kTileRows, rest = rows - row;
        join_block<NV, kFirst>(sums[block % 2], rest < kTileRows ? rest : kTileRows, rescale + share.first_vector,
                               outputs + row * kPanel + column);
        ahead.step();
      });
}

// Values that are not finite -----------------------------------------------------------------------------------------
//
// Weight 0 times NaN is NaN, and the weights of one key lie beside those of another in a product. Such values count as
// zero in the products of a tile; to rows that see their keys they are added one by one. Any order of adding them gives
// the same: an infinity of their sign, or NaN.

// Three operations for 32 values: what is not finite stays so with other bits behind.
inline bool make_finite(const TileValues& values) {
  const int64_t count = row_blocks(values.head_dim) * kTileSteps * kTileHalves;
  const int64_t steps = depth_steps(values.num_keys);
  const F32 zero = F32::zero();
  F32 rest[2] = {zero, zero};
  const auto for_each_row = [&](auto&& body) {
    for (int64_t tile = 0; tile < count / kTileHalves; ++tile) {
      if (tile % kTileSteps >= steps) continue;
      for (int row = 0; row < kTileRows; ++row) body(values.tiles + tile * kTileHalves + row * kTileDepth);
    }
  };
  for_each_row([&](const BFloat16* row) {
    const F32 pairs = load_as_pairs(row);
    rest[0] = fma(even_of_pairs(pairs.reg), zero, rest[0]);
    rest[1] = fma(odd_of_pairs(pairs.reg), zero, rest[1]);
  });
  if ((rest[0] + rest[1]).sum() == 0.0f) return true;
  for_each_row([&](BFloat16* row) {
    for (int i = 0; i < kTileDepth; ++i) {
      if ((row[i].bits & 0x7f80) == 0x7f80) row[i].bits = 0;
    }
  });
  return false;
}

// sums[d][column] += what of the values is not finite, for the keys that the column sees.
inline void add_what_is_not_finite(const TileValues& values, const TileShare& share, const SeenKeys& seen,
                                   const BFloat16* weights, float* sums) {
  const int32_t begin = static_cast<int32_t>(share.begin) * kTileDepth;
  const int32_t stop = static_cast<int32_t>(share.end) * kTileDepth;
  const int32_t end = stop < values.num_keys ? stop : values.num_keys;
  for (int32_t key = begin; key < end; ++key) {
    for (int64_t d = 0; d < values.head_dim; ++d) {
      const BFloat16 value = values.rows[key][d];
      if ((value.bits & 0x7f80) != 0x7f80) continue;
      const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
      float wide;
      std::memcpy(&wide, &bits, sizeof(wide));
      for (int v = share.first_vector; v < share.first_vector + share.num_vectors; ++v) {
        const F32 pairs = load_as_pairs(weights + pairs_at(key, first_column(v)));
        const F32 weight = key % 2 == 0 ? even_of_pairs(pairs.reg) : odd_of_pairs(pairs.reg);
        float* at = sums + d * kPanel + first_column(v);
        select(seen.of(key, v), fma(F32::set1(wide), weight, F32::load(at)), F32::load(at)).store(at);
      }
    }
  }
}

}  // namespace flagattn::FLAGATTN_ISA
