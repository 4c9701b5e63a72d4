// Talking inside a warp. Every lane takes part.
#pragma once

#include <cstring>

#include "arch/ptx/language.cuh"

namespace flagattn::ptx {

inline constexpr int kWarpSize = 32;

// The value that lane (own lane ^ lane_mask) passed in (shfl.sync.bfly).
FLAGATTN_DEVICE float shuffle_xor(float value, int lane_mask) {
#if FLAGATTN_ON_GPU
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = host_exec::shuffle_xor(bits, lane_mask);
  std::memcpy(&value, &bits, sizeof bits);
  return value;
#endif
}

// Waits for all lanes and makes their earlier memory accesses visible to each other (bar.warp.sync).
FLAGATTN_DEVICE void sync_warp() {
#if FLAGATTN_ON_GPU
  __syncwarp();
#else
  host_exec::sync_warp();
#endif
}

}  // namespace flagattn::ptx
