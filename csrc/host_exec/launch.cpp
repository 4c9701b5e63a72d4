// Launches: blocks run independently of each other, as many at a time as there are workers.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <thread>

#include "host_exec/machine.h"

namespace flagattn::host_exec {
namespace {

constexpr int kMostThreads = 1024;
constexpr int kMostSharedBytes = 227 << 10;  // what one block may take on an H100
constexpr int kPoison = 0xff;                // NaN in every float format

Options global_options;
Counters global_counters;

// Fresh for every block. Under ThreadSanitizer it is mapped anew, which forgets who touched it before: blocks are not
// ordered after one another, so that races between them on global memory are seen.
std::byte* fresh_shared_memory(std::byte* old, size_t bytes) {
  if (old == nullptr || tsan::kEnabled) {
    void* memory = old;
    if constexpr (tsan::kEnabled) {
      const int fixed = old != nullptr ? MAP_FIXED : 0;
      memory = mmap(old, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
      if (memory == MAP_FAILED) memory = nullptr;
    } else if (posix_memalign(&memory, 1024, bytes) != 0) {
      memory = nullptr;
    }
    if (memory == nullptr) throw std::bad_alloc();
    old = static_cast<std::byte*>(memory);
  }
  std::memset(old, kPoison, bytes);
  return old;
}

void run_block(Machine& m, int block) {
  m.block = block;
  m.failed = false;
  m.random = Random(m.options.seed * 1000003ull + block);
  m.live = m.shape.threads;
  m.lowest_priority = 0;
  m.shared = fresh_shared_memory(m.shared, m.shape.shared_bytes);
  m.tokens = std::make_unique<BlockTokens>();
  for (Barrier& b : m.barriers) b = Barrier{};
  for (Warp& warp : m.warps) {
    warp.alive = warp.ready = kAllLanes;
    warp.arrived = 0;
    warp.priority = static_cast<int>(m.random.next() % 1000);
  }
  for (Thread& thread : m.threads) {
    thread.done = false;
    thread.waits_at = nullptr;
    Copies& copies = thread.copies;
    copies.issued = copies.landed = copies.groups = copies.groups_waited = 0;
  }
  run_threads();
}

}  // namespace

Machine::Machine(const LaunchShape& shape, const Options& options)
    : shape(shape),
      options(options),
      stacks(shape.threads),
      threads(shape.threads),
      warps(shape.threads / kWarpSize),
      main(running_context()) {
  for (int i = 0; i < shape.threads; ++i) {
    Thread& thread = threads[i];
    thread.index = i;
    thread.lane = i % kWarpSize;
    thread.warp = &warps[i / kWarpSize];
    thread.fiber.stack = stacks.of(i);
    thread.fiber.stack_bytes = Stacks::kBytes;
    thread.fiber.tsan_context = tsan::create();
    thread.copies.engine = tsan::create();
  }
  for (int i = 0; i < static_cast<int>(warps.size()); ++i) {
    warps[i].index = i;
    warps[i].lanes = &threads[i * kWarpSize];
  }
}

Machine::~Machine() {
  for (Thread& thread : threads) {
    tsan::destroy(thread.fiber.tsan_context);
    tsan::destroy(thread.copies.engine);
  }
  if constexpr (tsan::kEnabled) {
    if (shared != nullptr) munmap(shared, shape.shared_bytes);
  } else {
    std::free(shared);
  }
}

int thread_index() { return self->index; }
int block_index() { return machine->block; }
Options& options() { return global_options; }
const Counters& counters() { return global_counters; }

Status launch(const LaunchShape& shape, void (*body)(const void* closure), const void* closure) {
  if (shape.threads <= 0 || shape.threads > kMostThreads || shape.threads % kWarpSize != 0) {
    return Status::error("a block of " + std::to_string(shape.threads) +
                         " threads; the runner takes whole warps, at most 1024");
  }
  if (shape.shared_bytes > kMostSharedBytes) {
    return Status::error("a block with " + std::to_string(shape.shared_bytes) +
                         " bytes of shared memory; 232448 are allowed");
  }
  std::atomic<bool> stopped{false};
  std::mutex mutex;
  Status status;
  Counters sum;
  const int workers = std::clamp(global_options.workers, 1, std::max(shape.blocks, 1));
  // Which worker gets a block is fixed: what ThreadSanitizer can see of races between blocks must not depend on luck.
  const auto work = [&](int worker) {
    Machine m(shape, global_options);
    m.body = body;
    m.closure = closure;
    machine = &m;
    for (int block = worker; block < shape.blocks && !m.failed && !stopped; block += workers) run_block(m, block);
    tsan::acquire(m.end_token);
    machine = nullptr;
    const std::lock_guard<std::mutex> lock(mutex);
    if (m.failed) {
      stopped = true;
      if (status.ok()) status = Status::error(m.failure);
    }
    sum.matrix_products += m.counters.matrix_products;
    sum.matrix_loads += m.counters.matrix_loads;
    sum.bank_conflicts += m.counters.bank_conflicts;
    sum.async_bytes_read += m.counters.async_bytes_read;
    sum.global_bytes_written += m.counters.global_bytes_written;
  };
  if (workers == 1) {
    work(0);
  } else {
    std::vector<std::thread> pool;
    for (int i = 0; i < workers; ++i) pool.emplace_back(work, i);
    for (std::thread& thread : pool) thread.join();
  }
  global_counters = sum;
  return status;
}

}  // namespace flagattn::host_exec
