// Which weights of a tile are dropped: the bits that the CPU kernels draw (arch/philox.h, DropoutParams).
#pragma once

#include "arch/philox.h"
#include "arch/ptx/copy.cuh"
#include "arch/ptx/warp.cuh"
#include "attention/params.h"

namespace flagattn::sm80 {

template <typename Traits>
class Dropout {
 public:
  FLAGATTN_DEVICE Dropout(const AttentionParams& params, int sequence, int head)
      : last_dropped_(params.dropout.last_dropped) {
    if (params.dropout.rng_state == nullptr) return;
    seed_ = static_cast<uint64_t>(ptx::load_global(params.dropout.rng_state));
    stream_ = static_cast<uint64_t>(ptx::load_global(params.dropout.rng_state + 1)) +
              static_cast<uint64_t>(sequence * params.heads_q + head);
  }

  // Zeroes the dropped ones among the warp's weights.
  FLAGATTN_DEVICE void drop(typename Traits::Scores& weights, int first_row, int first_key, int lane) const {
    for_each_dropped(first_row, first_key, lane, [&](int i, int j, int e) { weights[i][j][e] = 0.0f; });
  }

  // Applies body(i, j, e) to the dropped ones' places. Four keys share a counter, and two lanes hold them: the even
  // lane draws for the upper of their two rows, the odd one for the lower, and each tells the other.
  template <typename Body>
  FLAGATTN_DEVICE void for_each_dropped(int first_row, int first_key, int lane, Body&& body) const {
    const int is_odd = lane % 2;
    const auto row = static_cast<uint32_t>(first_row + lane / 4 + 8 * is_odd);
    const auto quad = static_cast<uint32_t>(first_key / 4 + lane % 4 / 2);
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < Traits::kRowTiles; ++i) {
      FLAGATTN_UNROLL_ALL
      for (int j = 0; j < Traits::kBlockN / 8; ++j) {
        const uint32_t own = dropped_keys(quad + 2 * j, row + 16 * i);
        const uint32_t others = ptx::shuffle_xor(own, 1);
        const uint32_t upper = (is_odd ? others : own) >> 2 * is_odd, lower = (is_odd ? own : others) >> 2 * is_odd;
        FLAGATTN_UNROLL_ALL
        for (int e = 0; e < 2; ++e) {
          if (upper >> e & 1) body(i, j, e);
          if (lower >> e & 1) body(i, j, 2 + e);
        }
      }
    }
  }

 private:
  // A bit for each of the four keys from 4 * quad on.
  FLAGATTN_DEVICE uint32_t dropped_keys(uint32_t quad, uint32_t row) const {
    const PhiloxWords words = philox(quad, row, static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32),
                                     static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32));
    uint32_t dropped = 0;
    FLAGATTN_UNROLL_ALL
    for (int k = 0; k < 4; ++k) dropped |= static_cast<uint32_t>(words.word[k] <= last_dropped_) << k;
    return dropped;
  }

  uint64_t seed_ = 0;
  uint64_t stream_ = 0;  // the counter's upper half
  uint32_t last_dropped_;
};

}  // namespace flagattn::sm80
