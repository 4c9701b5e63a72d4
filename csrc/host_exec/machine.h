// The state of one running block: its threads, warps, barriers and shared memory. One machine per worker runs block
// after block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arch/ptx/host_twins.h"
#include "host_exec/accesses.h"
#include "host_exec/bulk.h"
#include "host_exec/fiber.h"
#include "host_exec/host_exec.h"
#include "host_exec/mbarrier.h"
#include "host_exec/recording.h"
#include "host_exec/residents.h"
#include "host_exec/sanitizer.h"
#include "host_exec/warpgroup.h"

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
    int bytes;
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
  struct Tokens {
    tsan::Token issue, group[kMostGroups];
  };
  std::unique_ptr<Tokens> tokens;  // anew for every block, as BlockTokens
  void* engine = nullptr;          // the TSan thread that copies
};

// What a thread waits for in global memory, if anything.
struct Awaited {
  const uint32_t* counter = nullptr;
  uint32_t least = 0;
  bool is_there() const { return counter != nullptr && __atomic_load_n(counter, __ATOMIC_ACQUIRE) >= least; }
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
  BulkGroups bulk;
  bool registers_handed_over = false;  // to wgmma
  std::vector<uint32_t> hides;         // chunks of shared memory that it has written and not shown to engines
  Awaited awaited;
  int matrix_loads = 0;  // so far
};

// Lanes at one collective, and what each has brought.
struct Meeting {
  const char* name = nullptr;
  uint32_t mask = 0;     // who takes part; none if the meeting is over
  uint32_t arrived = 0;  // who is there
  void* arguments[kWarpSize];
  tsan::Token* token = nullptr;

  template <typename Argument>
  Argument& of(int lane) const {
    return *static_cast<Argument*>(arguments[lane]);
  }
};

struct Warp {
  int index = 0;
  Thread* lanes = nullptr;
  uint32_t alive = 0;           // lanes that have not returned
  uint32_t ready = 0;           // lanes that can run
  Meeting meetings[kWarpSize];  // a lane is at one at most
  uint32_t open = 0;            // meetings that are not over, a bit for each
  uint32_t meetings_so_far = 0;
  int priority = 0;
  Accesses accesses;
  WarpgroupProducts products;
};

struct Barrier {
  int threads = 0;  // expected; 0 while no one is there
  int arrived = 0;
  uint64_t phase = 0;
  uint32_t waiting[32] = {};  // lanes per warp
};

// What orders the threads of one block. Several tokens each, used in turn: a fast thread's next arrival must not order
// a slow thread's last wait. Allocated for every block, since ThreadSanitizer remembers a token until its memory is
// freed.
inline constexpr int kWarpTokens = 64;
struct BlockTokens {
  tsan::Token barrier[16][2];
  tsan::Token warp[32][kWarpTokens];
};

struct Machine {
  explicit Machine(const LaunchShape& shape, const Options& options);
  ~Machine();
  Machine(const Machine&) = delete;

  LaunchShape shape;
  Options options;
  void (*body)(const void* closure) = nullptr;
  const void* closure = nullptr;
  Residents* residents = nullptr;

  // Of the block under way
  int block = 0;
  int live = 0;  // threads that have not returned
  bool failed = false;
  std::string failure;
  Random random;
  int lowest_priority = 0;
  Barrier barriers[16];
  Mbarriers mbarriers;
  std::vector<std::vector<WarpgroupProduct>> warpgroup_products;  // that its first warp has issued, per warpgroup
  std::deque<Transfer> loads;                                     // bulk copies under way
  std::vector<uint16_t> hidden_by;  // 1 + the thread that hides a 16-byte chunk of shared memory from engines; 0: none
  std::unique_ptr<BlockTokens> tokens;
  std::byte* shared = nullptr;
  std::unique_ptr<Recording> recording;  // if this block is to be recorded
  Counters counters;

  // For all blocks
  Stacks stacks;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Fiber main;
  tsan::Token start_token, end_token;
};

// Makes the machine ready for a block (machine.cpp).
void start_block(Machine& m, int block);

extern constinit thread_local Machine* machine;
extern constinit thread_local Thread* self;  // the running CUDA thread; null outside of kernels

// ---- Scheduling (scheduler.cpp)

// Ends the launch with an error that names the running thread. Never returns.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Lets others run until wake(self); `where` appears in deadlock reports.
void wait_at(const char* where);
void wake(Warp& warp, uint32_t lanes);

// A point where another warp may overtake.
void may_yield();

// Runs the block's threads until all have returned, or those that have not wait for other blocks; an error is left in
// machine->failure. The second goes on after such a wait, which must be over for a thread.
void run_threads();
void continue_threads();
bool can_continue(const Machine& m);

// "warp 0: 31 lanes at mma.sync, 1 lane at barrier 0; warp 1: ..."
std::string waiting_places(const Machine& m);

// ---- Collectives (warp.cpp)

// Waits for the lanes of `mask`; the last to come hands all arguments to `execute`. What lanes wrote before, all of
// them may read after if the collective orders memory.
void collective(const char* name, uint32_t mask, void* argument, bool orders_memory, void (*execute)(const Meeting&));

// ---- Counters (memory.cpp)

// One instruction of a warp, from its `execute`.
void count(Instruction kind);

// The running lane executes an instruction at `place` in the kernel, with or without an access to memory.
void count_at(const void* place, Instruction kind);
void count_access(const void* place, Instruction kind, Memory memory, bool writes, uint64_t address, int bytes);

// ---- Recording (recording.cpp); each does nothing unless the block is recorded

// Around a block, which machine.block names by then; the second hands the recording over.
std::unique_ptr<Recording> begin_recording(const Machine& m);
void end_recording(Machine& m);

// The running lane does something that is no counted instruction.
void record(const void* place, Happening what, int which);

// Completes the warp's last event, an instruction at a barrier.
void note_barrier(int which, uint64_t phase, bool waits);

// Accesses to shared memory that follow are of the warp's last event, or of the matrix load that the lane comes to.
void observe_as_last_event();
void observe_as_matrix_load();

// ---- Memory (memory.cpp)

// Host address of [address, address + bytes) in shared memory, checked.
std::byte* shared_pointer(uint32_t address, int bytes, int alignment);

// Stops the kernel unless a global address is a multiple of `bytes`.
void check_global(const char* access, const void* address, int bytes);

// Moves one of the bulk loads under way, if there is one (bulk.cpp).
bool land_a_load();

// Bytes have come for a barrier, told by the engine; it must have been shown to engines (mbarrier.cpp).
void mbarrier_complete(uint32_t barrier, int64_t bytes);
void check_mbarrier_of_engine(uint32_t barrier);

// Chunks of shared memory that threads write through wrappers are hidden from engines up to fence_async_proxy.
void written_by_thread(uint32_t address, int bytes);
void check_shown_to_engine(uint32_t address, const char* access);

// Checks what must hold when a thread returns.
void check_bulk_at_exit(const BulkGroups& groups);
void check_products_at_exit(const WarpgroupProducts& products);
void check_copies_at_exit(const Copies& copies);

}  // namespace flagattn::host_exec
