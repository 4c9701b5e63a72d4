// Rotary embedding: a block reads the angles of its rows once, keeps them in shared memory, and turns all heads by
// them.
#pragma once

#include "arch/cuda/vector.cuh"
#include "arch/ptx/barrier.cuh"
#include "arch/ptx/shared_memory.cuh"
#include "arch/ptx/warp.cuh"
#include "rotary/cuda/sm80/launch.h"

namespace flagattn::sm80 {

struct RotaryShared {
  alignas(16) float cos[kRotaryAngles];
  alignas(16) float sin[kRotaryAngles];
};

// A row (b, s) of x or y.
struct RotaryRow {
  int64_t b, s;
  FLAGATTN_DEVICE RotaryRow(const RotaryParams& p, int64_t row) : b(row / p.seqlen), s(row - b * p.seqlen) {}

  FLAGATTN_DEVICE int64_t offset(const RotaryOperand& operand, int head) const {
    return b * operand.batch_stride + s * operand.row_stride + head * operand.head_stride;
  }

  // Its position; of those outside the tables the nearest inside.
  FLAGATTN_DEVICE int position(const RotaryParams& p) const {
    int64_t position = s;
    const int64_t index = b * p.positions_batch_stride + s;
    if (p.positions32 != nullptr) position = ptx::load_global(p.positions32 + index);
    if (p.positions64 != nullptr) position = ptx::load_global(p.positions64 + index);
    position = position < p.num_positions ? position : p.num_positions - 1;
    return static_cast<int>(position > 0 ? position : 0);
  }
};

// Where the i-th angle of a row is kept: see rotary_odd_chunks().
FLAGATTN_DEVICE int angle_slot(const RotaryPlan& plan, bool splits, int i) {
  return splits ? i / 4 % 2 * plan.odd_chunks + i / 8 * 4 + i % 4 : i;
}

// The angles of the block's rows into shared memory, as floats; a warp takes a row.
FLAGATTN_DEVICE void keep_angles(const RotaryParams& p, const RotaryPlan& plan, RotaryShared& shared, int64_t first_row,
                                 int rows, bool splits) {
  const int lane = ptx::thread_index() % ptx::kWarpSize, warp = ptx::thread_index() / ptx::kWarpSize;
  const ptx::SharedAddress cosines = ptx::shared_address(shared.cos), sines = ptx::shared_address(shared.sin);
  for (int r = warp; r < rows; r += kRotaryThreads / ptx::kWarpSize) {
    const RotaryRow row(p, first_row + r);
    const int64_t position = ptx::shuffle(lane == 0 ? row.position(p) : 0, 0);
    const int64_t cos = row.b * p.cos.batch_stride + position * p.cos.row_stride;
    const int64_t sin = row.b * p.sin.batch_stride + position * p.sin.row_stride;
    for (int i = lane; i < p.half_dim; i += ptx::kWarpSize) {
      const int slot = 4 * (r * plan.angle_stride + angle_slot(plan, splits, i));
      const float s = cuda::load_number(p.sin.data, p.table_dtype, sin + i);
      ptx::store_shared(cosines + slot, cuda::load_number(p.cos.data, p.table_dtype, cos + i));
      ptx::store_shared(sines + slot, p.conjugate ? -s : s);
    }
  }
}

// kCount floats of shared memory in chunks of kChunk, `apart` bytes from one to the next.
template <int kChunk, int kCount>
FLAGATTN_DEVICE void load_angles(ptx::SharedAddress address, int apart, float (&angles)[kCount]) {
  struct alignas(4 * kChunk) Chunk {
    float numbers[kChunk];
  };
  FLAGATTN_UNROLL_ALL
  for (int i = 0; i < kCount; i += kChunk) {
    const auto chunk = ptx::load_shared<Chunk>(address + i / kChunk * apart);
    FLAGATTN_UNROLL_ALL
    for (int k = 0; k < kChunk; ++k) angles[i + k] = chunk.numbers[k];
  }
}

FLAGATTN_DEVICE void rotate(float& first, float& second, float cos, float sin) {
  const float x = first, y = second;
  first = fmaf(x, cos, -y * sin);
  second = fmaf(y, cos, x * sin);
}

// Pairs are neighbours: the vector's own elements, which take half as many angles.
template <typename T>
FLAGATTN_DEVICE void rotate_neighbours(float (&x)[cuda::kVector<T>], ptx::SharedAddress cosines,
                                       ptx::SharedAddress sines) {
  constexpr int kPairs = cuda::kVector<T> / 2;
  float cos[kPairs], sin[kPairs];
  load_angles<kPairs>(cosines, 0, cos);
  load_angles<kPairs>(sines, 0, sin);
  FLAGATTN_UNROLL_ALL
  for (int i = 0; i < kPairs; ++i) rotate(x[2 * i], x[2 * i + 1], cos[i], sin[i]);
}

template <typename T>
FLAGATTN_KERNEL(kRotaryThreads, 8)
rotary_kernel(FLAGATTN_KERNEL_ARGUMENT RotaryArguments arguments) {
  constexpr int kVector = cuda::kVector<T>;
  const RotaryParams& p = arguments.params;
  const RotaryPlan& plan = arguments.plan;
  auto& shared = ptx::shared_storage<RotaryShared>();
  const int heads = static_cast<int>(p.heads), half_dim = static_cast<int>(p.half_dim);
  const int64_t first_row = int64_t{ptx::block_index()} * plan.rows_per_block;
  const int64_t rows_left = p.batch * p.seqlen - first_row;
  const int rows = rows_left < plan.rows_per_block ? static_cast<int>(rows_left) : plan.rows_per_block;

  const bool splits = kVector == 8 && !p.interleaved;
  keep_angles(p, plan, shared, first_row, rows, splits);
  if (!planted(Fault::kMissingBarrier)) ptx::sync_block();

  // The rotated channels: a vector of the first half and one of the second.
  for (int item = ptx::thread_index(); item < rows * heads * plan.pieces; item += kRotaryThreads) {
    const int piece = item % plan.pieces, head = item / plan.pieces % heads, r = item / plan.pieces / heads;
    const RotaryRow row(p, first_row + (planted(Fault::kWrongRow) ? (r + 1) % rows : r));
    const T* x = static_cast<const T*>(p.x.data) + row.offset(p.x, head) + piece * kVector;
    float first[kVector], second[kVector];
    cuda::widen<T>(ptx::load_global_16_once(x + (planted(Fault::kStrayRead) ? p.head_dim : 0)), first);
    cuda::widen<T>(ptx::load_global_16_once(x + half_dim), second);
    const ptx::SharedAddress cosines = ptx::shared_address(shared.cos + r * plan.angle_stride);
    const ptx::SharedAddress sines = ptx::shared_address(shared.sin + r * plan.angle_stride);
    if (p.interleaved) {
      const int at = 2 * kVector * piece;
      rotate_neighbours<T>(first, cosines + at, sines + at);
      rotate_neighbours<T>(second, cosines + at + 2 * half_dim, sines + at + 2 * half_dim);
    } else {
      float cos[kVector], sin[kVector];
      load_angles<4>(cosines + 16 * piece, 4 * plan.odd_chunks, cos);
      load_angles<4>(sines + 16 * piece, 4 * plan.odd_chunks, sin);
      FLAGATTN_UNROLL_ALL
      for (int i = 0; i < kVector; ++i) rotate(first[i], second[i], cos[i], sin[i]);
    }
    T* y = static_cast<T*>(p.y.data) + row.offset(p.y, head) + piece * kVector;
    ptx::store_global_16(y + (planted(Fault::kStrayWrite) ? p.head_dim : 0), cuda::narrow<T>(first));
    ptx::store_global_16(y + half_dim, cuda::narrow<T>(second));
  }

  // The channels behind them.
  if (p.x.data == p.y.data) return;
  for (int item = ptx::thread_index(); item < rows * heads * plan.rest; item += kRotaryThreads) {
    const int head = item / plan.rest % heads;
    const RotaryRow row(p, first_row + item / plan.rest / heads);
    const int64_t channel = 2 * half_dim + item % plan.rest * kVector;
    ptx::store_global_16(static_cast<T*>(p.y.data) + row.offset(p.y, head) + channel,
                         ptx::load_global_16_once(static_cast<const T*>(p.x.data) + row.offset(p.x, head) + channel));
  }
}

}  // namespace flagattn::sm80
