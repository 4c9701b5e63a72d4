// Which element of a matrix each lane holds. Checked against CuTe's traits by tests/host_exec/test_lane_maps.py.
#pragma once

#include <utility>

namespace flagattn::host_exec {

struct Place {
  int row;
  int column;
};

// Register `index` of 2 of a 16-bit pair is element index % 2 of register index / 2; fp32 registers count alone.
constexpr Place place_in_a(int lane, int index) {  // 16 x 16, 8 elements a lane
  const int reg = index / 2;
  return {lane / 4 + 8 * (reg % 2), 2 * (lane % 4) + index % 2 + 8 * (reg / 2)};
}
constexpr Place place_in_b(int lane, int index) {  // 16 (k) x 8 (n), 4 elements a lane
  return {2 * (lane % 4) + index % 2 + 8 * (index / 2), lane / 4};
}
constexpr Place place_in_d(int lane, int index) {  // 16 x 8, 4 elements a lane
  return {lane / 4 + 8 * (index / 2), 2 * (lane % 4) + index % 2};
}
constexpr Place place_in_8x8(int lane, int index) {  // of ldmatrix, 2 elements a lane
  return {lane / 4, 2 * (lane % 4) + index};
}

}  // namespace flagattn::host_exec
