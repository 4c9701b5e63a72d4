// Launches: as many blocks run at a time as there are workers.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <new>
#include <thread>

#include "host_exec/faults.h"
#include "host_exec/machine.h"

namespace flagattn::host_exec {
namespace {

constexpr int kMostThreads = 1024;
constexpr int kPoison = 0xff;  // NaN in every float format

// What one block may take.
int most_shared_bytes(int compute_capability) {
  switch (compute_capability) {
    case 80:
    case 87:
      return 163 << 10;
    case 90:
    case 100:
    case 103:
      return 227 << 10;
    default:  // 8.6, 8.9, 12.x
      return 99 << 10;
  }
}

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

// "Y" of "... [with T = X::Y]", the compiler's way to spell a type.
std::string last_name(const std::string& text) {
  const size_t end = text.find_last_not_of("]");
  const size_t begin = text.find_last_of(" :") + 1;
  return text.substr(begin, end + 1 - begin);
}

std::unique_ptr<Recording> begin_recording(const Machine& m) {
  if (m.options.recorded_block != m.block) return nullptr;
  auto recording = std::make_unique<Recording>();
  recording->kernel = last_name(m.shape.argument);
  recording->blocks = m.shape.blocks;
  recording->block = m.block;
  recording->threads = m.shape.threads;
  recording->shared_bytes = m.shape.shared_bytes;
  recording->warps.resize(m.warps.size());
  recording->order = std::make_unique<HappensBefore>(m.shape.threads, m.shared, m.shape.shared_bytes);
  return recording;
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

// Hands the block's recording over, if there is one.
void end_recording(Machine& m) {
  observer = nullptr;
  if (m.recording == nullptr) return;
  m.recording->failure = m.failure;
  if constexpr (!tsan::kEnabled) {  // the observer's engines go with it
    for (Warp& warp : m.warps) warp.products.engine = nullptr;
    for (Thread& thread : m.threads) thread.copies.engine = nullptr;
  }
  for (Warp& warp : m.warps) warp.accesses.settle(m.counters);
  for (Warp& warp : m.warps) warp.accesses.note_in(nullptr);
  recordings().push_back(std::move(*m.recording));
  m.recording.reset();
}

// One worker's blocks: every `workers`-th of the grid, started in order. Which worker gets a block is fixed: what
// ThreadSanitizer can see of races between blocks must not depend on luck.
class Worker {
 public:
  Worker(int index, int workers, const LaunchShape& shape, void (*body)(const void*), const void* closure,
         Residents& residents)
      : index_(index),
        step_(workers),
        next_(index),
        shape_(shape),
        body_(body),
        closure_(closure),
        residents_(residents),
        random_(global_options.seed + 77ull * index) {
    if (global_options.resident > 0) most_ = std::max(global_options.resident / workers, 1);
  }

  // Returns the first error.
  Status run() {
    Status status;
    while (status.ok() && !residents_.stopped()) {
      const uint64_t seen = residents_.changes();
      Machine* m = choose();
      if (m != nullptr) {
        status = run(*m);
      } else if (running_.empty()) {
        break;
      } else if (!residents_.wait_for_change(index_, seen)) {
        status = Status::error("deadlock between blocks: " + waiting_blocks());
      }
    }
    if (!status.ok()) residents_.stop();
    for (Machine* m : running_) {
      if (m->recording == nullptr) continue;
      m->failure = status.ok() ? "another block has stopped the launch" : status.message;
      end_recording(*m);
    }
    residents_.worker_ends(index_);
    for (auto& m : machines_) tsan::acquire(m->end_token);
    return status;
  }

  Counters counters() const {
    Counters sum;
    for (const auto& m : machines_) sum.add(m->counters);
    return sum;
  }

 private:
  // A block that can go on, or else the next to start; under seeds either. Null if there is none.
  Machine* choose() {
    std::vector<Machine*> able;
    for (Machine* m : running_) {
      if (can_continue(*m)) able.push_back(m);
    }
    const bool may_start = next_ < shape_.blocks && static_cast<int>(running_.size()) < most_;
    if (global_options.seed != 0 && may_start && random_.one_in(2)) able.clear();
    if (!able.empty()) return able[global_options.seed != 0 ? random_.next() % able.size() : 0];
    return may_start ? start() : nullptr;
  }

  Machine* start() {
    Machine* m;
    if (free_.size() < (tsan::kEnabled ? 2 : 1)) {  // neighbours never share threads
      m = machines_.emplace_back(std::make_unique<Machine>(shape_, global_options)).get();
      m->body = body_;
      m->closure = closure_;
      m->residents = &residents_;
    } else {
      m = free_.front();
      free_.pop_front();
    }
    running_.push_back(m);
    start_block(*m, next_);
    started_ = m;
    next_ += step_;
    return m;
  }

  // Until the block ends or waits for others.
  Status run(Machine& m) {
    machine = &m;
    observer = !tsan::kEnabled && m.recording != nullptr ? m.recording->order.get() : nullptr;
    if (started_ == &m) {
      started_ = nullptr;
      run_threads();
    } else {
      continue_threads();
    }
    machine = nullptr;
    observer = nullptr;
    if (m.failed) {
      end_recording(m);
      return Status::error(m.failure);
    }
    if (m.live > 0) return Status::success();
    if (!m.loads.empty()) {
      return Status::error("block " + std::to_string(m.block) +
                           ": its threads have returned while bulk loads are under way");
    }
    for (Warp& warp : m.warps) warp.accesses.settle(m.counters);
    end_recording(m);
    running_.erase(std::find(running_.begin(), running_.end(), &m));
    free_.push_back(&m);
    return Status::success();
  }

  std::string waiting_blocks() const {
    std::string text;
    for (const Machine* m : running_) {
      text += (text.empty() ? "block " : "; block ") + std::to_string(m->block) + ": " + waiting_places(*m);
    }
    return text;
  }

  int index_, step_, next_;
  int most_ = INT32_MAX;
  const LaunchShape& shape_;
  void (*body_)(const void*);
  const void* closure_;
  Residents& residents_;
  Random random_;
  std::vector<std::unique_ptr<Machine>> machines_;
  std::vector<Machine*> running_;
  std::deque<Machine*> free_;
  Machine* started_ = nullptr;  // and not yet run
};

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

int thread_index() { return self->index; }
int block_index() { return machine->block; }
Options& options() { return global_options; }
const Counters& counters() { return global_counters; }

Status launch(const LaunchShape& shape, void (*body)(const void* closure), const void* closure) {
  if (shape.threads <= 0 || shape.threads > kMostThreads || shape.threads % kWarpSize != 0) {
    return Status::error("a block of " + std::to_string(shape.threads) +
                         " threads; the runner takes whole warps, at most 1024");
  }
  const int capability = global_options.compute_capability, most = most_shared_bytes(capability);
  if (shape.shared_bytes > most) {
    return Status::error("a block with " + std::to_string(shape.shared_bytes) +
                         " bytes of shared memory; compute "
                         "capability " +
                         std::to_string(capability / 10) + "." + std::to_string(capability % 10) + " allows " +
                         std::to_string(most));
  }
  const LaunchWithFault fault;
  is_recording = global_options.recorded_block >= 0;
  const int workers = std::clamp(global_options.workers, 1, std::max(shape.blocks, 1));
  Residents residents(workers);
  // They go when all have ended: the threads of a block that is done must not hand their numbers to another worker's.
  std::deque<Worker> pool;
  for (int i = 0; i < workers; ++i) pool.emplace_back(i, workers, shape, body, closure, residents);
  std::vector<Status> ends(workers);
  const auto work = [&](int index) {
    const tsan::Unseen unseen;
    ends[index] = pool[index].run();
  };
  if (workers == 1) {
    work(0);
  } else {
    std::vector<std::thread> threads;
    for (int i = 0; i < workers; ++i) threads.emplace_back(work, i);
    for (std::thread& thread : threads) thread.join();
  }
  const tsan::Unseen unseen;
  Counters sum;
  for (const Worker& worker : pool) sum.add(worker.counters());
  global_counters = sum;
  const auto error = std::find_if(ends.begin(), ends.end(), [](const Status& end) { return !end.ok(); });
  return error == ends.end() ? Status::success() : *error;
}

}  // namespace flagattn::host_exec
