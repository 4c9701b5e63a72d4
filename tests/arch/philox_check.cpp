// Philox-4x32-10 against the known answers that its authors publish with it.
#include "arch/philox.h"

#include <cstdio>

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
}
