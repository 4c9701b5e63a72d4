// Mistakes that tests plant in the real kernels to prove that the host runner notices them (docs/host_exec.md).
// FLAGATTN_PLANTED_FAULT names one; without it, as in every shipped build, planted() is false at compile time.
#pragma once

namespace flagattn {

enum class Fault {
  kNone,
  kMissingBarrier,
  kMissingCopyWait,
  kEarlySlotRelease,
  kWrongSwizzle,
  kStrayRead,
  kStrayWrite,
  kWrongMaskEdge,
  kMissingMask,
  kDivergentCollective,
  kMissingRescale,
};

#if !defined(FLAGATTN_PLANTED_FAULT)
#define FLAGATTN_PLANTED_FAULT kNone
#endif

constexpr bool planted(Fault fault) { return fault != Fault::kNone && fault == Fault::FLAGATTN_PLANTED_FAULT; }

}  // namespace flagattn
