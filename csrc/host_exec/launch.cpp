// Launches: as many blocks run at a time as there are workers.
#include <algorithm>
#include <deque>
#include <thread>

#include "host_exec/faults.h"
#include "host_exec/machine.h"
#include "host_exec/worker.h"

namespace flagattn::host_exec {
namespace {

constexpr int kMostThreads = 1024;

Options global_options;

constexpr int kKeptCounters = 8;
Counters global_counters[kKeptCounters];
int64_t launches = 0;

}  // namespace

int thread_index() { return self->index; }
int block_index() { return machine->block; }
Options& options() { return global_options; }
const Counters& counters(int before) {
  return global_counters[(launches + 2 * kKeptCounters - 1 - before) % kKeptCounters];
}

int most_shared_bytes() {
  switch (global_options.compute_capability) {
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

Status launch(const LaunchShape& shape, void (*body)(const void* closure), const void* closure) {
  if (shape.threads <= 0 || shape.threads > kMostThreads || shape.threads % kWarpSize != 0) {
    return Status::error("a block of " + std::to_string(shape.threads) +
                         " threads; the runner takes whole warps, at most 1024");
  }
  const int capability = global_options.compute_capability, most = most_shared_bytes();
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
  global_counters[launches++ % kKeptCounters] = sum;
  const auto error = std::find_if(ends.begin(), ends.end(), [](const Status& end) { return !end.ok(); });
  return error == ends.end() ? Status::success() : *error;
}

}  // namespace flagattn::host_exec
