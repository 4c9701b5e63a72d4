// NaN and Inf in rows of a tile that only some rows of the other side see. The others meet them with a weight of zero,
// and zero times NaN is NaN: so tiles that a mask cuts are looked through before their product. Where something is
// found, it is added to the sums of those who see it, and becomes zero in shared memory.
#pragma once

#include "arch/ptx/barrier.cuh"
#include "arch/ptx/convert.cuh"
#include "arch/ptx/copy.cuh"
#include "arch/ptx/warp.cuh"
#include "attention/cuda/sm80/shared_tile.cuh"
#include "attention/cuda/sm80/softmax.cuh"

namespace flagattn::sm80 {

// Bits 15 and 31: of the word's two elements those that are NaN or Inf. Their exponent is all ones, to which another
// one carries into the sign's place.
template <typename Element>
FLAGATTN_DEVICE uint32_t find_not_finite(uint32_t word) {
  constexpr bool kIsBFloat16 = std::is_same_v<Element, BFloat16>;
  constexpr uint32_t kExponents = kIsBFloat16 ? 0x7f807f80u : 0x7c007c00u;
  constexpr uint32_t kOnes = kIsBFloat16 ? 0x00800080u : 0x04000400u;
  return ((word & kExponents) + kOnes) & 0x80008000u;
}

// A vote of the block's warps, in shared memory. Between two votes there must be a barrier.
template <int kWarps>
struct alignas(16) WarpVotes {
  uint32_t of[kWarps];
};

// Applies body(address, chunk) to the thread's share of a tile of kElements, in chunks of 16 bytes.
template <int kElements, int kThreads, typename Body>
FLAGATTN_DEVICE void for_each_own_chunk(ptx::SharedAddress tile, Body&& body) {
  static_assert(kElements % (8 * kThreads) == 0);
  const ptx::SharedAddress first = tile + ptx::thread_index_now() * 16;
  FLAGATTN_UNROLL_ALL
  for (int n = 0; n < kElements / (8 * kThreads); ++n) {
    const ptx::SharedAddress address = first + n * kThreads * 16;
    body(address, ptx::load_shared<ptx::Bytes16>(address));
  }
}

// Whether NaN or Inf are in the thread's share of the tile.
template <typename Element, int kElements, int kThreads>
FLAGATTN_DEVICE bool look_through(ptx::SharedAddress tile) {
  uint32_t found = 0;
  for_each_own_chunk<kElements, kThreads>(tile, [&](ptx::SharedAddress, const ptx::Bytes16& chunk) {
    FLAGATTN_UNROLL_ALL
    for (int n = 0; n < 4; ++n) found |= find_not_finite<Element>(chunk.words[n]);
  });
  return found != 0;
}

// The warp's vote.
FLAGATTN_DEVICE void cast_vote(ptx::SharedAddress votes, uint32_t vote) {
  const int thread = ptx::thread_index_now();
  if (thread % ptx::kWarpSize == 0) ptx::store_shared(votes + thread / ptx::kWarpSize * 4, vote);
}

// The bits of all votes together; after a barrier.
template <int kWarps>
FLAGATTN_DEVICE uint32_t all_votes(ptx::SharedAddress votes) {
  uint32_t all = 0;
  FLAGATTN_UNROLL_ALL
  for (int first = 0; first < kWarps; first += 4) {
    const auto four = ptx::load_shared<ptx::Bytes16>(votes + first * 4);
    all |= four.words[0] | four.words[1] | four.words[2] | four.words[3];
  }
  return all;
}

// NaN and Inf of the thread's share of the tile become zero.
template <typename Element, int kElements, int kThreads>
FLAGATTN_DEVICE void clear_not_finite(ptx::SharedAddress tile) {
  for_each_own_chunk<kElements, kThreads>(tile, [&](ptx::SharedAddress address, ptx::Bytes16 chunk) {
    FLAGATTN_UNROLL_ALL
    for (int n = 0; n < 4; ++n) chunk.words[n] &= ~((find_not_finite<Element>(chunk.words[n]) >> 15) * 0xffffu);
    ptx::store_shared(address, chunk);
  });
}

// What of the word's two elements is NaN or Inf; zero where they are numbers.
template <typename Element>
FLAGATTN_DEVICE ptx::FloatPair not_finite_of(uint32_t word) {
  return ptx::unpack<Element>(word & ((find_not_finite<Element>(word) >> 15) * 0xffffu));
}

// Before output += weights values: takes what is not finite out of a tile of values, into the outputs of the rows that
// see it. view(lane) is made where something is found; its has(r, key) tells whether the thread's r-th row sees a key
// of the tile. The whole block calls it, after the tile has landed.
template <typename Traits, typename View>
FLAGATTN_DEVICE void set_not_finite_apart(typename Traits::Output& output, ptx::SharedAddress values,
                                          ptx::SharedAddress votes, View&& view) {
  using Element = typename Traits::Element;
  constexpr int kElements = Traits::kBlockN * Traits::kHeadDim, kWarps = Traits::kThreads / ptx::kWarpSize;
  cast_vote(votes, ptx::vote_any(look_through<Element, kElements, Traits::kThreads>(values)));
  ptx::sync_block();
  if (all_votes<kWarps>(votes) == 0) return;

  const int lane = ptx::thread_index_now() % ptx::kWarpSize;
  const auto seen = view(lane);
  FLAGATTN_UNROLL_NONE
  for (int key = 0; key < Traits::kBlockN; ++key) {
    FLAGATTN_UNROLL_ALL
    for (int j = 0; j < Traits::kHeadDim / 8; ++j) {
      const auto word = ptx::load_shared<uint32_t>(values + chunk_offset<Traits::kHeadDim>(key, j) + lane % 4 * 4);
      if (find_not_finite<Element>(word) == 0) continue;
      const ptx::FloatPair pair = not_finite_of<Element>(word);
      FLAGATTN_UNROLL_ALL
      for (int r = 0; r < Traits::kRowsPerThread; ++r) {
        if (!seen.has(r, key)) continue;
        output[r / 2][j][r % 2 * 2] += pair.low;
        output[r / 2][j][r % 2 * 2 + 1] += pair.high;
      }
    }
  }
  ptx::sync_block();  // every reader is done
  clear_not_finite<Element, kElements, Traits::kThreads>(values);
  ptx::sync_block();
}

// The keys that lie in the mask's interval of the thread's rows, 8 apart from `row` on; the tile begins at `first_key`.
struct MaskedKeys {
  int first, end;  // of the first row

  FLAGATTN_DEVICE MaskedKeys(const ElementMask& mask, int row, int first_key)
      : first(mask.first_diagonal + row - first_key), end(mask.end_diagonal + row - first_key) {}

  FLAGATTN_DEVICE bool has(int r, int key) const { return key - 8 * r >= first && key - 8 * r < end; }
};

// Of each of the thread's rows a bit per key of the tile whose weight is not zero.
template <typename Traits>
struct WeighedKeys {
  static constexpr int kWords = Traits::kBlockN / 32;
  uint32_t keys[Traits::kRowsPerThread][kWords] = {};

  FLAGATTN_DEVICE WeighedKeys(const typename Traits::Scores& weights, int lane) {
    FLAGATTN_UNROLL_ALL
    for (int r = 0; r < Traits::kRowsPerThread; ++r) {
      FLAGATTN_UNROLL_ALL
      for (int j = 0; j < Traits::kBlockN / 8; ++j) {
        FLAGATTN_UNROLL_ALL
        for (int e = 0; e < 2; ++e) {
          if (weights[r / 2][j][r % 2 * 2 + e] != 0.0f) keys[r][j / 4] |= 1u << (j % 4 * 8 + lane % 4 * 2 + e);
        }
      }
      FLAGATTN_UNROLL_ALL
      for (int n = 0; n < kWords; ++n) {
        keys[r][n] |= ptx::shuffle_xor(keys[r][n], 1);
        keys[r][n] |= ptx::shuffle_xor(keys[r][n], 2);
      }
    }
  }

  FLAGATTN_DEVICE bool has(int r, int key) const {
    uint32_t word = keys[r][0];
    if constexpr (kWords == 2) word = key < 32 ? word : keys[r][1];
    return (word >> key % 32 & 1) != 0;
  }
};

}  // namespace flagattn::sm80
