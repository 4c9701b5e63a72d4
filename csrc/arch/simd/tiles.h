// Matrix products in the tile registers of the amx level: C[m][n] += sum over k of A[m][2k] B[k][2n] + A[m][2k+1]
// B[k][2n+1], bf16 into fp32. Included where a kernel of that level multiplies.
//
// A holds up to 16 rows of 32 bf16 as they lie in memory. B holds up to 16 rows of 16 pairs: row k has, for every
// column n, elements 2k and 2k + 1 of the sum's index side by side. C holds up to 16 rows of 16 floats.
#pragma once

#include "arch/simd.h"
#include "arch/simd/tile_instructions.h"

namespace flagattn::FLAGATTN_ISA {

inline constexpr int kTileRows = 16;   // of A and C; pairs of B
inline constexpr int kTileCols = 16;   // of B and C
inline constexpr int kTileDepth = 32;  // bf16 that one product sums over
inline constexpr int kTileRegisters = 8;

// Tiles of these shapes; what other code of the thread had configured is configured again in the end, its contents
// lost.
class TileScope {
 public:
  // All registers are whole, but that those of the bit set `short_tiles` have `short_rows` rows.
  explicit TileScope(unsigned short_tiles = 0, int short_rows = kTileRows) {
    instructions::store_config(before_);
    Config config{};
    config.palette = 1;
    for (int tile = 0; tile < kTileRegisters; ++tile) {
      config.row_bytes[tile] = 64;
      config.rows[tile] = static_cast<uint8_t>((short_tiles >> tile & 1) != 0 ? short_rows : kTileRows);
    }
    instructions::load_config(&config);
  }
  ~TileScope() {
    if (before_[0] == 0) {
      instructions::release();
    } else {
      instructions::load_config(before_);
    }
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  struct Config {
    uint8_t palette, start_row, unused[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  static_assert(sizeof(Config) == 64);

  alignas(64) char before_[64];
};

// Register number kTile.
template <int kTile>
struct Tile {
  static_assert(0 <= kTile && kTile < kTileRegisters);

  static FLAGATTN_INLINE void zero() { instructions::zero<kTile>(); }
  // Rows lie `stride` elements apart.
  template <typename T>
  static FLAGATTN_INLINE void load(const T* rows, int64_t stride) {
    instructions::load<kTile>(rows, stride * static_cast<int64_t>(sizeof(T)));
  }
  static FLAGATTN_INLINE void store(float* rows, int64_t stride) {
    instructions::store<kTile>(rows, stride * static_cast<int64_t>(sizeof(float)));
  }
  // += A B
  template <int kA, int kB>
  static FLAGATTN_INLINE void add_product() {
    instructions::multiply_bf16<kTile, kA, kB>();
  }
};

// Dwords of two bf16, lower half first: element i of `even` and of `odd`, and elements 2i and 2i + 1 of both vectors
// one after the other.
FLAGATTN_INLINE F32 pairs_of(F32 even, F32 odd) {
  return {_mm512_castsi512_ps(instructions::round_pairs(even.reg, odd.reg))};
}
FLAGATTN_INLINE F32 pairs_in_order(F32 first, F32 second) {
  return {_mm512_castsi512_ps(instructions::round_halves(first.reg, second.reg))};
}

// A row of B: column n has even[n] and odd[n], rounded to bf16.
FLAGATTN_INLINE void store_pairs(F32 even, F32 odd, BFloat16* to) {
  pairs_of(even, odd).store(reinterpret_cast<float*>(to));
}

// 32 bf16 as 16 pairs, to be moved about only.
FLAGATTN_INLINE F32 load_as_pairs(const BFloat16* p) { return {_mm512_loadu_ps(p)}; }
FLAGATTN_INLINE void store_as_pairs(F32 pairs, BFloat16* p) { _mm512_storeu_ps(p, pairs.reg); }
// first[i] = {even[i], odd[i]}, second[i] = {even[16 + i], odd[16 + i]}.
FLAGATTN_INLINE void interleave(F32 even, F32 odd, F32& first, F32& second) {
  __m512i low, high;
  instructions::interleave(_mm512_castps_si512(even.reg), _mm512_castps_si512(odd.reg), low, high);
  first = {_mm512_castsi512_ps(low)};
  second = {_mm512_castsi512_ps(high)};
}

// Half a row of A is `first`, the other half `second`, rounded to bf16.
FLAGATTN_INLINE void store_halves(F32 first, F32 second, BFloat16* to) {
  pairs_in_order(first, second).store(reinterpret_cast<float*>(to));
}

// A row of A from the n elements that are left of a longer one, zeros behind them.
FLAGATTN_INLINE void copy_row(const BFloat16* from, int64_t n, BFloat16* to) {
  _mm512_storeu_si512(to, n >= kTileDepth ? _mm512_loadu_si512(from) : instructions::load_halves(from, n));
}

// Two rows of a matrix [k][n], rows 2k and 2k + 1, become row k of two neighbouring B tiles: columns n .. n + 15 and
// n + 16 .. n + 31.
FLAGATTN_INLINE void store_interleaved(const BFloat16* even, const BFloat16* odd, BFloat16* first, BFloat16* second) {
  __m512i low, high;
  instructions::interleave(_mm512_loadu_si512(even), _mm512_loadu_si512(odd), low, high);
  _mm512_storeu_si512(first, low);
  _mm512_storeu_si512(second, high);
}

}  // namespace flagattn::FLAGATTN_ISA
