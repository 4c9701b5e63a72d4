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
  int workers = 1;  // blocks that run at the same time
};

// Of the launches that follow.
Options& options();

// What the kernels of a launch did.
struct Counters {
  int64_t matrix_products = 0;       // mma.sync, per warp
  int64_t matrix_loads = 0;          // ldmatrix, per warp
  int64_t bank_conflicts = 0;        // of matrix loads: rows that met a bank in use
  int64_t async_bytes_read = 0;      // from global memory by cp.async
  int64_t global_bytes_written = 0;  // by 16-byte stores
};

// Of the last launch.
const Counters& counters();

}  // namespace flagattn::host_exec
