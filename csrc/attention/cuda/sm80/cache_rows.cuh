// Where the rows of sequences lie that attend to caches, and tiles of rows that are looked up one by one.
#pragma once

#include "attention/cuda/sm80/sequence_rows.cuh"

namespace flagattn::sm80 {

FLAGATTN_HOST_DEVICE constexpr int64_t clamped(int64_t value, int64_t most) {
  return value < 0 ? 0 : value < most ? value : most;
}

// Rows of a sequence's stretch of the cache that are in use before new ones are appended, left padding included.
FLAGATTN_DEVICE int64_t rows_in_use(const AttentionParams& p, int index) {
  if (p.cu_seqlens_k != nullptr) return static_cast<int64_t>(p.cu_seqlens_k[index + 1]) - p.cu_seqlens_k[index];
  return p.cache.seqlens == nullptr ? p.cache.capacity : p.cache.seqlens[index];
}

// The rows of one sequence's queries, and its stretch of the caches. Whatever the operands say, it lies inside them.
struct CachedSequence {
  int first_q;
  int seqlen_q;
  int batch_q;  // for batch strides: 0 where queries are packed
  int first_k;
  int seqlen_k;
  int batch_k;
  const int32_t* pages;
};

FLAGATTN_DEVICE CachedSequence cached_sequence(const AttentionParams& p, int index) {
  const CacheParams& cache = p.cache;
  CachedSequence sequence;
  const SequenceRows q_rows = sequence_rows(p.cu_seqlens_q, index, p.seqlen_q, p.total_q);
  sequence.first_q = q_rows.first;
  sequence.seqlen_q = q_rows.length;
  sequence.batch_q = p.is_packed() ? 0 : index;
  const int64_t end = clamped(rows_in_use(p, index) + cache.appended, cache.rows > 0 ? cache.capacity : 0);
  const int64_t leftpad = cache.leftpad == nullptr ? 0 : clamped(cache.leftpad[index], end);
  sequence.first_k = static_cast<int>(leftpad);
  sequence.seqlen_k = static_cast<int>(clamped(end - leftpad, p.seqlen_k));
  sequence.batch_k =
      cache.batch_idx == nullptr ? index : static_cast<int>(clamped(cache.batch_idx[index], cache.rows - 1));
  sequence.pages = cache.block_table == nullptr ? nullptr : cache.block_table + index * cache.block_table_stride;
  return sequence;
}

// One head's keys or values of a sequence in a cache: key row r is row first + r of the sequence's stretch.
template <typename Element>
struct CacheRows {
  Element* data;  // of the head; without pages of the stretch too
  int64_t row_stride;
  int rows;
  int columns;
  int first;
  int page_size;
  int last_page;  // pages outside the cache count as this one, or as the first
  int64_t page_stride;
  const int32_t* pages;  // null: not paged

  FLAGATTN_DEVICE Element* row(int r) const {
    r += first;
    if (pages == nullptr) return data + r * row_stride;
    const int32_t* entry = pages + (planted(Fault::kWrongRow) ? 0 : r / page_size);
    const int page = static_cast<int>(clamped(ptx::load_global(entry), last_page));
    return data + page * page_stride + r % page_size * row_stride;
  }
};

template <typename Element>
FLAGATTN_DEVICE CacheRows<Element> cache_rows(const AttentionParams& p, const HeadsView& view,
                                              const CachedSequence& sequence, int head, int64_t columns) {
  const bool is_paged = sequence.pages != nullptr;
  auto* data = static_cast<Element*>(view.data) + head * view.head_stride;
  if (!is_paged) data += sequence.batch_k * view.batch_stride;
  return {data,
          view.row_stride,
          sequence.seqlen_k,
          static_cast<int>(columns),
          sequence.first_k,
          static_cast<int>(p.cache.page_size),
          static_cast<int>(p.cache.rows - 1),
          view.batch_stride,
          sequence.pages};
}

// The query rows of a group's heads as one sequence of rows: column c is row c / group of the group's head c % group.
template <typename Element>
struct ColumnRows {
  Element* data;  // row 0 of the group's first head
  int64_t row_stride;
  int64_t head_stride;
  int group;
  int rows;
  int columns;

  FLAGATTN_DEVICE Element* row(int column) const {
    return data + column / group * row_stride + column % group * head_stride;
  }
};

template <typename Element>
FLAGATTN_DEVICE ColumnRows<Element> column_rows(const HeadsView& view, const CachedSequence& sequence, int head_k,
                                                int group, int64_t columns) {
  auto* data = static_cast<Element*>(view.data) + sequence.batch_q * view.batch_stride +
               sequence.first_q * view.row_stride + head_k * group * view.head_stride;
  return {data, view.row_stride, view.head_stride, group, sequence.seqlen_q * group, static_cast<int>(columns)};
}

// As for HeadRows, for rows that are looked up one by one. What says where they lie would take many registers: it waits
// in shared memory, where at.get() finds it.
template <int kRows, int kHeadDim, int kThreads, typename RowsAt>
FLAGATTN_DEVICE void start_loading_tile(ptx::SharedAddress tile, const RowsAt& at, int first_row) {
  using Lanes = CopyLanes<kHeadDim, kThreads>;
  constexpr int kPasses = kRows / Lanes::kRowsPerPass;
  constexpr int kTogether =
      kHeadDim > 192 && kPasses % 2 == 0 ? 2 : kPasses;  // the widest head has no registers for more
  static_assert(kRows % Lanes::kRowsPerPass == 0);
  const auto& rows = at.get();
  const int chunk = ptx::thread_index() % Lanes::kChunksAtOnce;
  const int row_of_thread = ptx::thread_index() / Lanes::kChunksAtOnce;
  tile += chunk_offset<kHeadDim>(row_of_thread, chunk);
  FLAGATTN_UNROLL_NONE
  for (int first_pass = 0; first_pass < kPasses; first_pass += kTogether) {
    FLAGATTN_UNROLL_ALL
    for (int pass = first_pass; pass < first_pass + kTogether; ++pass) {
      const int row = first_row + pass * Lanes::kRowsPerPass + row_of_thread;
      const bool has_row = row < rows.rows || planted(Fault::kStrayRead);
      const auto* source = (has_row ? rows.row(row) : rows.data) + chunk * 8;
      FLAGATTN_UNROLL_ALL
      for (int first_chunk = 0; first_chunk < Lanes::kChunks; first_chunk += Lanes::kChunksAtOnce) {
        const bool in_range = has_row && (first_chunk + chunk) * 8 < rows.columns;
        ptx::cp_async_16(tile + pass * Lanes::kRowsPerPass * kHeadDim * 2 + first_chunk * 16, source + first_chunk * 8,
                         in_range);
      }
    }
  }
}

}  // namespace flagattn::sm80
