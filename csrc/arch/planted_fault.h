// Mistakes that tests plant in the real kernels to prove that the host runner notices each of them (docs/host_exec.md).
// Only the runner's builds define FLAGATTN_PLANT_FAULTS; everywhere else planted() is false at compile time and costs
// nothing.
#pragma once

namespace flagattn {

enum class Fault {
  kNone,
  kMissingBarrier,
  kMissingPartBarrier,
  kMissingCopyWait,
  kEarlySlotRelease,
  kWrongSwizzle,
  kStrayRead,
  kStrayWrite,
  kWrongMaskEdge,
  kMissingRescale,
  kMissingWarpSync,
  kDivergentCollective,
  kWrongRow,
  // In the small kernels of tests/host_exec/instructions:
  kMissingSignal,
  kUnorderedSignal,
  kMissingProxyFence,
  kMissingProductFence,
  kMissingGlobalWait,
  kMissingExpectation,
  // In the attention backward:
  kMissingScoresBarrier,
  kUnclampedOffsets,  // and in the forward
  kWrongOrder,
  kMissingReleaseBarrier,
};

#if defined(FLAGATTN_PLANT_FAULTS)
inline Fault planted_fault = Fault::kNone;
inline bool planted(Fault fault) { return planted_fault == fault; }
#else
constexpr bool planted(Fault) { return false; }
#endif

}  // namespace flagattn
