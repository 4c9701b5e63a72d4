// Tiles in shared memory: rows of kHeadDim 16-bit elements, swizzled so that neither the copies in nor the matrix loads
// out meet a bank twice.
#pragma once

#include "arch/planted_fault.h"
#include "arch/ptx/copy.cuh"
#include "attention/params.h"

namespace flagattn::sm80 {

// Byte offset of the 16-byte chunk `chunk` of row `row`. The eight rows of one matrix load ask for one chunk index; the
// XOR spreads them over all 32 banks. It permutes chunks inside a row only.
template <int kHeadDim>
FLAGATTN_HOST_DEVICE constexpr uint32_t chunk_offset(int row, int chunk) {
  return static_cast<uint32_t>(row * kHeadDim * 2 + ((chunk ^ (row & 7)) << 4));
}

// Moves the address of a chunk of even index 0 (or of odd index 1) by 2 * `steps` chunks within its row. One XOR per
// load instead of a register per chunk; tiles start at multiples of 1024, so it cannot carry into the row.
FLAGATTN_HOST_DEVICE constexpr uint32_t advance_chunks(uint32_t address, int steps) {
  return address ^ static_cast<uint32_t>(steps << 5);
}

// One head of one sequence in global memory: `rows` rows of `columns` elements.
template <typename Element>
struct HeadRows {
  Element* data;
  int64_t row_stride;
  int rows;
  int columns;
};

// Starts copying rows [first_row, first_row + kRows) into `tile`, each thread a column of chunks. Rows and columns that
// the head does not have become zeros without being read: what lies there may be NaN, or another sequence.
template <int kRows, int kHeadDim, int kThreads, typename Element>
FLAGATTN_DEVICE void start_loading_tile(ptx::SharedAddress tile, const HeadRows<const Element>& head, int first_row) {
  constexpr int kChunks = kHeadDim / 8;
  constexpr int kRowsPerPass = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0 && kRows % kRowsPerPass == 0 && kRowsPerPass % 8 == 0);
  const int chunk = ptx::thread_index() % kChunks;
  const int row_of_thread = ptx::thread_index() / kChunks;
  const bool has_columns = chunk * 8 < head.columns;
  const Element* source = head.data + (first_row + row_of_thread) * head.row_stride + chunk * 8;
  const int64_t pass_stride = kRowsPerPass * head.row_stride;
  tile += chunk_offset<kHeadDim>(row_of_thread, chunk);
  FLAGATTN_UNROLL_ALL
  for (int pass = 0; pass < kRows / kRowsPerPass; ++pass) {
    const bool in_range = has_columns && first_row + pass * kRowsPerPass + row_of_thread < head.rows;
    ptx::cp_async_16(tile + pass * kRowsPerPass * kHeadDim * 2, source + pass * pass_stride,
                     in_range || planted(Fault::kStrayRead));
  }
}

}  // namespace flagattn::sm80
