// What one block did, event by event, for the microscope (docs/kernels/microscope.md). Only the block that a test asks
// for is recorded; all others pay one comparison per counted instruction.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "host_exec/happens_before.h"
#include "host_exec/host_exec.h"

namespace flagattn::host_exec {

// What a warp does beside the Instructions, numbered behind them.
enum class Happening : uint8_t { kSpecialFunction = kInstructions, kCopyCommit, kCopyWait };
inline constexpr const char* kHappeningNames[] = {"special_function", "copy_commit", "copy_wait"};

struct Event {
  static constexpr int kOfWarp = -1;  // bar.warp.sync, as `which`

  uint64_t order = 0;      // among all events of the block, as the runner ran them
  uint8_t kind = 0;        // an Instruction or a Happening
  bool waits = false;      // at the barrier, not only arrives
  int which = kOfWarp;     // a barrier's number, an mbarrier's address; of copies the group
  uint64_t phase = 0;      // of that barrier, which ends when everybody has come
  int64_t bytes = 0;       // of memory, as lanes ask for them
  int bank_conflicts = 0;  // passes over shared memory beyond those that a conflict-free access takes
  int sectors = 0;         // of global memory, 32 bytes each
};

// A phase of an mbarrier has ended.
struct PhaseEnd {
  uint64_t order;
  int which;
  uint64_t phase;
};

struct Recording {
  static constexpr size_t kMostEvents = size_t{1} << 18;  // of a warp

  std::string kernel;  // the name of its argument's type
  int blocks = 0, block = 0, threads = 0, shared_bytes = 0;
  uint64_t events_so_far = 0;
  std::vector<std::vector<Event>> warps;
  std::vector<PhaseEnd> phase_ends;
  std::unique_ptr<HappensBefore> order;
  std::string failure;  // what stopped the launch, if anything
  bool is_cut = false;  // at kMostEvents

  Event& add(int warp, int kind);

  // Which of the warp's events the access is of; their number, if the kernel was stopped before.
  int event_of(const HappensBefore::Access& access) const;
};

// Those of the launches since the list was last cleared, in their order; blocks by Options::recorded_block.
std::vector<Recording>& recordings();

}  // namespace flagattn::host_exec
