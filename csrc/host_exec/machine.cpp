// A machine is made once for a launch and made ready for block after block.
#include "host_exec/machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace flagattn::host_exec {
namespace {

constexpr int kPoison = 0xff;  // NaN in every float format

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

void destroy_contexts(Machine& m) {
  const auto destroy = [](void*& context) {
    if (context != nullptr) tsan::destroy(context);
    context = nullptr;
  };
  for (Warp& warp : m.warps) destroy(warp.products.engine);
  for (Thread& thread : m.threads) {
    destroy(thread.copies.engine);
    destroy(thread.fiber.tsan_context);
  }
}

// Under ThreadSanitizer the threads of a block are new ones on new stacks, so that nothing of the blocks before orders
// it. libtsan gives new threads the numbers of those that have ended, and takes accesses of one number for accesses of
// one thread: the numbers are dealt by chance, so that no lane keeps its own from block to block. A new thread costs as
// much as clearing a megabyte: in large launches only some blocks get them, by chance as well, and others go on with
// those of the block that their machine ran before.
constexpr int64_t kNewThreads = 2048;  // of a launch, about
void renew_contexts(Machine& m) {
  if constexpr (!tsan::kEnabled) return;
  const bool has_contexts = m.threads.front().fiber.tsan_context != nullptr;
  const int64_t wanted = int64_t{m.shape.blocks} * m.shape.threads;
  if (has_contexts && !m.random.one_in(static_cast<uint32_t>(wanted / kNewThreads) + 1)) return;
  destroy_contexts(m);
  m.stacks.renew();
  const int count = static_cast<int>(m.threads.size());
  std::vector<int> order(count);
  for (int i = 0; i < count; ++i) {
    const int j = static_cast<int>(m.random.next() % (i + 1));
    order[i] = order[j];
    order[j] = i;
  }
  for (const int i : order) m.threads[i].fiber.tsan_context = tsan::create();
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
  }
  for (int i = 0; i < static_cast<int>(warps.size()); ++i) {
    warps[i].index = i;
    warps[i].lanes = &threads[i * kWarpSize];
  }
}

Machine::~Machine() {
  destroy_contexts(*this);
  if constexpr (tsan::kEnabled) {
    if (shared != nullptr) munmap(shared, shape.shared_bytes);
  } else {
    std::free(shared);
  }
}

void start_block(Machine& m, int block) {
  m.block = block;
  m.failed = false;
  m.random = Random(m.options.seed * 1000003ull + block);
  renew_contexts(m);
  m.live = m.shape.threads;
  m.lowest_priority = 0;
  m.shared = fresh_shared_memory(m.shared, m.shape.shared_bytes);
  m.tokens = std::make_unique<BlockTokens>();
  for (Barrier& b : m.barriers) b = Barrier{};
  m.mbarriers.clear();
  m.loads.clear();
  m.warpgroup_products.assign(m.warps.size() / 4 + 1, {});
  m.hidden_by.assign(m.shape.shared_bytes / 16 + 1, 0);
  m.recording = begin_recording(m);
  for (Warp& warp : m.warps) {
    warp.accesses.note_in(m.recording != nullptr ? &m.recording->warps[warp.index] : nullptr);
    warp.alive = warp.ready = kAllLanes;
    for (Meeting& meeting : warp.meetings) meeting.mask = 0;
    warp.open = 0;
    warp.products.closed.clear();
    warp.products.open.clear();
    warp.products.issued = warp.products.committed = 0;
    std::fill_n(warp.products.waited, kWarpSize, 0);
    warp.products.tokens = std::make_unique<WarpgroupProducts::Tokens>();
    warp.priority = static_cast<int>(m.random.next() % 1000);
  }
  for (Thread& thread : m.threads) {
    thread.done = false;
    thread.waits_at = nullptr;
    Copies& copies = thread.copies;
    copies.issued = copies.landed = copies.groups = copies.groups_waited = 0;
    copies.tokens = std::make_unique<Copies::Tokens>();
    thread.awaited = {};
    thread.matrix_loads = 0;
    thread.bulk = {};
    thread.registers_handed_over = false;
    thread.hides.clear();
  }
}

}  // namespace flagattn::host_exec
