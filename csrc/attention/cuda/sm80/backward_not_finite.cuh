// NaN and Inf in tiles of the backward of which a mask hides something: what not_finite.cuh does for the forward. Who
// sees them in Q, K or V has them in the gradients of the scores; only dV knows of dO by dO alone, and is told.
#pragma once

#include "attention/cuda/sm80/backward_block.cuh"
#include "attention/cuda/sm80/backward_traits.cuh"
#include "attention/cuda/sm80/not_finite.cuh"

namespace flagattn::sm80 {

inline constexpr uint32_t kInQueries = 1, kInKeys = 2;  // votes: in a step's queries or output gradients; in the keys

// The warp's vote on the tiles of a step whose slot begins `slot` bytes behind the first.
template <typename Traits>
FLAGATTN_DEVICE void vote_on_step(ptx::SharedAddress base, uint32_t slot, ptx::SharedAddress votes) {
  using Element = typename Traits::Element;
  constexpr int kRows = Traits::kBlockM * Traits::kHeadDim, kKeys = Traits::kBlockN * Traits::kHeadDim;
  const bool in_queries = look_through<Element, kRows, Traits::kThreads>(base + Traits::kQueries + slot) ||
                          look_through<Element, kRows, Traits::kThreads>(base + Traits::kDouts + slot);
  const bool in_keys = look_through<Element, kKeys, Traits::kThreads>(base + Traits::kKeys);
  cast_vote(votes, (ptx::vote_any(in_queries) ? kInQueries : 0) | (ptx::vote_any(in_keys) ? kInKeys : 0));
}

// Which keys a row of the step's tile sees, of those 8 apart from the thread's first on.
template <typename Traits>
struct SeenKeys {
  ptx::SharedAddress weights;
  int key;  // in the tile
  int first, end;

  FLAGATTN_DEVICE SeenKeys(ptx::SharedAddress base, const VisibleBand& band, int first_row, int first_key, int own_key)
      : weights(base + Traits::kWeights),
        key(own_key),
        first(band.first_diagonal - (first_key + own_key - first_row)),
        end(band.end_diagonal - (first_key + own_key - first_row)) {}

  FLAGATTN_DEVICE bool has(int row, int offset) const {
    if constexpr (Traits::kTerms) {  // terms hide single keys: their weights are zero
      const int of_tile = key + offset;
      const auto pair =
          ptx::load_shared<uint32_t>(weights + chunk_offset<Traits::kBlockN>(row, of_tile / 8) + of_tile % 8 / 2 * 4);
      return (of_tile % 2 == 0 ? pair & 0x7fffu : pair & 0x7fff0000u) != 0;
    } else {
      return offset - row >= first && offset - row < end;
    }
  }
};

// Before dV += P^T dO and dK += dS^T Q: takes what is not finite out of the step's queries and output gradients, and
// that of the latter into the gradients of the values that are seen.
template <typename Traits>
FLAGATTN_DEVICE void set_queries_apart(typename Traits::KeyGradients& dv, ptx::SharedAddress base, uint32_t slot,
                                       const VisibleBand& band, int first_row, int first_key) {
  using Element = typename Traits::Element;
  constexpr int kElements = Traits::kBlockM * Traits::kHeadDim, kStride = Traits::kKeyColumnWarps;
  const WarpParts<Traits> warp(ptx::thread_index_now());
  const ptx::SharedAddress douts = base + Traits::kDouts + slot;
  const SeenKeys<Traits> seen(base, band, first_row, first_key, warp.key_row + warp.lane / 4);
  FLAGATTN_UNROLL_NONE
  for (int row = 0; row < Traits::kBlockM; ++row) {
    FLAGATTN_UNROLL_ALL
    for (int n = 0; n < 2 * Traits::kColumnGroups / kStride; ++n) {
      const int chunk = 2 * (warp.key_group + n / 2 * kStride) + n % 2;
      const auto word =
          ptx::load_shared<uint32_t>(douts + chunk_offset<Traits::kHeadDim>(row, chunk) + warp.lane % 4 * 4);
      if (find_not_finite<Element>(word) == 0) continue;
      const ptx::FloatPair pair = not_finite_of<Element>(word);
      FLAGATTN_UNROLL_ALL
      for (int r = 0; r < 2 * Traits::kKeyRowTiles; ++r) {
        if (!seen.has(row, 8 * r)) continue;
        dv[r / 2][n][r % 2 * 2] += pair.low;
        dv[r / 2][n][r % 2 * 2 + 1] += pair.high;
      }
    }
  }
  ptx::sync_block();  // every reader is done
  clear_not_finite<Element, kElements, Traits::kThreads>(douts);
  clear_not_finite<Element, kElements, Traits::kThreads>(base + Traits::kQueries + slot);
  ptx::sync_block();
}

// Around dQ += dS K. Other steps need the keys as they are: they are fetched once more.
template <typename Traits>
FLAGATTN_DEVICE void clear_keys(ptx::SharedAddress base) {
  clear_not_finite<typename Traits::Element, Traits::kBlockN * Traits::kHeadDim, Traits::kThreads>(base +
                                                                                                   Traits::kKeys);
  ptx::sync_block();
}

template <typename Traits>
FLAGATTN_DEVICE void fetch_keys_again(ptx::SharedAddress base, const BackwardBlock& block, const AttentionParams& p) {
  ptx::sync_block();  // every reader is done; the next one is behind a barrier
  start_loading_tile<Traits::kBlockN, Traits::kHeadDim, Traits::kThreads>(
      base + Traits::kKeys, block.key_rows<const typename Traits::Element>(p, block.part == 1 ? p.k2 : p.k, p.head_dim),
      block.key_tile * Traits::kBlockN);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}

}  // namespace flagattn::sm80
