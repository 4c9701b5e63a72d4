// The way out: normalise, gather whole rows through shared memory, write them 16 bytes at a time.
#pragma once

#include "arch/planted_fault.h"
#include "attention/cuda/sm80/sequence_rows.cuh"
#include "attention/cuda/sm80/shared_tile.cuh"
#include "attention/cuda/sm80/softmax.cuh"

namespace flagattn::sm80 {

// Writes the warp's rows of the output, which `out` tells like HeadRows. `staging` is the block's q tile, of which the
// warp overwrites its own rows.
template <typename Traits, typename Rows>
FLAGATTN_DEVICE void store_output(typename Traits::Output& output, const RowResults<Traits>& results,
                                  typename Traits::Element* staging, const Rows& out, int first_row, int warp,
                                  int lane) {
  constexpr int kHeadDim = Traits::kHeadDim;
  unsigned char* tile = reinterpret_cast<unsigned char*>(staging + warp * Traits::kRowsPerWarp * kHeadDim);
  FLAGATTN_UNROLL_ALL
  for (int r = 0; r < Traits::kRowsPerThread; ++r) {
    const int i = r / 2, h = r % 2 * 2;
    const float factor = results.factor[r];
    FLAGATTN_UNROLL_ALL
    for (int j = 0; j < kHeadDim / 8; ++j) {
      auto* pair = reinterpret_cast<uint32_t*>(tile + chunk_offset<kHeadDim>(8 * r + lane / 4, j) + lane % 4 * 4);
      *pair = ptx::pack<typename Traits::Element>(output[i][j][h] * factor, output[i][j][h + 1] * factor);
    }
  }
  if (!planted(Fault::kMissingWarpSync)) ptx::sync_warp();

  constexpr int kChunks = kHeadDim / 8;
  constexpr int kRowsPerPass = ptx::kWarpSize / kChunks;
  const int chunk = lane % kChunks;
  const bool has_lane = lane < kRowsPerPass * kChunks;  // of a head dim of 96 or 192 some lanes are left over
  FLAGATTN_UNROLL_ALL
  for (int pass = 0; pass < Traits::kRowsPerWarp / kRowsPerPass; ++pass) {
    const int row = pass * kRowsPerPass + lane / kChunks;
    const int64_t out_row = first_row + row;
    const bool in_range = has_lane && chunk * 8 < out.columns && (out_row < out.rows || planted(Fault::kStrayWrite));
    if (in_range) {
      ptx::store_global_16(out.row(out_row) + chunk * 8,
                           *reinterpret_cast<const ptx::Bytes16*>(tile + chunk_offset<kHeadDim>(row, chunk)));
    }
  }
}

template <typename Element>
FLAGATTN_DEVICE void clear_rows(const AttentionParams& p, int head, int64_t first, int64_t end, int64_t step) {
  for (int64_t row = first; row < end; row += step) {
    ptx::store_global(p.lse.data + head * p.lse.head_stride + row, -INFINITY);
    Element* out = static_cast<Element*>(p.out.data) + row * p.out.row_stride + head * p.out.head_stride;
    for (int column = 0; column < p.head_dim_v; column += 8) ptx::store_global_16(out + column, {});
  }
}

// Rows of a packed operand that no sequence writes: output 0, LSE -inf. Those before the first sequence and behind the
// last are shared by `threads` threads; what sequences have beyond the longest length that the caller named falls to a
// thread each.
template <typename Element>
FLAGATTN_DEVICE void clear_unwritten_rows(const AttentionParams& p, int head, int thread, int threads) {
  for (int64_t sequence = thread; sequence < p.batch; sequence += threads) {
    const SequenceRows rows = sequence_rows(p.cu_seqlens_q, static_cast<int>(sequence), p.seqlen_q, p.total_q);
    const int64_t end = p.cu_seqlens_q[sequence + 1];
    clear_rows<Element>(p, head, rows.first + rows.length, end < p.total_q ? end : p.total_q, 1);
  }
  const int64_t begin = p.cu_seqlens_q[0], end = p.cu_seqlens_q[p.batch];
  clear_rows<Element>(p, head, thread, begin < p.total_q ? begin : p.total_q, threads);
  clear_rows<Element>(p, head, (end > 0 ? end : 0) + thread, p.total_q, threads);
}

// Writes the LSE of the warp's rows; `lse` points at row 0 of the head.
template <typename Traits>
FLAGATTN_DEVICE void store_log_sum_exp(const RowResults<Traits>& results, float* lse, int rows, int first_row,
                                       int lane) {
  FLAGATTN_UNROLL_ALL
  for (int r = 0; r < Traits::kRowsPerThread; ++r) {
    const int row = first_row + 8 * r + lane / 4;
    if (lane % 4 == 0 && row < rows) ptx::store_global(lse + row, results.lse[r]);
  }
}

}  // namespace flagattn::sm80
