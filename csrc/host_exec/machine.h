// The state of one running block: its threads, warps, barriers and shared memory. One machine per worker runs block
// after block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arch/ptx/host_twins.h"
#include "host_exec/fiber.h"
#include "host_exec/host_exec.h"
#include "host_exec/sanitizer.h"

namespace flagattn::host_exec {

inline constexpr int kWarpSize = 32;
inline constexpr uint32_t kAllLanes = 0xffffffffu;
inline constexpr uint32_t kSharedBase = 0x400;  // the shared window's first address, as on sm_80

// Not <random>: its templates could be shared with instrumented code.
class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed * 0x9e3779b97f4a7c15ull + 0x632be59bd9b4e019ull) {}
  uint32_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<uint32_t>(state_ >> 24);
  }
  bool one_in(uint32_t n) { return next() % n == 0; }

 private:
  uint64_t state_;
};

// Asynchronous copies of one thread: those that have not landed, and where its groups begin and end.
struct Copies {
  struct Copy {
    uint32_t destination;
    const void* source;
    bool in_range;
  };
  static constexpr int kMostPending = 256;
  static constexpr int kMostGroups = 16;
  Copy pending[kMostPending];
  uint64_t issued = 0;                   // copies so far
  uint64_t landed = 0;                   // they land in order
  uint64_t group_end[kMostGroups] = {};  // `issued` when group g was committed, at g % kMostGroups
  uint64_t groups = 0;                   // committed so far
  uint64_t groups_waited = 0;
  tsan::Token issue_token;
  tsan::Token group_token[kMostGroups];
  void* engine = nullptr;  // the TSan thread that copies
};

struct Warp;

struct Thread {
  Fiber fiber;
  int index = 0;
  int lane = 0;
  Warp* warp = nullptr;
  bool done = false;
  const char* waits_at = nullptr;
  Copies copies;
};

struct Warp {
  int index = 0;
  Thread* lanes = nullptr;
  uint32_t alive = 0;    // lanes that have not returned
  uint32_t ready = 0;    // lanes that can run
  uint32_t arrived = 0;  // lanes at the collective under way
  const char* collective = nullptr;
  void* arguments[kWarpSize];
  int priority = 0;
  uint64_t syncs[kWarpSize] = {};  // sync_warp calls per lane
};

struct Barrier {
  int threads = 0;  // expected; 0 while no one is there
  int arrived = 0;
  uint64_t phase = 0;
  uint32_t waiting[32] = {};  // lanes per warp
};

// What orders the threads of one block. Two tokens each, used in turn: a fast thread's next arrival must not order a
// slow thread's last wait. Allocated for every block, since ThreadSanitizer remembers a token until its memory is
// freed.
struct BlockTokens {
  tsan::Token barrier[16][2];
  tsan::Token warp[32][2];
};

struct Machine {
  explicit Machine(const LaunchShape& shape, const Options& options);
  ~Machine();
  Machine(const Machine&) = delete;

  LaunchShape shape;
  Options options;
  void (*body)(const void* closure) = nullptr;
  const void* closure = nullptr;

  // Of the block under way
  int block = 0;
  int live = 0;
  bool failed = false;
  std::string failure;
  Random random;
  int lowest_priority = 0;
  Barrier barriers[16];
  std::unique_ptr<BlockTokens> tokens;
  std::byte* shared = nullptr;
  Counters counters;

  // For all blocks
  Stacks stacks;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Fiber main;
  tsan::Token start_token, end_token;
};

extern thread_local Machine* machine;
extern thread_local Thread* self;  // the running CUDA thread; null outside of kernels

// ---- Scheduling (scheduler.cpp)

// Ends the launch with an error that names the running thread. Never returns.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Lets others run until wake(self); `where` appears in deadlock reports.
void wait_at(const char* where);
void wake(Warp& warp, uint32_t lanes);

// A point where another warp may overtake.
void may_yield();

// Runs the block's threads until all have returned; an error is left in machine->failure.
void run_threads();

// ---- Collectives (warp.cpp)

// Hands the arguments of all 32 lanes to `execute`, once, when the last lane has come.
void collective(const char* name, void* argument, void (*execute)(void** arguments));

// ---- Memory (memory.cpp)

// Host address of [address, address + bytes) in shared memory, checked.
std::byte* shared_pointer(uint32_t address, int bytes, int alignment);

// Checks what must hold when a thread returns.
void check_copies_at_exit(const Copies& copies);

}  // namespace flagattn::host_exec
