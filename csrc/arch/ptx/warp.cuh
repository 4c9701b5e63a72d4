// Talking inside a warp. `mask` names the lanes that take part; all of them make the same call.
#pragma once

#include <type_traits>

#include "arch/ptx/language.cuh"

namespace flagattn::ptx {

inline constexpr int kWarpSize = 32;
inline constexpr uint32_t kAllLanes = 0xffffffffu;

#if !FLAGATTN_ON_GPU
template <typename Value>
Value shuffle_bits(host_exec::Shuffle kind, Value value, int lane, uint32_t mask, int width) {
  static_assert(sizeof(Value) == 4 && std::is_trivially_copyable_v<Value>);
  return __builtin_bit_cast(Value, host_exec::shuffle(kind, __builtin_bit_cast(uint32_t, value), lane, mask, width));
}
#endif

// The value of lane `lane` of the caller's segment of `width` lanes (shfl.sync.idx).
template <typename Value>
FLAGATTN_DEVICE Value shuffle(Value value, int lane, uint32_t mask = kAllLanes, int width = kWarpSize) {
#if FLAGATTN_ON_GPU
  return __shfl_sync(mask, value, lane, width);
#else
  return shuffle_bits(host_exec::Shuffle::kIndex, value, lane, mask, width);
#endif
}

// The value of the lane `distance` below in the segment; the lowest lanes keep their own (shfl.sync.up).
template <typename Value>
FLAGATTN_DEVICE Value shuffle_up(Value value, int distance, uint32_t mask = kAllLanes, int width = kWarpSize) {
#if FLAGATTN_ON_GPU
  return __shfl_up_sync(mask, value, static_cast<unsigned>(distance), width);
#else
  return shuffle_bits(host_exec::Shuffle::kUp, value, distance, mask, width);
#endif
}

// The value of the lane `distance` above in the segment; the highest lanes keep their own (shfl.sync.down).
template <typename Value>
FLAGATTN_DEVICE Value shuffle_down(Value value, int distance, uint32_t mask = kAllLanes, int width = kWarpSize) {
#if FLAGATTN_ON_GPU
  return __shfl_down_sync(mask, value, static_cast<unsigned>(distance), width);
#else
  return shuffle_bits(host_exec::Shuffle::kDown, value, distance, mask, width);
#endif
}

// The value that lane (own lane ^ lane_mask) passed in (shfl.sync.bfly).
template <typename Value>
FLAGATTN_DEVICE Value shuffle_xor(Value value, int lane_mask, uint32_t mask = kAllLanes, int width = kWarpSize) {
#if FLAGATTN_ON_GPU
  return __shfl_xor_sync(mask, value, lane_mask, width);
#else
  return shuffle_bits(host_exec::Shuffle::kXor, value, lane_mask, mask, width);
#endif
}

// A bit per lane of `mask` whose predicate holds (vote.sync.ballot).
FLAGATTN_DEVICE uint32_t ballot(bool predicate, uint32_t mask = kAllLanes) {
#if FLAGATTN_ON_GPU
  return __ballot_sync(mask, predicate);
#else
  return host_exec::ballot(predicate, mask);
#endif
}

// Whether the predicate holds in every lane of `mask` (vote.sync.all).
FLAGATTN_DEVICE bool vote_all(bool predicate, uint32_t mask = kAllLanes) {
#if FLAGATTN_ON_GPU
  return __all_sync(mask, predicate);
#else
  return host_exec::ballot(predicate, mask) == mask;
#endif
}

// Whether the predicate holds in some lane of `mask` (vote.sync.any).
FLAGATTN_DEVICE bool vote_any(bool predicate, uint32_t mask = kAllLanes) {
#if FLAGATTN_ON_GPU
  return __any_sync(mask, predicate);
#else
  return host_exec::ballot(predicate, mask) != 0;
#endif
}

// True in one lane of `mask`, the same one every time (elect.sync, sm_90).
FLAGATTN_DEVICE bool elect_one(uint32_t mask = kAllLanes) {
#if FLAGATTN_ON_GPU
  uint32_t elected;
  asm volatile("{ .reg .pred p; elect.sync _|p, %1; selp.u32 %0, 1, 0, p; }" : "=r"(elected) : "r"(mask));
  return elected != 0;
#else
  return host_exec::elect_one(mask);
#endif
}

// Waits for the lanes of `mask` and makes their earlier memory accesses visible to each other (bar.warp.sync).
FLAGATTN_DEVICE void sync_warp(uint32_t mask = kAllLanes) {
#if FLAGATTN_ON_GPU
  __syncwarp(mask);
#else
  host_exec::sync_warp(mask);
#endif
}

}  // namespace flagattn::ptx
