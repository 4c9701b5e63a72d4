// One worker's blocks: every `workers`-th of the grid, started in order. Which worker gets a block is fixed: what
// ThreadSanitizer can see of races between blocks must not depend on luck.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "host_exec/machine.h"

namespace flagattn::host_exec {

class Worker {
 public:
  Worker(int index, int workers, const LaunchShape& shape, void (*body)(const void*), const void* closure,
         Residents& residents);

  // Returns the first error.
  Status run();

  Counters counters() const;

 private:
  // A block that can go on, or else the next to start; under seeds either. Null if there is none.
  Machine* choose();
  Machine* start();

  // Until the block ends or waits for others.
  Status run(Machine& m);

  std::string waiting_blocks() const;

  int index_, step_, next_;
  int most_ = INT32_MAX;  // blocks that have started and not ended
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

}  // namespace flagattn::host_exec
