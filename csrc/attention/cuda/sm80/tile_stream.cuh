// Keys and values of a block, in the order K, V, K, V, ... from the last tile to the first, through a ring of three
// slots in shared memory: while one tile is used, the next two are on their way.
#pragma once

#include "arch/ptx/barrier.cuh"
#include "attention/cuda/sm80/shared_tile.cuh"
#include "attention/cuda/sm80/traits.cuh"

namespace flagattn::sm80 {

template <typename Traits, typename Rows = HeadRows<const typename Traits::Element>>
class TileStream {
 public:
  static_assert(Traits::kSlots == 3);  // two ahead of keys are the next keys, two ahead of values the next values

  // Starts copying the last tile's keys and values; copies of the caller that are not committed yet join the first
  // group. The tiles are [first_tile, end_tile).
  FLAGATTN_DEVICE TileStream(typename Traits::SharedStorage& shared, const Rows& keys, const Rows& values,
                             int first_tile, int end_tile)
      : keys_(keys), values_(values), ring_(ptx::shared_address(shared.ring)), first_tile_(first_tile) {
    start_loading(keys_, end_tile - 1, 0);
    start_loading(values_, end_tile - 1, kSlotBytes);
  }

  // The keys of `tile` in shared memory, valid until values(tile) is called; and its values, valid until keys(tile - 1)
  // is.
  FLAGATTN_DEVICE ptx::SharedAddress keys(int tile) { return advance(keys_, tile - 1); }
  FLAGATTN_DEVICE ptx::SharedAddress values(int tile) { return advance(values_, tile - 1); }

 private:
  static constexpr uint32_t kSlotBytes = Traits::kBlockN * Traits::kHeadDim * 2;

  FLAGATTN_DEVICE static uint32_t following(uint32_t slot) { return slot == 2 * kSlotBytes ? 0 : slot + kSlotBytes; }

  // Waits for the stream's next tile, and refills the slot of the one before it.
  FLAGATTN_DEVICE ptx::SharedAddress advance(const Rows& next, int next_tile) {
    if (!planted(Fault::kMissingCopyWait)) ptx::cp_async_wait<1>();
    if (planted(Fault::kEarlySlotRelease)) start_loading(next, next_tile, slot_);
    if (!planted(Fault::kMissingBarrier)) ptx::sync_block();  // every copy has landed, every reader is done
    if (!planted(Fault::kEarlySlotRelease)) start_loading(next, next_tile, slot_);
    slot_ = following(slot_);
    return ring_ + slot_;
  }

  // Past the first tile the group stays empty, so that the count of groups under way is right.
  FLAGATTN_DEVICE void start_loading(const Rows& rows, int tile, uint32_t slot) {
    if (tile >= first_tile_) {
      start_loading_tile<Traits::kBlockN, Traits::kHeadDim, Traits::kThreads>(ring_ + slot, rows,
                                                                              tile * Traits::kBlockN);
    }
    ptx::cp_async_commit();
  }

  Rows keys_;
  Rows values_;
  ptx::SharedAddress ring_;
  uint32_t slot_ = 2 * kSlotBytes;  // of the tile in use
  int first_tile_;
};

}  // namespace flagattn::sm80
