// Runs CUDA kernels on the CPU, for tests only: see docs/host_exec.md. Kernels start through ptx::launch; this is what
// tests set before and read after.
#pragma once

#include <cstdint>

namespace flagattn::host_exec {

// When an asynchronous copy lands: at once, at the last legal moment (the wait for its group), or at random between.
enum class CopyTiming { kEager, kLazy, kRandom };

struct Options {
  uint32_t seed = 0;  // of the thread schedule; 0 takes warps in turn
  CopyTiming copies = CopyTiming::kLazy;
  int workers = 1;              // blocks that run at the same time
  int resident = 0;             // blocks that have started and not ended, at most; 0 for any number
  int recorded_block = -1;      // the block of each launch that is recorded (recording.h); below 0: none
  int compute_capability = 80;  // whose limits a launch must keep
};

// Of the launches that follow.
Options& options();

// Classes of instructions. What only some lanes of a warp execute counts as one.
enum class Instruction {
  kMatrixProduct,  // mma.sync
  kMatrixLoad,     // ldmatrix
  kMatrixStore,    // stmatrix
  kSharedLoad,
  kSharedStore,
  kGlobalLoad,
  kGlobalStore,
  kAsyncCopy,  // cp.async
  kBulkCopy,   // and tensor copies
  kAtomic,
  kShuffle,
  kVote,
  kBarrier,
};
inline constexpr const char* kInstructionNames[] = {
    "matrix_product", "matrix_load", "matrix_store", "shared_load", "shared_store", "global_load", "global_store",
    "async_copy",     "bulk_copy",   "atomic",       "shuffle",     "vote",         "barrier"};
inline constexpr int kInstructions = sizeof(kInstructionNames) / sizeof(kInstructionNames[0]);

// What the kernels of a launch did through wrappers; what they read and write through plain pointers is not seen.
struct Counters {
  int64_t instructions[kInstructions] = {};
  int64_t matrix_flops = 0;       // two per multiply-add of matrix products
  int64_t bank_conflicts = 0;     // passes over shared memory beyond one for each that a conflict-free access takes
  int64_t global_bytes_read = 0;  // as lanes ask for them
  int64_t global_bytes_written = 0;
  int64_t global_sectors_read = 0;  // of 32 bytes, each once per access of a warp
  int64_t global_sectors_written = 0;
  int64_t barrier_waits = 0;  // of warps, at barriers of the block

  int64_t operator[](Instruction kind) const { return instructions[static_cast<int>(kind)]; }
  void add(const Counters& other);
};

// Of the last launch, or of one of the seven before it.
const Counters& counters(int before = 0);

}  // namespace flagattn::host_exec
