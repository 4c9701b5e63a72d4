// Transfers of the bulk copy engine, each a thread of its own to ThreadSanitizer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>

#include "arch/ptx/host_twins.h"
#include "host_exec/sanitizer.h"

namespace flagattn::host_exec {

// One copy. Plain bytes are a tensor of one row.
struct Transfer {
  bool loads = false;
  Reduction reduction = Reduction::kNone;
  uint32_t shared = 0;
  TensorShape tensor;  // a copy, as the engine reads the map when it likes
  int64_t coordinates[kMostTensorDims] = {};
  uint32_t barrier = 0;         // of loads
  void* engine = nullptr;       // the TSan thread that reads, and for loads writes
  void* writer = nullptr;       // the TSan thread that writes global memory
  const void* place = nullptr;  // in the kernel
  bool landed = false;
};

// Stores of one thread, in groups.
struct BulkGroup {
  std::deque<Transfer> transfers;
  std::unique_ptr<tsan::Token> read = std::make_unique<tsan::Token>();     // after the last read of shared memory
  std::unique_ptr<tsan::Token> written = std::make_unique<tsan::Token>();  // after the last write
};
struct BulkGroups {
  std::deque<BulkGroup> closed;  // that are not waited for wholly
  BulkGroup open;
  uint64_t committed = 0;
  uint64_t read_waited = 0;  // groups, since the start, whose reads are waited for
};

// Reduces elements in global memory, each atomically, by `values`.
void reduce(TensorType type, Reduction reduction, std::byte* global, const std::byte* values, int bytes);

}  // namespace flagattn::host_exec
