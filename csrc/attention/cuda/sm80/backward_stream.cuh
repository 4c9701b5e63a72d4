// Queries, output gradients and row statistics of a block, through two slots in shared memory: while one step is
// computed, the next is on its way. The query heads of the group follow each other; of a head the last tile comes
// first.
#pragma once

#include "arch/ptx/barrier.cuh"
#include "attention/cuda/sm80/backward_block.cuh"
#include "attention/cuda/sm80/shared_tile.cuh"

namespace flagattn::sm80 {

// As start_loading_tile, but rows before `first_seeing_row` become zeros as well: their output has no gradient, and
// whatever stands there must not meet a weight of zero.
template <int kRows, int kHeadDim, int kThreads, typename Element>
FLAGATTN_DEVICE void start_loading_seeing_rows(ptx::SharedAddress tile, const HeadRows<const Element>& head,
                                               int first_row, int first_seeing_row) {
  constexpr int kChunks = kHeadDim / 8;
  constexpr int kRowsPerPass = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0 && kRows % kRowsPerPass == 0 && kRowsPerPass % 8 == 0);
  const int thread = ptx::thread_index_now(), chunk = thread % kChunks, row_of_thread = thread / kChunks;
  const bool has_columns = chunk * 8 < head.columns;
  const Element* source = head.data + (first_row + row_of_thread) * head.row_stride + chunk * 8;
  tile += chunk_offset<kHeadDim>(row_of_thread, chunk);
  FLAGATTN_UNROLL_ALL
  for (int pass = 0; pass < kRows / kRowsPerPass; ++pass) {
    const int row = first_row + pass * kRowsPerPass + row_of_thread;
    const bool in_range = has_columns && row >= first_seeing_row && row < head.rows;
    ptx::cp_async_16(tile + pass * kRowsPerPass * kHeadDim * 2, source + pass * kRowsPerPass * head.row_stride,
                     in_range || planted(Fault::kStrayRead));
  }
}

template <typename Traits>
class QueryStream {
 public:
  // Starts copying the first step; copies of the caller that are not committed yet join it.
  FLAGATTN_DEVICE QueryStream(ptx::SharedAddress base, const BackwardArguments& arguments, const BackwardBlock& block)
      : arguments_(arguments), block_(block), base_(base) {
    start_loading(0, 0, block.query_tiles.end - 1);
  }

  // Waits for the step of head `head` of the group and tile `tile`, and starts copying the one after it over the one
  // before it.
  FLAGATTN_DEVICE void advance(int head, int tile) {
    if (!planted(Fault::kMissingCopyWait)) ptx::cp_async_wait<0>();
    if (planted(Fault::kEarlySlotRelease)) start_loading_next(head, tile);
    if (!planted(Fault::kMissingBarrier)) ptx::sync_block();  // every copy has landed, every reader is done
    if (!planted(Fault::kEarlySlotRelease)) start_loading_next(head, tile);
    slot_ ^= 1;
  }

  // Of the current step, valid until the next advance().
  FLAGATTN_DEVICE uint32_t slot_offset() const { return slot_ * Traits::kSlotBytes; }
  FLAGATTN_DEVICE ptx::SharedAddress lse() const {
    return base_ + Traits::kStatistics + slot_ * Traits::kStatisticsBytes;
  }
  FLAGATTN_DEVICE ptx::SharedAddress deltas() const { return lse() + Traits::kBlockM * 4; }

 private:
  FLAGATTN_DEVICE void start_loading_next(int head, int tile) {
    const bool same_head = tile > block_.query_tiles.first;
    if (same_head || head + 1 < block_.group) {
      start_loading(slot_, same_head ? head : head + 1, same_head ? tile - 1 : block_.query_tiles.end - 1);
    }
  }

  // Addresses are found anew for every step: registers are scarcer than integer arithmetic.
  FLAGATTN_DEVICE void start_loading(uint32_t slot, int head, int tile) {
    using Element = typename Traits::Element;
    const AttentionParams& p = arguments_.params.forward;
    const auto load = [&](uint32_t to, const HeadsView& from, int64_t columns) {
      start_loading_seeing_rows<Traits::kBlockM, Traits::kHeadDim, Traits::kThreads>(
          base_ + to + slot * Traits::kSlotBytes, block_.query_rows<const Element>(p, from, head, columns),
          tile * Traits::kBlockM, block_.band.first_seeing_row());
    };
    load(Traits::kQueries, p.q, p.head_dim);
    load(Traits::kDouts, arguments_.params.dout, p.head_dim_v);
    const int chunk = ptx::thread_index_now();
    if (chunk * 16 < static_cast<int>(Traits::kStatisticsBytes)) {
      const BackwardWorkspace& workspace = arguments_.workspace;
      const int64_t statistics = workspace.statistics_of(block_.workspace_tile(p, workspace, head, tile));
      ptx::cp_async_16(base_ + Traits::kStatistics + slot * Traits::kStatisticsBytes + chunk * 16,
                       workspace.statistics + statistics + chunk * 4, true);
    }
    ptx::cp_async_commit();
  }

  const BackwardArguments& arguments_;
  const BackwardBlock& block_;
  ptx::SharedAddress base_;
  uint32_t slot_ = 1;  // of the current step; the other one is free or being filled
};

}  // namespace flagattn::sm80
