// The weight's gradient from partial sums: for 32 columns a block, each warp adds a range of partial rows in order, and
// the ranges are added in order. The partial rows are the shape's, so the bits are too.
#pragma once

#include "arch/cuda/vector.cuh"
#include "arch/ptx/barrier.cuh"
#include "arch/ptx/warp.cuh"
#include "norm/cuda/sm80/heuristics.h"
#include "norm/cuda/sm80/launch.h"

namespace flagattn::sm80 {

// Kahan's sum: `lost` is what the additions so far have rounded away, so many rows cost no accuracy.
struct ExactSum {
  float sum = 0.0f, lost = 0.0f;
  FLAGATTN_DEVICE void add(float value) {
    const float addend = value - lost, next = sum + addend;
    lost = (next - sum) - addend;
    sum = next;
  }
};

FLAGATTN_KERNEL(kPartialRanges* ptx::kWarpSize, 1)
weight_gradient_kernel(FLAGATTN_KERNEL_ARGUMENT WeightGradientArguments arguments) {
  const auto& a = arguments;
  auto& shared = ptx::shared_storage<WeightGradientShared>();
  const int range = ptx::thread_index() / ptx::kWarpSize, lane = ptx::thread_index() % ptx::kWarpSize;
  const int64_t column = int64_t{ptx::block_index()} * ptx::kWarpSize + lane;

  ExactSum own;
  const int64_t begin = range * a.num_partials / kPartialRanges, end = (range + 1) * a.num_partials / kPartialRanges;
  for (int64_t row = begin; row < end && column < a.cols; ++row) {
    own.add(ptx::load_global(a.partials + row * norm_partial_stride(a.cols) + column));
  }
  ptx::store_shared(ptx::shared_address(&shared.of_range[range][lane]), own.sum);
  if (!planted(Fault::kMissingBarrier)) ptx::sync_block();

  if (range > 0 || column >= a.cols) return;
  ExactSum all;
  for (int other = 0; other < kPartialRanges; ++other) {
    all.add(ptx::load_shared<float>(ptx::shared_address(&shared.of_range[other][lane])));
  }
  cuda::store_number(a.dweight, a.weight_dtype, column, all.sum);
}

}  // namespace flagattn::sm80
