#include "host_exec/faults.h"

#include <stdexcept>

#include "arch/planted_fault.h"

namespace flagattn::host_exec {
namespace {

struct Named {
  const char* name;
  Fault fault;
};
constexpr Named kFaults[] = {
    {"", Fault::kNone},
    {"missing_barrier", Fault::kMissingBarrier},
    {"missing_part_barrier", Fault::kMissingPartBarrier},
    {"missing_copy_wait", Fault::kMissingCopyWait},
    {"early_slot_release", Fault::kEarlySlotRelease},
    {"wrong_swizzle", Fault::kWrongSwizzle},
    {"stray_read", Fault::kStrayRead},
    {"stray_write", Fault::kStrayWrite},
    {"wrong_mask_edge", Fault::kWrongMaskEdge},
    {"missing_rescale", Fault::kMissingRescale},
    {"missing_warp_sync", Fault::kMissingWarpSync},
    {"divergent_collective", Fault::kDivergentCollective},
    {"wrong_row", Fault::kWrongRow},
    {"missing_scores_barrier", Fault::kMissingScoresBarrier},
    {"unclamped_offsets", Fault::kUnclampedOffsets},
    {"wrong_order", Fault::kWrongOrder},
    {"missing_release_barrier", Fault::kMissingReleaseBarrier},
    {"missing_signal", Fault::kMissingSignal},
    {"missing_global_wait", Fault::kMissingGlobalWait},
};

Fault asked_for = Fault::kNone;
int only_launch = kEveryLaunch, launches = 0;

}  // namespace

void plant(const std::string& fault, int launch) {
  for (const Named& named : kFaults) {
    if (fault != named.name) continue;
    planted_fault = asked_for = named.fault;
    only_launch = launch;
    launches = 0;
    return;
  }
  throw std::invalid_argument("there is no fault " + fault);
}

LaunchWithFault::LaunchWithFault() {
  if (only_launch != kEveryLaunch) planted_fault = launches == only_launch ? asked_for : Fault::kNone;
  ++launches;
}

LaunchWithFault::~LaunchWithFault() {
  if (only_launch != kEveryLaunch) planted_fault = asked_for;
}

}  // namespace flagattn::host_exec
