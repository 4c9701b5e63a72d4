// Philox-4x32-10 against the known answers that its authors publish with it, and the vectors of dropout against Philox.
#include "arch/philox.h"

#include <cstdio>

#include "attention/cpu/dropout.h"

namespace isa = flagattn::FLAGATTN_ISA;

namespace {

struct Known {
  uint32_t counter[4], key[2], words[4];
};

constexpr Known kKnown[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

// A panel's factors, of heads whose stream numbers pass 2^32, against the same words one by one.
bool dropout_agrees(uint64_t seed, uint64_t offset, int64_t first_key, int64_t num_keys) {
  const int64_t rng_state[] = {static_cast<int64_t>(seed), static_cast<int64_t>(offset)};
  flagattn::AttentionParams params;
  params.heads_q = 5;
  params.dropout = {rng_state, 0x9876543fu, 2.5f};
  isa::Column columns[isa::kPanel];
  const int count = isa::kPanel - 1;
  for (int c = 0; c < count; ++c) columns[c] = {70000 + 3 * c, c % 5};
  float factors[128 * isa::kPanel];
  isa::write_dropout(params, /*sequence=*/7, columns, count, first_key, num_keys, factors);
  for (int64_t i = 0; i < num_keys; ++i) {
    for (int c = 0; c < count; ++c) {
      const uint64_t stream = offset + 7 * 5 + static_cast<uint64_t>(columns[c].head);
      const auto key = static_cast<uint32_t>(first_key + i);
      const flagattn::PhiloxWords words = flagattn::philox(
          key / 4, static_cast<uint32_t>(columns[c].row), static_cast<uint32_t>(stream),
          static_cast<uint32_t>(stream >> 32), static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
      const float expected = words.word[key % 4] <= params.dropout.last_dropped ? 0.0f : 2.5f;
      if (factors[i * isa::kPanel + c] == expected) continue;
      std::printf("the factor of key %d and column %d is not %g\n", static_cast<int>(key), c, expected);
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  for (const Known& known : kKnown) {
    const uint32_t* c = known.counter;
    const flagattn::PhiloxWords words = flagattn::philox(c[0], c[1], c[2], c[3], known.key[0], known.key[1]);
    for (int i = 0; i < 4; ++i) {
      if (words.word[i] == known.words[i]) continue;
      std::printf("word %d is %08x, not %08x\n", i, words.word[i], known.words[i]);
      return 1;
    }
  }
  return dropout_agrees(0x123456789abcdef0u, 0xfffffff0u, 0, 128) && dropout_agrees(3, ~uint64_t{0} - 20, 4096, 50) ? 0
                                                                                                                    : 1;
}
