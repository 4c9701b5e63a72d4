// Rotary embedding of heads that vectors do not fit: a thread takes a pair at a time. One kernel serves every dtype.
#pragma once

#include "rotary/cuda/sm80/kernel.cuh"

namespace flagattn::sm80 {

FLAGATTN_KERNEL(kRotaryThreads, 8)
rotary_element_kernel(FLAGATTN_KERNEL_ARGUMENT RotaryArguments arguments) {
  const RotaryParams& p = arguments.params;
  const RotaryPlan& plan = arguments.plan;
  const int64_t first_row = int64_t{ptx::block_index()} * plan.rows_per_block;
  const int64_t rows_left = p.batch * p.seqlen - first_row;
  const int64_t rows = rows_left < plan.rows_per_block ? rows_left : plan.rows_per_block;
  const int64_t per_head = plan.pieces + (p.x.data == p.y.data ? 0 : plan.rest);
  for (int64_t item = ptx::thread_index(); item < rows * p.heads * per_head; item += kRotaryThreads) {
    const int i = static_cast<int>(item % per_head), head = static_cast<int>(item / per_head % p.heads);
    const RotaryRow row(p, first_row + item / per_head / p.heads);
    const int64_t x = row.offset(p.x, head), y = row.offset(p.y, head);
    if (i >= plan.pieces) {
      const int64_t channel = p.half_dim + i;
      cuda::store_number(p.y.data, p.dtype, y + channel, cuda::load_number(p.x.data, p.dtype, x + channel));
      continue;
    }
    const int64_t position = row.position(p);
    const float cos =
        cuda::load_number(p.cos.data, p.table_dtype, row.b * p.cos.batch_stride + position * p.cos.row_stride + i);
    const float sin =
        cuda::load_number(p.sin.data, p.table_dtype, row.b * p.sin.batch_stride + position * p.sin.row_stride + i);
    const int64_t one = p.interleaved ? 2 * i : i, other = p.interleaved ? 2 * i + 1 : i + p.half_dim;
    float first = cuda::load_number(p.x.data, p.dtype, x + one);
    float second = cuda::load_number(p.x.data, p.dtype, x + other);
    rotate(first, second, cos, p.conjugate ? -sin : sin);
    cuda::store_number(p.y.data, p.dtype, y + one, first);
    cuda::store_number(p.y.data, p.dtype, y + other, second);
  }
}

}  // namespace flagattn::sm80
