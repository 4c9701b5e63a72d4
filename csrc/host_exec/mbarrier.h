// The state of a barrier in shared memory.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "host_exec/sanitizer.h"

namespace flagattn::host_exec {

inline constexpr int kMbarrierTokens = 4;

struct Mbarrier {
  uint32_t arrivals = 0;  // per phase
  uint32_t pending = 0;   // that have not come in this phase
  int64_t bytes = 0;      // announced and not landed; below 0 while copies are ahead of their announcement
  uint64_t phase = 0;
  int made_by = 0;
  bool shown_to_engine = false;
  uint32_t waiting[32] = {};  // lanes per warp
  tsan::Token tokens[kMbarrierTokens];
};

using Mbarriers = std::unordered_map<uint32_t, Mbarrier>;

}  // namespace flagattn::host_exec
