// Which element of a matrix each lane holds. Checked against CuTe's traits by tests/host_exec/test_lane_maps.py.
#pragma once

#include <cstdint>

namespace flagattn::host_exec {

struct Place {
  int row;
  int column;
};

// Fragments of mma.sync, for elements of `bytes` = 1 or 2 bytes. `index` counts a lane's elements, register by register
// (4 / bytes of them in each); fp32 and int32 registers count alone. A lane's registers are 4 bytes wide: along K it
// holds bytes 4 * (lane % 4) to + 4 of every 16.
constexpr Place place_in_a(int lane, int index, int bytes) {  // 16 rows, 16 or 32 bytes of K
  const int per_register = 4 / bytes, reg = index / per_register;
  return {lane / 4 + 8 * (reg % 2), per_register * (lane % 4) + index % per_register + 16 / bytes * (reg / 2)};
}
constexpr Place place_in_b(int lane, int index, int bytes) {  // 16 or 32 bytes of K, 8 columns
  const int per_register = 4 / bytes, reg = index / per_register;
  return {per_register * (lane % 4) + index % per_register + 16 / bytes * reg, lane / 4};
}
constexpr Place place_in_d(int lane, int index) {  // 16 x 8, 4 elements a lane
  return {lane / 4 + 8 * (index / 2), 2 * (lane % 4) + index % 2};
}
constexpr Place place_in_warpgroup_d(int lane, int index) {  // of a warp's 16 x N, N / 2 elements a lane
  return {lane / 4 + 8 * (index / 2 % 2), index / 4 * 8 + 2 * (lane % 4) + index % 2};
}
constexpr Place place_in_8x8(int lane, int index) {  // of ldmatrix and stmatrix, 2 elements a lane
  return {lane / 4, 2 * (lane % 4) + index};
}

}  // namespace flagattn::host_exec
