// The values of positions, where the host can read them.
#pragma once

#include <cstdint>
#include <string>

#include "arch/status.h"
#include "rotary/params.h"

namespace flagattn {

// Refuses positions that cos and sin have no row for.
inline Status check_positions(const RotaryParams& params) {
  if (params.positions32 == nullptr && params.positions64 == nullptr) return Status::success();
  const int64_t batches = params.positions_batch_stride == 0 ? 1 : params.batch;
  for (int64_t b = 0; b < batches; ++b) {
    for (int64_t s = 0; s < params.seqlen; ++s) {
      const int64_t position = params.position_of(b, s);
      if (position >= 0 && position < params.num_positions) continue;
      return Status::error("positions holds " + std::to_string(position) + " at row " + std::to_string(s) +
                           " of sequence " + std::to_string(b) + "; cos and sin have rows 0 to " +
                           std::to_string(params.num_positions - 1) + ".");
    }
  }
  return Status::success();
}

}  // namespace flagattn
