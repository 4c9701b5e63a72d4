// Which weights of a panel against a key tile are dropped (arch/philox.h, DropoutParams): the columns in the lanes,
// four keys to a counter.
#pragma once

#include <cstdint>

#include "arch/philox.h"
#include "arch/simd.h"
#include "attention/cpu/micro_kernel.h"
#include "attention/cpu/panel_mask.h"
#include "attention/cpu/score_terms.h"
#include "attention/params.h"

namespace flagattn::FLAGATTN_ISA {

// The random words of four keys from 4 * quad on, in every column. Rounds outside, columns inside: the compiler makes
// vectors of them.
FLAGATTN_KERNEL void random_words(const uint32_t* rows, const uint32_t* low, const uint32_t* high, uint32_t quad,
                                  uint64_t seed, uint32_t (&words)[4][kPanel]) {
  for (int c = 0; c < kPanel; ++c) {
    words[0][c] = quad;
    words[1][c] = rows[c];
    words[2][c] = low[c];
    words[3][c] = high[c];
  }
  auto key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < philox_constants::kRounds; ++round) {
    for (int c = 0; c < kPanel; ++c) philox_round(words[0][c], words[1][c], words[2][c], words[3][c], key0, key1);
    key0 += philox_constants::kWeyl0;
    key1 += philox_constants::kWeyl1;
  }
}

// factors[key][column] = 0 where the weight is dropped, else `scale`; for whole strips of keys. Tiles start at
// multiples of four.
inline void write_dropout(const AttentionParams& params, int64_t sequence, const Column* columns, int count,
                          int64_t first_key, int64_t num_keys, float* factors) {
  const DropoutParams& dropout = params.dropout;
  const auto seed = static_cast<uint64_t>(dropout.rng_state[0]);
  alignas(64) uint32_t rows[kPanel] = {}, low[kPanel] = {}, high[kPanel] = {};
  for (int c = 0; c < count; ++c) {
    const auto stream = static_cast<uint64_t>(dropout.rng_state[1]) +
                        static_cast<uint64_t>(sequence * params.heads_q + columns[c].head);
    rows[c] = static_cast<uint32_t>(columns[c].row);
    low[c] = static_cast<uint32_t>(stream);
    high[c] = static_cast<uint32_t>(stream >> 32);
  }
  alignas(64) uint32_t words[4][kPanel];
  for (int64_t key = 0; key < padded_dim(num_keys); key += 4) {
    random_words(rows, low, high, static_cast<uint32_t>((first_key + key) / 4), seed, words);
    for (int i = 0; i < 4; ++i) {
      float* at = factors + (key + i) * kPanel;
      for (int c = 0; c < kPanel; ++c) at[c] = words[i][c] <= dropout.last_dropped ? 0.0f : dropout.scale;
    }
  }
}

inline void drop_weights(const Run& run, const float* factors, float* weights) {
  const int column = first_column(run.first_vector), width = run.num_vectors * F32::kLanes;
  for (int32_t key = run.begin; key < run.end; ++key) {
    const int64_t at = key * kPanel + column;
    for (int c = 0; c < width; c += F32::kLanes) {
      (F32::load(weights + at + c) * F32::load(factors + at + c)).store(weights + at + c);
    }
  }
}

}  // namespace flagattn::FLAGATTN_ISA
