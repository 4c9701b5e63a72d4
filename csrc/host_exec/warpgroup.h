// Products of a warpgroup that are under way, per warp.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "host_exec/sanitizer.h"

namespace flagattn::host_exec {

struct WarpgroupProduct {
  float* d[32];  // of each lane, up to the wait
  const uint32_t* a[32];
  uint64_t descriptor_a, descriptor_b;
  int n;
  bool a_in_registers, accumulates, is_bfloat16, transposes_a, transposes_b;
  const void* place;
};

inline constexpr int kWarpgroupTokens = 64;

// Groups finish in order.
struct WarpgroupProducts {
  std::deque<std::vector<WarpgroupProduct>> closed;
  std::vector<WarpgroupProduct> open;
  uint64_t issued = 0;       // products since the start
  uint64_t committed = 0;    // groups
  uint64_t waited[32] = {};  // groups, per lane
  struct Tokens {
    tsan::Token issue, group[kWarpgroupTokens];
  };
  std::unique_ptr<Tokens> tokens;  // anew for every block
  void* engine = nullptr;
};

}  // namespace flagattn::host_exec
