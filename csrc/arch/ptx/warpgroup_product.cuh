// Matrix products of a warpgroup, four warps in a row (wgmma, sm_90a): d += a b for a 64 x 16 `a` and a 16 x N `b` of
// BFloat16 or Float16, asynchronous, summed in fp32.
//
// Warp w of the group holds rows 16 w to 16 w + 16: with g = lane / 4 and t = lane % 4, d[16 w + g + 8 i][8 j + 2 t +
// e] in d[4 j + 2 i + e], and `a` in registers as mma_m16n8k16 has it. Between wgmma_fence() and the wait for the group
// the registers belong to the product.
#pragma once

#include <type_traits>

#include "arch/dtypes.h"
#include "arch/matrix_descriptor.h"
#include "arch/ptx/shared_memory.cuh"
#include "arch/ptx/wgmma_registers.h"

namespace flagattn::ptx {

// Hands the registers of this warp to the products that follow (wgmma.fence).
FLAGATTN_DEVICE void wgmma_fence() {
#if FLAGATTN_ON_GPU
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  host_exec::wgmma_fence();
#endif
}

// Closes this warp's current group of products (wgmma.commit_group).
FLAGATTN_DEVICE void wgmma_commit() {
#if FLAGATTN_ON_GPU
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  host_exec::wgmma_commit();
#endif
}

// Waits until at most the `kGroupsLeft` youngest of this warp's groups are still under way (wgmma.wait_group).
template <int kGroupsLeft>
FLAGATTN_DEVICE void wgmma_wait() {
#if FLAGATTN_ON_GPU
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsLeft) : "memory");
#else
  host_exec::wgmma_wait(kGroupsLeft);
#endif
}

// Keeps the compiler from moving uses of accumulators across the fence or wait beside it (no instruction).
template <int kRegisters>
FLAGATTN_DEVICE void wgmma_pin([[maybe_unused]] float (&d)[kRegisters]) {
#if FLAGATTN_ON_GPU
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) asm volatile("" : "+f"(d[i])::"memory");
#endif
}

#if FLAGATTN_ON_GPU
// %A ... are the numbers of the operands that follow the accumulators.
#define FLAGATTN_WGMMA_SS(n, type, A, B, P, TA, TB)                                                             \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %" P ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type \
               "." type " {" FLAGATTN_WGMMA_REGISTERS_##n "}, %" A ", %" B ", p, 1, 1, %" TA ", %" TB "; }"     \
               : FLAGATTN_WGMMA_OPERANDS_##n                                                                    \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulates)), "n"(kTransposeA), "n"(kTransposeB)         \
               : "memory")
#define FLAGATTN_WGMMA_RS(n, type, A0, A1, A2, A3, B, P, TB)                                                     \
  asm volatile(                                                                                                  \
      "{ .reg .pred p; setp.ne.b32 p, %" P ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type  \
      " {" FLAGATTN_WGMMA_REGISTERS_##n "}, {%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" B ", p, 1, 1, %" TB "; }"   \
      : FLAGATTN_WGMMA_OPERANDS_##n                                                                              \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulates)), "n"(kTransposeB) \
      : "memory")
#endif

template <int kN>
inline constexpr bool kWgmmaHas = kN == 64 || kN == 128 || kN == 192 || kN == 256;

// Both operands lie in shared memory (wgmma.mma_async). `a` is K-major, `b` (N x K) as well, unless they are
// transposed: then M or N is contiguous. Where `accumulates` is false, d = a b.
template <typename Element, int kN, bool kTransposeA = false, bool kTransposeB = false>
FLAGATTN_DEVICE void wgmma_m64k16(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulates) {
  static_assert(kWgmmaHas<kN> && (std::is_same_v<Element, BFloat16> || std::is_same_v<Element, Float16>));
#if FLAGATTN_ON_GPU
  if constexpr (kN == 64) {
    if constexpr (std::is_same_v<Element, BFloat16>) {
      FLAGATTN_WGMMA_SS(64, "bf16", "32", "33", "34", "35", "36");
    } else {
      FLAGATTN_WGMMA_SS(64, "f16", "32", "33", "34", "35", "36");
    }
  } else if constexpr (kN == 128) {
    if constexpr (std::is_same_v<Element, BFloat16>) {
      FLAGATTN_WGMMA_SS(128, "bf16", "64", "65", "66", "67", "68");
    } else {
      FLAGATTN_WGMMA_SS(128, "f16", "64", "65", "66", "67", "68");
    }
  } else if constexpr (kN == 192) {
    if constexpr (std::is_same_v<Element, BFloat16>) {
      FLAGATTN_WGMMA_SS(192, "bf16", "96", "97", "98", "99", "100");
    } else {
      FLAGATTN_WGMMA_SS(192, "f16", "96", "97", "98", "99", "100");
    }
  } else {
    if constexpr (std::is_same_v<Element, BFloat16>) {
      FLAGATTN_WGMMA_SS(256, "bf16", "128", "129", "130", "131", "132");
    } else {
      FLAGATTN_WGMMA_SS(256, "f16", "128", "129", "130", "131", "132");
    }
  }
#else
  host_exec::wgmma(d, kN, nullptr, a, b, accumulates, std::is_same_v<Element, BFloat16>, kTransposeA, kTransposeB);
#endif
}

// The same with `a` in registers.
template <typename Element, int kN, bool kTransposeB = false>
FLAGATTN_DEVICE void wgmma_m64k16(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulates) {
  static_assert(kWgmmaHas<kN> && (std::is_same_v<Element, BFloat16> || std::is_same_v<Element, Float16>));
#if FLAGATTN_ON_GPU
  if constexpr (kN == 64) {
    if constexpr (std::is_same_v<Element, BFloat16>) {
      FLAGATTN_WGMMA_RS(64, "bf16", "32", "33", "34", "35", "36", "37", "38");
    } else {
      FLAGATTN_WGMMA_RS(64, "f16", "32", "33", "34", "35", "36", "37", "38");
    }
  } else if constexpr (kN == 128) {
    if constexpr (std::is_same_v<Element, BFloat16>) {
      FLAGATTN_WGMMA_RS(128, "bf16", "64", "65", "66", "67", "68", "69", "70");
    } else {
      FLAGATTN_WGMMA_RS(128, "f16", "64", "65", "66", "67", "68", "69", "70");
    }
  } else if constexpr (kN == 192) {
    if constexpr (std::is_same_v<Element, BFloat16>) {
      FLAGATTN_WGMMA_RS(192, "bf16", "96", "97", "98", "99", "100", "101", "102");
    } else {
      FLAGATTN_WGMMA_RS(192, "f16", "96", "97", "98", "99", "100", "101", "102");
    }
  } else {
    if constexpr (std::is_same_v<Element, BFloat16>) {
      FLAGATTN_WGMMA_RS(256, "bf16", "128", "129", "130", "131", "132", "133", "134");
    } else {
      FLAGATTN_WGMMA_RS(256, "f16", "128", "129", "130", "131", "132", "133", "134");
    }
  }
#else
  host_exec::wgmma(d, kN, a, 0, b, accumulates, std::is_same_v<Element, BFloat16>, false, kTransposeB);
#endif
}

// Gives this warpgroup kRegisters registers a thread in exchange for what it has (setmaxnreg): fewer, or more once
// others have given theirs up.
template <int kRegisters>
FLAGATTN_DEVICE void release_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
#if FLAGATTN_ON_GPU
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
FLAGATTN_DEVICE void claim_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
#if FLAGATTN_ON_GPU
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

}  // namespace flagattn::ptx
