// Where the rows of a sequence lie in dense and packed operands.
#pragma once

#include "arch/planted_fault.h"
#include "attention/cuda/sm80/shared_tile.cuh"

namespace flagattn::sm80 {

// Where one sequence lies in a packed operand. Offsets that point outside `total` rows are clamped: wrong values may
// give wrong numbers, but reach no memory outside the operands.
struct SequenceRows {
  int first;
  int length;
};

FLAGATTN_DEVICE SequenceRows sequence_rows(const int32_t* cu_seqlens, int sequence, int64_t longest, int64_t total) {
  if (cu_seqlens == nullptr) return {0, static_cast<int>(longest)};
  const auto clamp = [](int64_t value, int64_t most) {
    if (planted(Fault::kUnclampedOffsets)) return value;
    return value < 0 ? 0 : value < most ? value : most;
  };
  const int64_t first = clamp(cu_seqlens[sequence], total);
  const int64_t end = clamp(cu_seqlens[sequence + 1], total);
  return {static_cast<int>(first), static_cast<int>(clamp(end - first, longest))};
}

// Head `head` of sequence `sequence`, whose rows are `rows`.
template <typename Element>
FLAGATTN_DEVICE HeadRows<Element> head_rows(const HeadsView& view, bool packed, int sequence, const SequenceRows& rows,
                                            int head, int64_t columns) {
  const int64_t offset =
      head * view.head_stride + (packed ? rows.first * view.row_stride : sequence * view.batch_stride);
  return {static_cast<Element*>(view.data) + offset, view.row_stride, rows.length, static_cast<int>(columns)};
}

}  // namespace flagattn::sm80
