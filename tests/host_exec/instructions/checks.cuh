// Every check, by the architecture that its instructions need. FLAGATTN_INSTRUCTIONS_SM80 leaves out those of sm_90.
#pragma once

#include "tests/host_exec/instructions/atomic.cuh"
#include "tests/host_exec/instructions/copy.cuh"
#include "tests/host_exec/instructions/global.cuh"
#include "tests/host_exec/instructions/matrix.cuh"
#include "tests/host_exec/instructions/warp.cuh"
#if !defined(FLAGATTN_INSTRUCTIONS_SM80)
#include "tests/host_exec/instructions/bulk.cuh"
#include "tests/host_exec/instructions/matrix_sm90.cuh"
#include "tests/host_exec/instructions/warpgroup.cuh"
#endif

namespace flagattn::instructions {

inline std::vector<Check> all_checks([[maybe_unused]] int architecture) {
  std::vector<Check> checks;
  const auto take = [&](const std::vector<Check>& more) { checks.insert(checks.end(), more.begin(), more.end()); };
  take(kWarpChecks);
  take(kCopyChecks);
  take(kGlobalChecks);
  take(kMatrixChecks);
  take(kAtomicChecks);
#if !defined(FLAGATTN_INSTRUCTIONS_SM80)
  if (architecture >= 90) {
    take(kMatrixChecksSm90);
    take(kBulkChecks);
    take(kWarpgroupChecks);
  }
#endif
  return checks;
}

}  // namespace flagattn::instructions
