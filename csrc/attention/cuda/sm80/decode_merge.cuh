// The splits of a row become one: a warp per row, splits in the order of their keys.
#pragma once

#include "arch/ptx/copy.cuh"
#include "arch/ptx/warp.cuh"
#include "attention/cuda/sm80/decode_block.cuh"

namespace flagattn::sm80 {

inline constexpr int kMergeWarps = 4;

// Adds the outputs of splits [first, first + 32) to the thread's: columns 4 * lane and, half a head of 256 further, the
// same again. Lane i brings the weight of split first + i; `present` has a bit for each that was written. Four splits
// are on their way at once.
FLAGATTN_DEVICE void add_splits(float (&output)[2][4], float& sum, const float* split, int64_t split_stride,
                                int64_t head_dim, float weight, uint32_t present, int lane) {
  constexpr int kAtOnce = 4;
  for (int first = 0; first < 32 && present >> first != 0; first += kAtOnce) {
    ptx::Bytes16 parts[kAtOnce][2] = {};
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < kAtOnce; ++i) {
      FLAGATTN_UNROLL_ALL
      for (int half = 0; half < 2; ++half) {
        const int column = 128 * half + 4 * lane;
        const bool has_part = (present >> (first + i) & 1) != 0 && column < head_dim;
        if (has_part) parts[i][half] = ptx::load_global_16(split + (first + i) * split_stride + column);
      }
    }
    FLAGATTN_UNROLL_ALL
    for (int i = 0; i < kAtOnce; ++i) {
      const float own = ptx::shuffle(weight, first + i);
      sum += own;
      FLAGATTN_UNROLL_ALL
      for (int half = 0; half < 2; ++half) {
        float four[4];
        std::memcpy(four, &parts[i][half], sizeof four);
        FLAGATTN_UNROLL_ALL
        for (int e = 0; e < 4; ++e) output[half][e] = std::fma(own, four[e], output[half][e]);
      }
    }
  }
}

template <typename Element>
FLAGATTN_KERNEL(kMergeWarps * 32, 4)
merge_splits_kernel(FLAGATTN_KERNEL_ARGUMENT DecodeArguments arguments) {
  const AttentionParams& p = arguments.params;
  const DecodeSchedule& schedule = arguments.schedule;
  const int lane = ptx::thread_index() % ptx::kWarpSize;
  const int64_t merged = int64_t{ptx::block_index()} * kMergeWarps + ptx::thread_index() / ptx::kWarpSize;
  if (merged >= schedule.merged_rows()) return;

  // The row, where it was split.
  const int column = static_cast<int>(merged % schedule.columns), pair = static_cast<int>(merged / schedule.columns);
  const int index = arguments.first_sequence + pair / schedule.heads_k;
  if (index >= p.batch) return;
  const CachedSequence sequence = cached_sequence(p, index);
  const int group = static_cast<int>(p.heads_q / p.heads_k), num_columns = sequence.seqlen_q * group;
  if (column >= num_columns || attends_at_once(num_columns, sequence.seqlen_k)) return;
  const int head = pair % schedule.heads_k * group + column % group, row = column / group;
  const int splits = (sequence.seqlen_k + kDecodeSplit - 1) / kDecodeSplit;

  // The highest LSE, the sink's with it.
  const float* lses = arguments.lses_of(pair, column);
  const float sink = p.sinks == nullptr ? -INFINITY : ptx::load_global(p.sinks + head);
  float highest = sink;
  for (int split = lane; split < splits; split += 32) highest = std::fmax(highest, ptx::load_global(lses + split));
  FLAGATTN_UNROLL_ALL
  for (int distance = 16; distance > 0; distance /= 2) {
    highest = std::fmax(highest, ptx::shuffle_xor(highest, distance));
  }
  const float offset = highest == -INFINITY ? 0.0f : highest;  // a row without keys must not compute -inf - -inf

  // Weighted sums. What a split did not write is not read.
  float sum = ptx::exp2_approx((sink - offset) * kLog2E);
  float output[2][4] = {};
  const int64_t split_stride = schedule.columns * p.head_dim_v;
  for (int first = 0; first < splits; first += 32) {
    const float lse = first + lane < splits ? ptx::load_global(lses + first + lane) : -INFINITY;
    const uint32_t present = ptx::ballot(lse != -INFINITY);
    add_splits(output, sum, arguments.output_of(pair, first, column), split_stride, p.head_dim_v,
               ptx::exp2_approx((lse - offset) * kLog2E), present, lane);
  }

  // Way out.
  const int64_t at = sequence.first_q + row;
  if (lane == 0) {
    ptx::store_global(p.lse.data + sequence.batch_q * p.lse.batch_stride + head * p.lse.head_stride + at,
                      sum == 0.0f ? -INFINITY : offset + ptx::log2_approx(sum) * kLn2);
  }
  const float factor = sum == 0.0f ? 0.0f : ptx::reciprocal_approx(sum);
  auto* out = static_cast<Element*>(p.out.data) + sequence.batch_q * p.out.batch_stride + at * p.out.row_stride +
              head * p.out.head_stride;
  FLAGATTN_UNROLL_ALL
  for (int half = 0; half < 2; ++half) {
    const int first = 128 * half + 4 * lane;
    if (first >= p.head_dim_v) continue;
    const float* four = output[half];
    const uint64_t low = ptx::pack<Element>(four[0] * factor, four[1] * factor);
    const uint64_t high = ptx::pack<Element>(four[2] * factor, four[3] * factor);
    ptx::store_global(reinterpret_cast<uint64_t*>(out + first), high << 32 | low);
  }
}

}  // namespace flagattn::sm80
