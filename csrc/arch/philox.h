// Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): four random words as a function
// of a 128-bit counter and a 64-bit key. There is no state: any place of the stream costs the same.
#pragma once

#include <cstdint>

#include "arch/host_device.h"

namespace flagattn {

struct PhiloxWords {
  uint32_t word[4];
};

namespace philox_constants {
inline constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
inline constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
inline constexpr int kRounds = 10;
}  // namespace philox_constants

// Always inline: this serves files compiled for several instruction sets.
#define FLAGATTN_PHILOX_INLINE inline constexpr __attribute__((always_inline))

// One round: the products' halves change places and are mixed with the counter and the round's key.
FLAGATTN_HOST_DEVICE FLAGATTN_PHILOX_INLINE void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3,
                                                              uint32_t key0, uint32_t key1) {
  const uint64_t p0 = static_cast<uint64_t>(philox_constants::kMultiplier0) * c0;
  const uint64_t p1 = static_cast<uint64_t>(philox_constants::kMultiplier1) * c2;
  const uint32_t next0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
  const uint32_t next2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
  c1 = static_cast<uint32_t>(p1);
  c3 = static_cast<uint32_t>(p0);
  c0 = next0;
  c2 = next2;
}

FLAGATTN_HOST_DEVICE FLAGATTN_PHILOX_INLINE PhiloxWords philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                                                               uint32_t key0, uint32_t key1) {
  for (int round = 0; round < philox_constants::kRounds; ++round) {
    philox_round(c0, c1, c2, c3, key0, key1);
    key0 += philox_constants::kWeyl0;
    key1 += philox_constants::kWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace flagattn
