// The instructions of AMX tiles: eight registers of 16 rows x 64 bytes, chosen by number. Included by arch/simd/tiles.h
// only; tests/arch/tile_emulation has a twin of this file for hosts without tiles.
//
// Written as assembly, since the compilers' intrinsics want the numbers as literals and some do not tell the compiler
// that they read memory.
#pragma once

#include <cstdint>

namespace flagattn::FLAGATTN_ISA::instructions {

// 64 bytes: palette, then the row lengths and numbers of rows of each register.
FLAGATTN_INLINE void load_config(const void* config) {
  asm volatile("ldtilecfg %0" : : "m"(*static_cast<const char(*)[64]>(config)));
}
// All zero where nothing is configured.
FLAGATTN_INLINE void store_config(void* config) {
  asm volatile("sttilecfg %0" : "=m"(*static_cast<char(*)[64]>(config)));
}
FLAGATTN_INLINE void release() { asm volatile("tilerelease"); }

template <int kTile>
FLAGATTN_INLINE void zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
// Rows lie `stride` bytes apart.
template <int kTile>
FLAGATTN_INLINE void load(const void* rows, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
FLAGATTN_INLINE void store(void* rows, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(stride), "i"(kTile) : "memory");
}
// kSum += kA kB, of bf16 pairs into fp32. Even and odd products of the rows' pairs are summed apart, in order, from 0
// on; then one sum is added to the other, and that to kSum. Denormals count as 0, on the way in and out.
template <int kSum, int kA, int kB>
FLAGATTN_INLINE void multiply_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

// Sixteen dwords: the lower halves are `even` rounded to bf16 (nearest even; NaN stays; denormals become 0), the upper
// ones `odd`.
FLAGATTN_INLINE __m512i round_pairs(__m512 even, __m512 odd) {
  const __m512i halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));  // `even` comes first
  const __m512i places =
      _mm512_setr_epi32(0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007, 0x180008,
                        0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f);
  return _mm512_permutexvar_epi16(places, halves);
}

// 32 halves: `first` rounded so, then `second`.
FLAGATTN_INLINE __m512i round_halves(__m512 first, __m512 second) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}

// The first n of 32 halves, 0 <= n < 32, zeros behind them; nothing else is read.
FLAGATTN_INLINE __m512i load_halves(const void* from, int64_t n) {
  return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << n) - 1u), from);
}

// Of 32 halves each: dwords first[i] = {even[i], odd[i]} for i < 16, second[i] = {even[16 + i], odd[16 + i]}.
FLAGATTN_INLINE void interleave(__m512i even, __m512i odd, __m512i& first, __m512i& second) {
  const __m512i low = _mm512_setr_epi32(0x200000, 0x210001, 0x220002, 0x230003, 0x240004, 0x250005, 0x260006, 0x270007,
                                        0x280008, 0x290009, 0x2a000a, 0x2b000b, 0x2c000c, 0x2d000d, 0x2e000e, 0x2f000f);
  const __m512i high =
      _mm512_setr_epi32(0x300010, 0x310011, 0x320012, 0x330013, 0x340014, 0x350015, 0x360016, 0x370017, 0x380018,
                        0x390019, 0x3a001a, 0x3b001b, 0x3c001c, 0x3d001d, 0x3e001e, 0x3f001f);
  first = _mm512_permutex2var_epi16(even, low, odd);
  second = _mm512_permutex2var_epi16(even, high, odd);
}

}  // namespace flagattn::FLAGATTN_ISA::instructions
