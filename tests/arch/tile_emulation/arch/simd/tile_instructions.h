// The twin of csrc/arch/simd/tile_instructions.h for hosts without tiles: every instruction written out after Intel's
// description. For tests only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace flagattn::FLAGATTN_ISA::instructions {

struct TileState {
  uint8_t config[64];
  alignas(64) uint8_t rows[8][16][64];

  int num_rows(int tile) const { return config[48 + tile]; }
  int row_bytes(int tile) const { return config[16 + 2 * tile] | config[17 + 2 * tile] << 8; }
  bool configured() const { return config[0] == 1; }
};
inline TileState& tile_state() {
  static thread_local TileState state{};
  return state;
}

// As the processor does, where nothing is configured.
inline void require_config() {
  if (!tile_state().configured()) __builtin_trap();
}

inline void load_config(const void* config) {
  std::memset(&tile_state(), 0, sizeof(TileState));
  std::memcpy(tile_state().config, config, 64);
}
inline void store_config(void* config) { std::memcpy(config, tile_state().config, 64); }
inline void release() { std::memset(&tile_state(), 0, sizeof(TileState)); }

inline void write_row(int tile, int row, const void* from) {
  uint8_t* to = tile_state().rows[tile][row];
  std::memset(to, 0, 64);
  if (from != nullptr) std::memcpy(to, from, static_cast<size_t>(tile_state().row_bytes(tile)));
}

template <int kTile>
inline void zero() {
  require_config();
  for (int row = 0; row < 16; ++row) write_row(kTile, row, nullptr);
}
template <int kTile>
inline void load(const void* rows, int64_t stride) {
  require_config();
  const int count = tile_state().num_rows(kTile);
  for (int row = 0; row < 16; ++row) {
    write_row(kTile, row, row < count ? static_cast<const char*>(rows) + row * stride : nullptr);
  }
}
template <int kTile>
inline void store(void* rows, int64_t stride) {
  require_config();
  const TileState& state = tile_state();
  for (int row = 0; row < state.num_rows(kTile); ++row) {
    std::memcpy(static_cast<char*>(rows) + row * stride, state.rows[kTile][row],
                static_cast<size_t>(state.row_bytes(kTile)));
  }
}

inline float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
inline float widened_half(const uint8_t* half) {
  const uint32_t bits = static_cast<uint32_t>(half[0] | half[1] << 8) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return flushed(wide);
}

template <int kSum, int kA, int kB>
inline void multiply_bf16() {
  require_config();
  TileState& state = tile_state();
  const int depth = state.row_bytes(kA) / 4, columns = state.row_bytes(kSum) / 4;
  for (int m = 0; m < state.num_rows(kSum); ++m) {
    for (int n = 0; n < columns; ++n) {
      float sums[2] = {0.0f, 0.0f};
      for (int k = 0; k < depth; ++k) {
        for (int parity = 0; parity < 2; ++parity) {
          const float a = widened_half(&state.rows[kA][m][4 * k + 2 * parity]);
          const float b = widened_half(&state.rows[kB][k][4 * n + 2 * parity]);
          sums[parity] = flushed(std::fma(a, b, sums[parity]));
        }
      }
      float sum;
      uint8_t* at = &state.rows[kSum][m][4 * n];
      std::memcpy(&sum, at, 4);
      sum = flushed(flushed(sum) + flushed(sums[0] + sums[1]));
      std::memcpy(at, &sum, 4);
    }
  }
}

inline uint16_t rounded_half(float x) {
  x = flushed(x);
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (std::isnan(x)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline __m512i round_pairs(__m512 even, __m512 odd) {
  uint16_t halves[32];
  for (int i = 0; i < 16; ++i) halves[2 * i] = rounded_half(even[i]), halves[2 * i + 1] = rounded_half(odd[i]);
  return _mm512_loadu_si512(halves);
}
inline __m512i round_halves(__m512 first, __m512 second) {
  uint16_t halves[32];
  for (int i = 0; i < 16; ++i) halves[i] = rounded_half(first[i]), halves[16 + i] = rounded_half(second[i]);
  return _mm512_loadu_si512(halves);
}
inline __m512i load_halves(const void* from, int64_t n) {
  uint16_t halves[32] = {};
  std::memcpy(halves, from, 2 * static_cast<size_t>(n));
  return _mm512_loadu_si512(halves);
}
inline void interleave(__m512i even, __m512i odd, __m512i& first, __m512i& second) {
  uint16_t from[2][32], to[64];
  std::memcpy(from[0], &even, 64);
  std::memcpy(from[1], &odd, 64);
  for (int i = 0; i < 64; ++i) to[i] = from[i % 2][i / 2];
  first = _mm512_loadu_si512(to);
  second = _mm512_loadu_si512(to + 32);
}

}  // namespace flagattn::FLAGATTN_ISA::instructions
