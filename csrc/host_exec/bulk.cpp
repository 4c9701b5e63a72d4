// Bulk and tensor copies: loads that report to an mbarrier, stores and reductions in groups of their thread.
//
// ThreadSanitizer sees a transfer's accesses where it is issued, as those of engines of its own: ordered after what the
// thread did before, and before what follows the mbarrier's phase or the wait for the group. When the bytes really move
// is the schedule's choice.
#include "host_exec/bulk.h"

#include <algorithm>
#include <cstring>

#include "host_exec/machine.h"

namespace flagattn::host_exec {
namespace {

constexpr int kChunkBytes = 16;

// What lies in `map`.
struct HostMap {
  static constexpr uint64_t kMark = 0x70616d726f736e74ull;
  uint64_t mark;
  TensorShape shape;
};

int row_bytes(const Transfer& t) { return t.tensor.box[0] * size_of(t.tensor.type); }

int64_t box_bytes(const Transfer& t) {
  int64_t bytes = row_bytes(t);
  for (int d = 1; d < t.tensor.rank; ++d) bytes *= t.tensor.box[d];
  return bytes;
}

// Calls visit(shared address, global address, skipped, bytes) for each 16-byte chunk of the box: bytes [skipped,
// skipped + bytes) of it lie in the tensor, perhaps none.
template <typename Visit>
void each_chunk(const Transfer& t, const Visit& visit) {
  const TensorShape& tensor = t.tensor;
  const int element = size_of(tensor.type), row = row_bytes(t);
  const int64_t rows = box_bytes(t) / row;
  for (int64_t r = 0; r < rows; ++r) {
    auto* global = static_cast<std::byte*>(tensor.data);
    bool inside = true;
    int64_t rest = r;
    for (int d = 1; d < tensor.rank; ++d) {
      const int64_t i = t.coordinates[d] + rest % tensor.box[d];
      rest /= tensor.box[d];
      inside = inside && i >= 0 && i < tensor.sizes[d];
      global += i * tensor.strides[d - 1];
    }
    for (int offset = 0; offset < row; offset += kChunkBytes) {
      const int64_t first = t.coordinates[0] * element + offset, end = tensor.sizes[0] * element;
      const int64_t skipped = std::clamp<int64_t>(-first, 0, kChunkBytes);
      const int64_t bytes = inside ? std::clamp<int64_t>(end - first, skipped, kChunkBytes) - skipped : 0;
      visit(swizzled(t.shared + static_cast<uint32_t>(r * row + offset), tensor.swizzle), global + first + skipped,
            static_cast<int>(skipped), static_cast<int>(bytes));
    }
  }
}

void fill_outside(const Transfer& t, std::byte* chunk) {
  const int element = size_of(t.tensor.type);
  const bool is_nan = t.tensor.fill == OutsideFill::kNaN;
  for (int i = 0; i < kChunkBytes; ++i) {
    chunk[i] = std::byte{static_cast<unsigned char>(!is_nan ? 0 : i % element == element - 1 ? 0x7f : 0xff)};
  }
}

void move(const Transfer& t) {
  each_chunk(t, [&](uint32_t address, std::byte* global, int skipped, int bytes) {
    std::byte* chunk = shared_pointer(address, kChunkBytes, kChunkBytes);
    if (t.loads) {
      if (bytes < kChunkBytes) fill_outside(t, chunk);
      tsan::copy_unseen(chunk + skipped, global, bytes);
    } else if (t.reduction != Reduction::kNone) {
      const tsan::ActingAs engine(t.writer);
      const tsan::Frame issued_at(const_cast<void*>(t.place));
      reduce(t.tensor.type, t.reduction, global, chunk + skipped, bytes);
    } else {
      tsan::copy_unseen(global, chunk + skipped, bytes);
    }
  });
}

// Counts, checks what other threads have shown to the engine, and tells ThreadSanitizer.
void announce(Transfer& t) {
  Counters& counters = machine->counters;
  count_at(t.place, Instruction::kBulkCopy);
  if constexpr (tsan::kEnabled) {
    t.engine = tsan::create();  // its thread begins ordered after the one that runs
    if (!t.loads) t.writer = tsan::create();
  }
  each_chunk(t, [&](uint32_t address, std::byte* global, int skipped, int bytes) {
    std::byte* chunk = shared_pointer(address, kChunkBytes, kChunkBytes);
    check_shown_to_engine(address, t.loads ? "a bulk copy overwrites" : "a bulk copy reads");
    if constexpr (tsan::kEnabled) {
      {
        const tsan::ActingAs engine(t.engine);
        const tsan::Frame issued_at(const_cast<void*>(t.place));
        if (t.loads) tsan::read(global, bytes);
        if (t.loads) tsan::write(chunk, kChunkBytes);
        if (!t.loads) tsan::read(chunk + skipped, bytes);
      }
      if (!t.loads && t.reduction == Reduction::kNone) {
        const tsan::ActingAs engine(t.writer);
        const tsan::Frame issued_at(const_cast<void*>(t.place));
        tsan::write(global, bytes);
      }
    }
    if (bytes == 0) return;
    const auto at = reinterpret_cast<uint64_t>(global);
    const bool starts_sector = (at + bytes - 1) / 32 != (at - 1) / 32 || address == t.shared;
    (t.loads ? counters.global_bytes_read : counters.global_bytes_written) += bytes;
    (t.loads ? counters.global_sectors_read : counters.global_sectors_written) += starts_sector;
  });
}

void land(Transfer& t) {
  if (t.landed) return;
  t.landed = true;
  move(t);
}

bool lands_now() {
  const CopyTiming timing = machine->options.copies;
  return timing == CopyTiming::kEager || (timing == CopyTiming::kRandom && machine->random.one_in(3));
}

void land_load(Transfer& t) {
  const tsan::Unseen unseen;
  land(t);
  {
    const tsan::ActingAs engine(t.engine);
    mbarrier_complete(t.barrier, box_bytes(t));
  }
  if (t.engine != nullptr) tsan::destroy(t.engine);
}

void issue_load(Transfer t) {
  const tsan::Unseen unseen;
  check_mbarrier_of_engine(t.barrier);
  announce(t);
  if (lands_now()) {
    land_load(t);
  } else {
    machine->loads.push_back(t);
  }
}

void issue_store(Transfer t) {
  const tsan::Unseen unseen;
  announce(t);
  if (lands_now()) land(t);
  self->bulk.open.transfers.push_back(t);
}

Transfer of_bytes(bool loads, uint32_t shared, const void* global, uint32_t bytes, const void* place) {
  if (bytes == 0 || bytes % 16 != 0) fail("a bulk copy of %u bytes, which is not a multiple of 16", bytes);
  if (shared % 16 != 0) fail("a bulk copy at the shared address 0x%x, which is not a multiple of 16", shared);
  check_global("a bulk copy takes", global, 16);
  Transfer t;
  t.loads = loads;
  t.shared = shared;
  t.tensor.type = TensorType::kUInt8;
  t.tensor.rank = 1;
  t.tensor.data = const_cast<void*>(global);
  t.tensor.sizes[0] = bytes;
  t.tensor.box[0] = static_cast<int32_t>(bytes);
  t.place = place;
  return t;
}

Transfer of_box(bool loads, uint32_t shared, const TensorMap& map, const int32_t* coordinates, int rank,
                const void* place) {
  Transfer t;
  HostMap host;
  std::memcpy(static_cast<void*>(&host), &map, sizeof host);
  if (host.mark != HostMap::kMark) fail("a tensor copy with something that is no tensor map");
  if (host.shape.rank != rank) fail("a tensor copy of rank %d with a map of rank %d", rank, host.shape.rank);
  if (shared % 128 != 0) fail("a tensor copy at the shared address 0x%x, which is not a multiple of 128", shared);
  t.loads = loads;
  t.shared = shared;
  t.tensor = host.shape;
  std::copy(coordinates, coordinates + rank, t.coordinates);
  t.place = place;
  return t;
}

}  // namespace

void encode_tensor_map(TensorMap& map, const TensorShape& shape) {
  const HostMap host{HostMap::kMark, shape};
  static_assert(sizeof host <= sizeof map);
  std::memcpy(&map, &host, sizeof host);
}

void bulk_load(uint32_t destination, const void* source, uint32_t bytes, uint32_t barrier) {
  FLAGATTN_HOST_EXEC_FRAME;
  Transfer t = of_bytes(true, destination, source, bytes, __builtin_return_address(0));
  t.barrier = barrier;
  issue_load(t);
}

void bulk_store(void* destination, uint32_t source, uint32_t bytes) {
  FLAGATTN_HOST_EXEC_FRAME;
  issue_store(of_bytes(false, source, destination, bytes, __builtin_return_address(0)));
}

void bulk_reduce_add(void* destination, uint32_t source, uint32_t bytes, TensorType type) {
  FLAGATTN_HOST_EXEC_FRAME;
  Transfer t = of_bytes(false, source, destination, bytes, __builtin_return_address(0));
  t.reduction = Reduction::kAdd;
  t.tensor.type = type;
  t.tensor.sizes[0] = bytes / size_of(type);
  t.tensor.box[0] = static_cast<int32_t>(bytes / size_of(type));
  issue_store(t);
}

void tensor_load(uint32_t destination, const TensorMap& map, const int32_t* coordinates, int rank, uint32_t barrier) {
  FLAGATTN_HOST_EXEC_FRAME;
  Transfer t = of_box(true, destination, map, coordinates, rank, __builtin_return_address(0));
  t.barrier = barrier;
  issue_load(t);
}

void tensor_store(const TensorMap& map, uint32_t source, const int32_t* coordinates, int rank, Reduction reduction) {
  FLAGATTN_HOST_EXEC_FRAME;
  Transfer t = of_box(false, source, map, coordinates, rank, __builtin_return_address(0));
  t.reduction = reduction;
  issue_store(t);
}

void bulk_commit() {
  const tsan::Unseen unseen;
  BulkGroups& groups = self->bulk;
  for (Transfer& t : groups.open.transfers) {  // now: the tokens must not cover later groups
    if (t.engine == nullptr) continue;
    const tsan::ActingAs engine(t.engine);
    tsan::release(*groups.open.read);
  }
  groups.closed.push_back(std::move(groups.open));
  groups.open = BulkGroup{};
  ++groups.committed;
}

// Reads of shared memory are waited for before writes.
void bulk_wait(int groups_left, bool only_reading) {
  const tsan::Unseen unseen;
  BulkGroups& groups = self->bulk;
  const size_t left = static_cast<size_t>(groups_left);
  const size_t over = groups.closed.size() > left ? groups.closed.size() - left : 0;
  for (size_t i = 0; i < over; ++i) {
    BulkGroup& group = groups.closed[i];
    for (Transfer& t : group.transfers) land(t);
    tsan::acquire(*group.read);
  }
  groups.read_waited = std::max(groups.read_waited, groups.committed - std::min(groups.committed, uint64_t{left}));
  if (only_reading) return;
  for (size_t i = 0; i < over; ++i) {
    for (Transfer& t : groups.closed.front().transfers) {
      if (t.engine == nullptr) continue;
      {
        const tsan::ActingAs engine(t.writer);
        tsan::release(*groups.closed.front().written);
      }
      tsan::destroy(t.writer);
      tsan::destroy(t.engine);
    }
    tsan::acquire(*groups.closed.front().written);
    groups.closed.pop_front();
  }
}

bool land_a_load() {
  const tsan::Unseen unseen;
  std::deque<Transfer>& loads = machine->loads;
  if (loads.empty()) return false;
  const size_t chosen = machine->options.copies == CopyTiming::kRandom ? machine->random.next() % loads.size() : 0;
  Transfer t = loads[chosen];
  loads.erase(loads.begin() + static_cast<std::ptrdiff_t>(chosen));
  land_load(t);
  return true;
}

void check_bulk_at_exit(const BulkGroups& groups) {
  if (!groups.open.transfers.empty() || groups.read_waited < groups.committed) {
    fail("the thread returns without having waited until its bulk stores have read shared memory");
  }
}

}  // namespace flagattn::host_exec
