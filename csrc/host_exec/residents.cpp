#include "host_exec/residents.h"

#include <time.h>

#include <algorithm>

namespace flagattn::host_exec {

bool Residents::wait_for_change(int worker, uint64_t seen) {
  idle_[worker].since = seen;
  while (changes_ == seen && !stopped_) {
    const auto sees_nothing = [&](const Idle& other) { return other.since == seen || other.since == kEnded; };
    if (std::all_of(idle_.begin(), idle_.end(), sees_nothing) && changes_ == seen) return false;
    const timespec pause{0, 20000};
    nanosleep(&pause, nullptr);
  }
  idle_[worker].since = kBusy;
  return true;
}

}  // namespace flagattn::host_exec
