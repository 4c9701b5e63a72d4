// Queries, output gradients and row statistics of a block, through slots in shared memory: while one step is computed,
// the next is on its way. The block's query heads follow each other; of a head the last tile comes first.
#pragma once

#include <cmath>

#include "arch/ptx/barrier.cuh"
#include "attention/cuda/sm80/backward_block.cuh"
#include "attention/cuda/sm80/shared_tile.cuh"

namespace flagattn::sm80 {

// As start_loading_tile, but rows whose output has no gradient become zeros as well: whatever stands there must not
// meet a weight of zero. Those are the rows before `first_seeing_row` and, where `lse` is given, those of a tile whose
// LSE is +inf there.
template <int kRows, int kHeadDim, int kThreads, typename Element>
FLAGATTN_DEVICE void start_loading_seeing_rows(ptx::SharedAddress tile, const HeadRows<const Element>& head,
                                               int first_row, int first_seeing_row, const float* lse) {
  using Lanes = CopyLanes<kHeadDim, kThreads>;
  static_assert(kRows % Lanes::kRowsPerPass == 0);
  const int thread = ptx::thread_index_now();
  const int chunk = thread % Lanes::kChunksAtOnce, row_of_thread = thread / Lanes::kChunksAtOnce;
  const Element* source = head.data + (first_row + row_of_thread) * head.row_stride + chunk * 8;
  tile += chunk_offset<kHeadDim>(row_of_thread, chunk);
  FLAGATTN_UNROLL_ALL
  for (int pass = 0; pass < kRows / Lanes::kRowsPerPass; ++pass) {
    const int row_of_tile = pass * Lanes::kRowsPerPass + row_of_thread, row = first_row + row_of_tile;
    bool takes_gradient = row >= first_seeing_row && row < head.rows;
    if (lse != nullptr && takes_gradient) takes_gradient = ptx::load_global(lse + row_of_tile) != INFINITY;
    FLAGATTN_UNROLL_ALL
    for (int first_chunk = 0; first_chunk < Lanes::kChunks; first_chunk += Lanes::kChunksAtOnce) {
      const bool in_range = takes_gradient && (first_chunk + chunk) * 8 < head.columns;
      ptx::cp_async_16(tile + pass * Lanes::kRowsPerPass * kHeadDim * 2 + first_chunk * 16,
                       source + pass * Lanes::kRowsPerPass * head.row_stride + first_chunk * 8,
                       in_range || planted(Fault::kStrayRead));
    }
  }
}

template <typename Traits>
class QueryStream {
 public:
  // Starts copying the first step of a part; copies of the caller that are not committed yet join it.
  FLAGATTN_DEVICE QueryStream(ptx::SharedAddress base, const BackwardArguments& arguments, const BackwardBlock& block)
      : arguments_(arguments), block_(block), base_(base) {
    start_loading(0, block.first_head, block.tiles().end - 1);
  }

  // Waits for the step of head `head` of the group and tile `tile`. With two slots it starts copying the one after it
  // over the one before it.
  FLAGATTN_DEVICE void advance(int head, int tile) {
    if (!planted(Fault::kMissingCopyWait)) ptx::cp_async_wait<0>();
    if (planted(Fault::kEarlySlotRelease)) start_loading_next(head, tile);
    if (!planted(Fault::kMissingBarrier)) ptx::sync_block();  // every copy has landed, every reader is done
    if constexpr (Traits::kSlots > 1) {
      if (!planted(Fault::kEarlySlotRelease)) start_loading_next(head, tile);
      slot_ ^= 1;
    }
  }

  // Queries and output gradients of the step are read no more. With one slot the next step's follow them now.
  FLAGATTN_DEVICE void release(int head, int tile) {
    if constexpr (Traits::kSlots == 1) {
      if (!planted(Fault::kMissingReleaseBarrier)) ptx::sync_block();
      start_loading_next(head, tile);
    }
  }

  // Of the current step, valid until the next advance(), or release() with one slot.
  FLAGATTN_DEVICE uint32_t slot_offset() const { return slot_ * Traits::kSlotBytes; }
  FLAGATTN_DEVICE ptx::SharedAddress lse() const {
    return base_ + Traits::kStatistics + slot_ * Traits::kStatisticsBytes;
  }
  FLAGATTN_DEVICE ptx::SharedAddress deltas() const { return lse() + Traits::kBlockM * 4; }

 private:
  FLAGATTN_DEVICE void start_loading_next(int head, int tile) {
    const bool same_head = tile > block_.tiles().first;
    if (same_head || head + 1 < block_.end_head) {
      start_loading(slot_, same_head ? head : head + 1, same_head ? tile - 1 : block_.tiles().end - 1);
    }
  }

  // Addresses are found anew for every step: registers are scarcer than integer arithmetic.
  FLAGATTN_DEVICE void start_loading(uint32_t slot, int head, int tile) {
    using Element = typename Traits::Element;
    const AttentionParams& p = arguments_.params.forward;
    const BackwardWorkspace& workspace = arguments_.workspace;
    const float* statistics =
        workspace.statistics + workspace.statistics_of(block_.workspace_tile(p, workspace, head, tile));
    const auto load = [&](uint32_t to, const HeadsView& from, int64_t columns) {
      start_loading_seeing_rows<Traits::kBlockM, Traits::kHeadDim, Traits::kThreads>(
          base_ + to + slot * Traits::kSlotBytes, block_.query_rows<const Element>(p, from, head, columns),
          tile * Traits::kBlockM, block_.first_seeing_row, Traits::kTerms ? statistics : nullptr);
    };
    load(Traits::kQueries, block_.part == 0 ? p.q : p.q2, p.head_dim);
    load(Traits::kDouts, arguments_.params.dout, p.head_dim_v);
    const int chunk = ptx::thread_index_now();
    if (chunk * 16 < static_cast<int>(Traits::kStatisticsBytes)) {
      ptx::cp_async_16(base_ + Traits::kStatistics + slot * Traits::kStatisticsBytes + chunk * 16,
                       statistics + chunk * 4, true);
    }
    ptx::cp_async_commit();
  }

  const BackwardArguments& arguments_;
  const BackwardBlock& block_;
  ptx::SharedAddress base_;
  uint32_t slot_ = Traits::kSlots - 1;  // of the current step; another one is free or being filled
};

}  // namespace flagattn::sm80
