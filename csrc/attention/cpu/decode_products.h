// Which registers multiply the operands of a decode item: vectors of fp32, unless decode_tiles.h says otherwise.
#pragma once

#include "arch/simd.h"

namespace flagattn::FLAGATTN_ISA {

// Whether products of T are those of tile registers, as in the forward.
template <typename T>
inline constexpr bool kInTiles = false;

// Its score_group and add_values, where they are.
template <typename T>
struct DecodeTiles;

// What an item of some columns sets up while it runs.
template <typename T>
struct DecodeRegisters {
  explicit DecodeRegisters(int) {}
};

}  // namespace flagattn::FLAGATTN_ISA
