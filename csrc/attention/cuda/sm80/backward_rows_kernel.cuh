// What the backward needs to know of every query row before it starts: delta = rowsum(dO O) - dLSE, and the LSE in
// units of the exponent. Also finds the row's share of its sink's gradient, and clears what no block of the main kernel
// writes.
#pragma once

#include <cmath>

#include "arch/ptx/convert.cuh"
#include "arch/ptx/copy.cuh"
#include "arch/ptx/math.cuh"
#include "arch/ptx/warp.cuh"
#include "attention/cuda/sm80/backward_heuristics.h"
#include "attention/cuda/sm80/sequence_rows.cuh"
#include "attention/cuda/sm80/softmax.cuh"

namespace flagattn::sm80 {

struct BackwardRowsArguments {
  AttentionBackwardParams params;
  RowsSchedule schedule;
  BackwardWorkspace workspace;
};

struct BackwardRowsTraits {
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / ptx::kWarpSize;
  static constexpr int kLanesPerRow = 16;
  struct SharedStorage {};
};

// The sum of the products of two chunks of eight elements.
template <typename Element>
FLAGATTN_DEVICE float dot_chunks(const ptx::Bytes16& a, const ptx::Bytes16& b, float sum) {
  FLAGATTN_UNROLL_ALL
  for (int n = 0; n < 4; ++n) {
    const ptx::FloatPair x = ptx::unpack<Element>(a.words[n]), y = ptx::unpack<Element>(b.words[n]);
    sum = std::fma(x.high, y.high, std::fma(x.low, y.low, sum));
  }
  return sum;
}

// Rows [first_row, end_row) from `rows` on become zeros, by the threads of the block.
template <typename Element>
FLAGATTN_DEVICE void clear_rows(Element* rows, int64_t row_stride, int64_t columns, int64_t first_row,
                                int64_t end_row) {
  constexpr int kLanes = BackwardRowsTraits::kLanesPerRow;
  for (int64_t row = first_row + ptx::thread_index() / kLanes; row < end_row;
       row += BackwardRowsTraits::kThreads / kLanes) {
    for (int column = ptx::thread_index() % kLanes * 8; column < columns; column += kLanes * 8) {
      ptx::store_global_16(rows + row * row_stride + column, {});
    }
  }
}

// The block's share of the rows behind row `end`.
template <typename Element>
FLAGATTN_DEVICE void clear_rows_behind(const HeadsView& view, int64_t columns, int head, int32_t end, int64_t total,
                                       int share, int shares) {
  const int64_t first = end < 0 ? 0 : end, rows = (total - first + shares - 1) / shares;
  const int64_t begin = first + share * rows;
  clear_rows(static_cast<Element*>(view.data) + head * view.head_stride, view.row_stride, columns, begin,
             begin + rows < total ? begin + rows : total);
}

template <typename Element>
FLAGATTN_KERNEL(BackwardRowsTraits::kThreads, 3)
attention_backward_rows_kernel(FLAGATTN_KERNEL_ARGUMENT BackwardRowsArguments arguments) {
  using Traits = BackwardRowsTraits;
  const AttentionBackwardParams& b = arguments.params;
  const AttentionParams& p = b.forward;
  const BackwardWorkspace& workspace = arguments.workspace;
  const auto work = arguments.schedule.work_of(ptx::block_index());
  const bool packed = p.is_packed();

  // Nobody has added to dK and dV yet.
  const int64_t counters = workspace.key_gradients * workspace.warps;
  for (int64_t i = int64_t{ptx::block_index()} * Traits::kThreads + ptx::thread_index(); i < counters;
       i += arguments.schedule.blocks() * Traits::kThreads) {
    ptx::store_global(workspace.key_turns + i, uint32_t{0});
  }

  // Rows behind the last sequence of packed operands have the gradient 0.
  const int group = static_cast<int>(p.heads_q / p.heads_k);
  if (work.sequence == p.batch) {
    const int share = work.query_tile, shares = arguments.schedule.query_tiles;
    const int32_t end_q = p.cu_seqlens_q[p.batch], end_k = p.cu_seqlens_k[p.batch];
    for (int part = 0; part < workspace.parts; ++part) {
      clear_rows_behind<Element>(part == 0 ? b.dq : b.dq2, p.head_dim, work.head, end_q, p.total_q, share, shares);
    }
    if (work.head % group == 0) {
      for (int part = 0; part < workspace.parts; ++part) {
        clear_rows_behind<Element>(part == 0 ? b.dk : b.dk2, p.head_dim, work.head / group, end_k, p.total_k, share,
                                   shares);
      }
      clear_rows_behind<Element>(b.dv, p.head_dim_v, work.head / group, end_k, p.total_k, share, shares);
    }
    return;
  }

  // The block's tile. Nobody has added to its dQ yet; nobody will where no key is seen.
  const SequenceRows rows = sequence_rows(p.cu_seqlens_q, work.sequence, p.seqlen_q, p.total_q);
  const SequenceRows k_rows = sequence_rows(p.cu_seqlens_k, work.sequence, p.seqlen_k, p.total_k);
  const int first_row = work.query_tile * workspace.block_m;
  if (first_row >= rows.length) return;
  const int64_t tile = workspace.tile_of(packed, work.sequence, rows.first, work.head, work.query_tile);
  for (int part = 0; part < workspace.parts; ++part) {
    if (ptx::thread_index() < workspace.warps) {
      ptx::store_global(workspace.turns + workspace.turns_of(tile, part) + ptx::thread_index(), uint32_t{0});
    }
    const KeyPart keys = part == 1 ? KeyPart::kFar : p.is_piecewise() ? KeyPart::kNear : KeyPart::kAll;
    const VisibleBand band(PartShape{{rows.length, k_rows.length, p.mask}, keys, p.dist_threshold});
    const TileRange key_tiles = band.key_tiles(work.query_tile, workspace.block_m, workspace.block_n);
    if (key_tiles.end <= key_tiles.first) {
      const HeadsView& view = part == 0 ? b.dq : b.dq2;
      const auto dq = head_rows<Element>(view, packed, work.sequence, rows, work.head, p.head_dim);
      clear_rows(dq.data, dq.row_stride, p.head_dim, first_row,
                 first_row + workspace.block_m < rows.length ? first_row + workspace.block_m : rows.length);
    }
  }

  // Two rows per warp at a time. Rows that take no gradient are not read.
  const auto dout = head_rows<const Element>(b.dout, packed, work.sequence, rows, work.head, p.head_dim_v);
  const auto out = head_rows<const Element>(p.out, packed, work.sequence, rows, work.head, p.head_dim_v);
  const auto statistic = [&](const RowsView& view, int row) {
    const int64_t first = packed ? rows.first : work.sequence * view.batch_stride;
    return view.data + work.head * view.head_stride + first + row;
  };
  const int lane_in_row = ptx::thread_index() % Traits::kLanesPerRow;
  float* statistics = workspace.statistics + workspace.statistics_of(tile);
  for (int row = ptx::thread_index() / Traits::kLanesPerRow; row < workspace.block_m;
       row += Traits::kThreads / Traits::kLanesPerRow) {
    const int sequence_row = first_row + row;
    const bool exists = sequence_row < rows.length;
    const float lse = exists ? ptx::load_global(statistic(p.lse, sequence_row)) : -INFINITY;
    const bool takes_gradient = lse != -INFINITY;
    float sum = 0.0f;
    if (takes_gradient) {
      for (int column = lane_in_row * 8; column < dout.columns; column += Traits::kLanesPerRow * 8) {
        sum = dot_chunks<Element>(ptx::load_global_16(dout.data + sequence_row * dout.row_stride + column),
                                  ptx::load_global_16(out.data + sequence_row * out.row_stride + column), sum);
      }
    }
    FLAGATTN_UNROLL_ALL
    for (int distance = 1; distance < Traits::kLanesPerRow; distance *= 2) sum += ptx::shuffle_xor(sum, distance);
    if (lane_in_row == 0) {
      if (takes_gradient && b.dlse.data != nullptr) sum -= ptx::load_global(statistic(b.dlse, sequence_row));
      // A sink is a key of weight exp(sink - lse) whose dP is 0, since its value is.
      if (exists && p.sinks != nullptr) {
        const float exponent = (ptx::load_global(p.sinks + work.head) - lse) * kLog2E;
        ptx::store_global(statistic(b.dsink_shares, sequence_row),
                          takes_gradient ? -ptx::exp2_approx(exponent) * sum : 0.0f);
      }
      ptx::store_global(statistics + row, takes_gradient ? lse * kLog2E : INFINITY);
      ptx::store_global(statistics + workspace.block_m + row, takes_gradient ? sum : 0.0f);
    }
  }
}

}  // namespace flagattn::sm80
