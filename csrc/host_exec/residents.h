// The blocks of a launch that have started and not ended. Blocks that wait for each other are resident together: where
// all threads of one wait for others, its worker continues another that can go on, or starts the next.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace flagattn::host_exec {

struct Machine;

// What the workers of a launch tell each other. No mutex: ThreadSanitizer would take it for an order between blocks.
class Residents {
 public:
  explicit Residents(int workers) : idle_(workers) {}

  // Some block has changed global memory atomically.
  void something_changed() { ++changes_; }
  uint64_t changes() const { return changes_; }

  // The worker found nothing to do when changes() was `seen`. False if no worker will ever find anything.
  bool wait_for_change(int worker, uint64_t seen);
  void worker_ends(int worker) { idle_[worker].since = kEnded; }

  void stop() { stopped_ = true; }
  bool stopped() const { return stopped_; }

 private:
  static constexpr uint64_t kBusy = ~uint64_t{0}, kEnded = kBusy - 1;
  struct Idle {
    std::atomic<uint64_t> since{kBusy};
  };
  std::vector<Idle> idle_;
  std::atomic<uint64_t> changes_{0};
  std::atomic<bool> stopped_{false};
};

}  // namespace flagattn::host_exec
