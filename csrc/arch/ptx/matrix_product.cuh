// Matrix products of a warp on tensor cores (mma.sync): d += a b.
//
// With g = lane / 4 and t = lane % 4 a lane holds d[g + 8 i][2 t + j] in d[2 i + j]. A register of a or b holds 4 bytes
// along K: those from 4 t + 16 (r / 2) on of row g + 8 (r % 2) in a[r], those from 4 t + 16 r on of column g in b[r].
#pragma once

#include <type_traits>

#include "arch/dtypes.h"
#include "arch/ptx/language.cuh"

namespace flagattn::ptx {

#if FLAGATTN_ON_GPU
// One instruction over 32 or 16 bytes of K; `number` is how asm calls the accumulators: "f" (fp32) or "r" (int32).
#define FLAGATTN_MMA_32_BYTES(shape_and_types, number)                                                       \
  asm("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+" number(d[0]), "+" number(d[1]), "+" number(d[2]), "+" number(d[3])                               \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#define FLAGATTN_MMA_16_BYTES(shape_and_types, number)                                           \
  asm("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};" \
      : "+" number(d[0]), "+" number(d[1]), "+" number(d[2]), "+" number(d[3])                   \
      : "r"(a[0]), "r"(a[1]), "r"(b[0]))
#else
template <typename Element>
constexpr host_exec::Numbers numbers_of() {
  using host_exec::Numbers;
  if constexpr (std::is_same_v<Element, BFloat16>) return Numbers::kBFloat16;
  if constexpr (std::is_same_v<Element, Float16>) return Numbers::kFloat16;
  if constexpr (std::is_same_v<Element, Float8E4M3>) return Numbers::kFloat8E4M3;
  if constexpr (std::is_same_v<Element, Float8E5M2>) return Numbers::kFloat8E5M2;
  if constexpr (std::is_same_v<Element, int8_t>) return Numbers::kInt8;
  if constexpr (std::is_same_v<Element, uint8_t>) return Numbers::kUInt8;
}
#endif

template <typename Element>
inline constexpr bool kIs16Bit = std::is_same_v<Element, BFloat16> || std::is_same_v<Element, Float16>;
template <typename Element>
inline constexpr bool kIsFloat8 = std::is_same_v<Element, Float8E4M3> || std::is_same_v<Element, Float8E5M2>;
template <typename Element>
inline constexpr bool kIsByte = std::is_same_v<Element, int8_t> || std::is_same_v<Element, uint8_t>;

// A 16 x 16 `a` and a 16 x 8 `b` of BFloat16 or Float16, summed in fp32 (mma.sync.m16n8k16).
template <typename Element>
FLAGATTN_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(kIs16Bit<Element>);
#if FLAGATTN_ON_GPU
  if constexpr (std::is_same_v<Element, BFloat16>) {
    FLAGATTN_MMA_32_BYTES("m16n8k16.row.col.f32.bf16.bf16.f32", "f");
  } else {
    FLAGATTN_MMA_32_BYTES("m16n8k16.row.col.f32.f16.f16.f32", "f");
  }
#else
  host_exec::mma(d, a, b, numbers_of<Element>(), numbers_of<Element>(), 32);
#endif
}

// A 16 x 8 `a` and a 8 x 8 `b` of BFloat16 or Float16, summed in fp32 (mma.sync.m16n8k8).
template <typename Element>
FLAGATTN_DEVICE void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
  static_assert(kIs16Bit<Element>);
#if FLAGATTN_ON_GPU
  if constexpr (std::is_same_v<Element, BFloat16>) {
    FLAGATTN_MMA_16_BYTES("m16n8k8.row.col.f32.bf16.bf16.f32", "f");
  } else {
    FLAGATTN_MMA_16_BYTES("m16n8k8.row.col.f32.f16.f16.f32", "f");
  }
#else
  host_exec::mma(d, a, b, numbers_of<Element>(), numbers_of<Element>(), 16);
#endif
}

// A 16 x 32 `a` and a 32 x 8 `b` of Float8E4M3 or Float8E5M2 each, summed in fp32 (mma.sync.m16n8k32, sm_89).
template <typename A, typename B>
FLAGATTN_DEVICE void mma_m16n8k32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(kIsFloat8<A> && kIsFloat8<B>);
#if FLAGATTN_ON_GPU
  if constexpr (std::is_same_v<A, Float8E4M3> && std::is_same_v<B, Float8E4M3>) {
    FLAGATTN_MMA_32_BYTES("m16n8k32.row.col.f32.e4m3.e4m3.f32", "f");
  } else if constexpr (std::is_same_v<A, Float8E4M3> && std::is_same_v<B, Float8E5M2>) {
    FLAGATTN_MMA_32_BYTES("m16n8k32.row.col.f32.e4m3.e5m2.f32", "f");
  } else if constexpr (std::is_same_v<A, Float8E5M2> && std::is_same_v<B, Float8E4M3>) {
    FLAGATTN_MMA_32_BYTES("m16n8k32.row.col.f32.e5m2.e4m3.f32", "f");
  } else {
    FLAGATTN_MMA_32_BYTES("m16n8k32.row.col.f32.e5m2.e5m2.f32", "f");
  }
#else
  host_exec::mma(d, a, b, numbers_of<A>(), numbers_of<B>(), 32);
#endif
}

// A 16 x 16 `a` and a 16 x 8 `b` of Float8E4M3 or Float8E5M2 each, summed in fp32 (mma.sync.m16n8k16, sm_89).
template <typename A, typename B>
FLAGATTN_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
  static_assert(kIsFloat8<A> && kIsFloat8<B>);
#if FLAGATTN_ON_GPU
  if constexpr (std::is_same_v<A, Float8E4M3> && std::is_same_v<B, Float8E4M3>) {
    FLAGATTN_MMA_16_BYTES("m16n8k16.row.col.f32.e4m3.e4m3.f32", "f");
  } else if constexpr (std::is_same_v<A, Float8E4M3> && std::is_same_v<B, Float8E5M2>) {
    FLAGATTN_MMA_16_BYTES("m16n8k16.row.col.f32.e4m3.e5m2.f32", "f");
  } else if constexpr (std::is_same_v<A, Float8E5M2> && std::is_same_v<B, Float8E4M3>) {
    FLAGATTN_MMA_16_BYTES("m16n8k16.row.col.f32.e5m2.e4m3.f32", "f");
  } else {
    FLAGATTN_MMA_16_BYTES("m16n8k16.row.col.f32.e5m2.e5m2.f32", "f");
  }
#else
  host_exec::mma(d, a, b, numbers_of<A>(), numbers_of<B>(), 16);
#endif
}

// A 16 x 32 `a` and a 32 x 8 `b` of int8_t or uint8_t each, summed in int32 (mma.sync.m16n8k32).
template <typename A, typename B>
FLAGATTN_DEVICE void mma_m16n8k32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(kIsByte<A> && kIsByte<B>);
#if FLAGATTN_ON_GPU
  if constexpr (std::is_same_v<A, int8_t> && std::is_same_v<B, int8_t>) {
    FLAGATTN_MMA_32_BYTES("m16n8k32.row.col.s32.s8.s8.s32", "r");
  } else if constexpr (std::is_same_v<A, int8_t> && std::is_same_v<B, uint8_t>) {
    FLAGATTN_MMA_32_BYTES("m16n8k32.row.col.s32.s8.u8.s32", "r");
  } else if constexpr (std::is_same_v<A, uint8_t> && std::is_same_v<B, int8_t>) {
    FLAGATTN_MMA_32_BYTES("m16n8k32.row.col.s32.u8.s8.s32", "r");
  } else {
    FLAGATTN_MMA_32_BYTES("m16n8k32.row.col.s32.u8.u8.s32", "r");
  }
#else
  host_exec::mma(d, a, b, numbers_of<A>(), numbers_of<B>(), 32);
#endif
}

// A 16 x 16 `a` and a 16 x 8 `b` of int8_t or uint8_t each, summed in int32 (mma.sync.m16n8k16).
template <typename A, typename B>
FLAGATTN_DEVICE void mma_m16n8k16(int32_t (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
  static_assert(kIsByte<A> && kIsByte<B>);
#if FLAGATTN_ON_GPU
  if constexpr (std::is_same_v<A, int8_t> && std::is_same_v<B, int8_t>) {
    FLAGATTN_MMA_16_BYTES("m16n8k16.row.col.s32.s8.s8.s32", "r");
  } else if constexpr (std::is_same_v<A, int8_t> && std::is_same_v<B, uint8_t>) {
    FLAGATTN_MMA_16_BYTES("m16n8k16.row.col.s32.s8.u8.s32", "r");
  } else if constexpr (std::is_same_v<A, uint8_t> && std::is_same_v<B, int8_t>) {
    FLAGATTN_MMA_16_BYTES("m16n8k16.row.col.s32.u8.s8.s32", "r");
  } else {
    FLAGATTN_MMA_16_BYTES("m16n8k16.row.col.s32.u8.u8.s32", "r");
  }
#else
  host_exec::mma(d, a, b, numbers_of<A>(), numbers_of<B>(), 16);
#endif
}

#if FLAGATTN_ON_GPU
#undef FLAGATTN_MMA_32_BYTES
#undef FLAGATTN_MMA_16_BYTES
#endif

}  // namespace flagattn::ptx
