// How products of a warpgroup are told where an operand lies in shared memory, and what that means.
//
// An operand is made of core matrices of 8 rows of 16 bytes. Without swizzle they lie one by one; with it, 8 rows of
// 32, 64 or 128 bytes lie together, their 16-byte chunks permuted by swizzled(), and start at a multiple of 8 such
// rows.
#pragma once

#include <cstdint>

#include "arch/host_device.h"
#include "arch/tensor_map.h"

namespace flagattn {

struct MatrixDescriptor {
  uint32_t start;    // shared address
  uint32_t leading;  // byte distances between parts of the operand, see offset_in_operand()
  uint32_t stride;
  Swizzle swizzle;
};

// The 64 bits that wgmma takes.
FLAGATTN_HOST_DEVICE constexpr uint64_t descriptor_bits(const MatrixDescriptor& d) {
  const uint64_t layout = d.swizzle == Swizzle::kNone ? 0 : 4 - static_cast<uint64_t>(d.swizzle);
  return uint64_t{d.start >> 4 & 0x3fff} | uint64_t{d.leading >> 4 & 0x3fff} << 16 |
         uint64_t{d.stride >> 4 & 0x3fff} << 32 | layout << 62;
}

constexpr MatrixDescriptor descriptor_of(uint64_t bits) {
  const auto field = [&](int first) { return static_cast<uint32_t>(bits >> first & 0x3fff) << 4; };
  const auto layout = static_cast<int>(bits >> 62);
  return {field(0), field(16), field(32), static_cast<Swizzle>(layout == 0 ? 0 : 4 - layout)};
}

// Where the 2-byte element (row, k) lies, before the swizzle; `row` counts M or N. K-major operands have k contiguous.
constexpr uint32_t offset_in_operand(const MatrixDescriptor& d, int row, int k, bool k_major) {
  const bool swizzles = d.swizzle != Swizzle::kNone;
  const uint32_t line = swizzles ? 16u << static_cast<int>(d.swizzle) : 16;  // bytes that lie together
  const uint32_t across = static_cast<uint32_t>(k_major ? row : k),
                 along = static_cast<uint32_t>(k_major ? k : row) * 2;
  const uint32_t in_block = across % 8 * line + along % line;
  if (k_major) return in_block + across / 8 * d.stride + (swizzles ? 0 : along / line * d.leading);
  return in_block + (swizzles ? along / line * d.leading + across / 8 * d.stride
                              : along / line * d.stride + across / 8 * d.leading);
}

constexpr uint32_t address_in_operand(const MatrixDescriptor& d, int row, int k, bool k_major) {
  return swizzled(d.start + offset_in_operand(d, row, k, k_major), d.swizzle);
}

}  // namespace flagattn
