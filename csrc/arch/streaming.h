// When a kernel should write past the caches.
#pragma once

#include <cstdint>

namespace flagattn {

// An output this large is gone from the caches before anybody reads it, so that fetching its lines before overwriting
// them, as ordinary stores do, is a third of a copy's traffic for nothing. Smaller ones stay for the next op.
constexpr int64_t kStreamingBytes = int64_t{16} << 20;

constexpr bool streams(int64_t output_bytes) { return output_bytes >= kStreamingBytes; }

}  // namespace flagattn
