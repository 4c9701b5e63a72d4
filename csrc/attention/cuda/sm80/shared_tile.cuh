// Tiles in shared memory: rows of kHeadDim 16-bit elements, swizzled so that neither the copies in nor the matrix loads
// out meet a bank twice.
#pragma once

#include "arch/planted_fault.h"
#include "arch/ptx/copy.cuh"
#include "attention/params.h"

namespace flagattn::sm80 {

// Chunks of 16 bytes change places within groups of eight, and within groups of four where rows are no multiple of 128
// bytes: the eight rows of one matrix load ask for one chunk index, and the XOR spreads them over all 32 banks.
template <int kHeadDim>
inline constexpr int kSwizzledChunks = kHeadDim % 64 == 0 ? 8 : 4;

// Byte offset of the 16-byte chunk `chunk` of row `row`.
template <int kHeadDim>
FLAGATTN_HOST_DEVICE constexpr uint32_t chunk_offset(int row, int chunk) {
  static_assert(kHeadDim % 32 == 0);
  const int mixed = kSwizzledChunks<kHeadDim> == 8 ? row & 7 : row >> 1 & 3;
  return static_cast<uint32_t>(row * kHeadDim * 2 + ((chunk ^ mixed) << 4));
}

// Moves the address of a chunk of even index 0 (or of odd index 1) by 2 * `steps` chunks within its row: an XOR inside
// the group, and a constant that the load adds itself from group to group. Tiles start at multiples of 1024 and groups
// at multiples of their size, so the XOR cannot carry.
template <int kHeadDim>
FLAGATTN_HOST_DEVICE constexpr uint32_t advance_chunks(uint32_t address, int steps) {
  constexpr int kSteps = (kHeadDim & (kHeadDim - 1)) == 0 ? kHeadDim / 16 : kSwizzledChunks<kHeadDim> / 2;
  return (address ^ static_cast<uint32_t>(steps % kSteps << 5)) + static_cast<uint32_t>(steps / kSteps * kSteps * 32);
}

// One head of one sequence in global memory: `rows` rows of `columns` elements.
template <typename Element>
struct HeadRows {
  Element* data;
  int64_t row_stride;
  int rows;
  int columns;

  FLAGATTN_DEVICE Element* row(int64_t r) const { return data + r * row_stride; }
};

// How a block's threads share the copying of a tile: each a column of chunks, or several.
template <int kHeadDim, int kThreads>
struct CopyLanes {
  static constexpr int kChunks = kHeadDim / 8;
  static constexpr int kPowerOfTwo = kChunks & -kChunks;
  static constexpr int kChunksAtOnce = kPowerOfTwo < kThreads / 8 ? kPowerOfTwo : kThreads / 8;
  static constexpr int kRowsPerPass = kThreads / kChunksAtOnce;
  static_assert(kThreads % kChunksAtOnce == 0 && kRowsPerPass % 8 == 0);
  static_assert(kChunksAtOnce % kSwizzledChunks<kHeadDim> == 0);
};

// Starts copying rows [first_row, first_row + kRows) into `tile`. Rows and columns that the head does not have become
// zeros without being read: what lies there may be NaN, or another sequence.
template <int kRows, int kHeadDim, int kThreads, typename Element>
FLAGATTN_DEVICE void start_loading_tile(ptx::SharedAddress tile, const HeadRows<const Element>& head, int first_row) {
  using Lanes = CopyLanes<kHeadDim, kThreads>;
  static_assert(kRows % Lanes::kRowsPerPass == 0);
  const int chunk = ptx::thread_index() % Lanes::kChunksAtOnce;
  const int row_of_thread = ptx::thread_index() / Lanes::kChunksAtOnce;
  const Element* source = head.data + (first_row + row_of_thread) * head.row_stride + chunk * 8;
  const int64_t pass_stride = Lanes::kRowsPerPass * head.row_stride;
  tile += chunk_offset<kHeadDim>(row_of_thread, chunk);
  FLAGATTN_UNROLL_ALL
  for (int pass = 0; pass < kRows / Lanes::kRowsPerPass; ++pass) {
    const bool has_row = first_row + pass * Lanes::kRowsPerPass + row_of_thread < head.rows;
    FLAGATTN_UNROLL_ALL
    for (int first_chunk = 0; first_chunk < Lanes::kChunks; first_chunk += Lanes::kChunksAtOnce) {
      const bool in_range = has_row && (first_chunk + chunk) * 8 < head.columns;
      ptx::cp_async_16(tile + pass * Lanes::kRowsPerPass * kHeadDim * 2 + first_chunk * 16,
                       source + pass * pass_stride + first_chunk * 8, in_range || planted(Fault::kStrayRead));
    }
  }
}

}  // namespace flagattn::sm80
