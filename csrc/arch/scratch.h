// Working memory of a kernel: one block per thread, kept between calls, since fresh pages cost more than a short
// sequence.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flagattn::cpu {

inline constexpr size_t kScratchAlignment = 64;

// At least `bytes` bytes, aligned to kScratchAlignment, contents undefined. The next call on the same thread may move
// it.
void* thread_scratch(size_t bytes);

}  // namespace flagattn::cpu
