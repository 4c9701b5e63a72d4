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

// The keys of Philox's rounds, and its two factors.
struct PhiloxKeys {
  U64 first[philox_constants::kRounds], second[philox_constants::kRounds];
  U64 multiplier0, multiplier1;

  explicit PhiloxKeys(uint64_t seed)
      : multiplier0(U64::set1(philox_constants::kMultiplier0)), multiplier1(U64::set1(philox_constants::kMultiplier1)) {
    auto key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < philox_constants::kRounds; ++round) {
      first[round] = U64::set1(key0);
      second[round] = U64::set1(key1);
      key0 += philox_constants::kWeyl0;
      key1 += philox_constants::kWeyl1;
    }
  }
};

// The random words of some columns. Only the first word of the counter, the quad of keys, differs between the calls of
// `words`: what the first two rounds make of the others is worked out once.
struct PhiloxColumns {
  U64 mixed2;           // of round 1: c3 ^ key, which the quad's product joins to become c2
  U64 mixed0, mixed2b;  // of round 2: c1 ^ key and the product of c0 ^ key, which join to become c0 and c2
  U64 word3;            // after round 2

  static FLAGATTN_INLINE PhiloxColumns of(U64 row, U64 low, U64 high, const PhiloxKeys& keys) {
    const U64 product1 = multiply_low(low, keys.multiplier1);
    const U64 product0 = multiply_low(high_half(product1) ^ row ^ keys.first[0], keys.multiplier0);
    return {high ^ keys.second[0], product1 ^ keys.first[1], high_half(product0) ^ keys.second[1], product0};
  }

  // Word i of the four in the lower halves of words[i].
  FLAGATTN_INLINE void words(uint32_t quad, const PhiloxKeys& keys, U64 (&words)[4]) const {
    const uint64_t product = static_cast<uint64_t>(philox_constants::kMultiplier0) * quad;
    const U64 product1 = multiply_low(U64::set1(static_cast<uint32_t>(product >> 32)) ^ mixed2, keys.multiplier1);
    U64 c0 = high_half(product1) ^ mixed0, c1 = product1;
    U64 c2 = U64::set1(static_cast<uint32_t>(product)) ^ mixed2b, c3 = word3;
    FLAGATTN_UNROLL for (int round = 2; round < philox_constants::kRounds; ++round) {
      const U64 p0 = multiply_low(c0, keys.multiplier0), p1 = multiply_low(c2, keys.multiplier1);
      c0 = high_half(p1) ^ (c1 ^ keys.first[round]);
      c2 = high_half(p0) ^ (c3 ^ keys.second[round]);
      c1 = p1;
      c3 = p0;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
  }
};

// The factors of one vector of columns against the keys of a tile: not inlined, so that its state stays in registers.
FLAGATTN_KERNEL void write_vector_of_dropout(const PhiloxKeys& keys, const PhiloxColumns& even,
                                             const PhiloxColumns& odd, uint32_t first_quad, int64_t num_quads,
                                             uint32_t last_dropped, float scale, float* factors) {
  const I32 sign = I32::set1(INT32_MIN);  // unsigned words are compared as signed ones, 2^31 less
  const I32 last = I32::set1(static_cast<int32_t>(last_dropped)) ^ sign;
  const F32 kept = F32::set1(scale);
  for (int64_t quad = 0; quad < num_quads; ++quad) {
    U64 evens[4], odds[4];
    even.words(first_quad + static_cast<uint32_t>(quad), keys, evens);
    odd.words(first_quad + static_cast<uint32_t>(quad), keys, odds);
    FLAGATTN_UNROLL for (int i = 0; i < 4; ++i) {
      const Mask keep = (join(evens[i], odds[i]) ^ sign) > last;
      select(keep, kept, F32::zero()).store(factors + (4 * quad + i) * kPanel);
    }
  }
}

// factors[key][column] = 0 where the weight is dropped, else `scale`; for whole strips of keys. Tiles start at
// multiples of four.
inline void write_dropout(const AttentionParams& params, int64_t sequence, const Column* columns, int count,
                          int64_t first_key, int64_t num_keys, float* factors) {
  const DropoutParams& dropout = params.dropout;
  const PhiloxKeys keys(static_cast<uint64_t>(dropout.rng_state[0]));
  alignas(64) uint32_t rows[kPanel] = {}, low[kPanel] = {}, high[kPanel] = {};
  for (int c = 0; c < count; ++c) {
    const auto stream = static_cast<uint64_t>(dropout.rng_state[1]) +
                        static_cast<uint64_t>(sequence * params.heads_q + columns[c].head);
    rows[c] = static_cast<uint32_t>(columns[c].row);
    low[c] = static_cast<uint32_t>(stream);
    high[c] = static_cast<uint32_t>(stream >> 32);
  }
  for (int c = 0; c < kPanel; c += F32::kLanes) {
    const auto even =
        PhiloxColumns::of(U64::load_even(rows + c), U64::load_even(low + c), U64::load_even(high + c), keys);
    const auto odd = PhiloxColumns::of(U64::load_odd(rows + c), U64::load_odd(low + c), U64::load_odd(high + c), keys);
    write_vector_of_dropout(keys, even, odd, static_cast<uint32_t>(first_key / 4), padded_dim(num_keys) / 4,
                            dropout.last_dropped, dropout.scale, factors + c);
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
