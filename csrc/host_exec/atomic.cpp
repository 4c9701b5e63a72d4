// Atomic operations on global memory, which blocks on several workers share, and waiting between blocks.
#include <algorithm>
#include <cstring>

#include "host_exec/machine.h"

namespace flagattn::host_exec {
namespace {

template <typename Value>
uint64_t apply(AtomicOperation operation, uint64_t old_bits, uint64_t bits) {
  Value old, value;
  std::memcpy(&old, &old_bits, sizeof old);
  std::memcpy(&value, &bits, sizeof value);
  switch (operation) {
    case AtomicOperation::kAdd:
      value = static_cast<Value>(old + value);
      break;
    case AtomicOperation::kMin:
      value = std::min(old, value);
      break;
    case AtomicOperation::kMax:
      value = std::max(old, value);
      break;
    default:
      break;
  }
  uint64_t result = 0;
  std::memcpy(&result, &value, sizeof value);
  return result;
}

uint64_t result_of(AtomicOperation operation, AtomicType type, uint64_t old_bits, uint64_t bits) {
  if (operation == AtomicOperation::kOr) return old_bits | bits;
  if (operation == AtomicOperation::kAnd) return old_bits & bits;
  switch (type) {
    case AtomicType::kFloat32:
      return apply<float>(operation, old_bits, bits);
    case AtomicType::kInt32:
      return apply<int32_t>(operation, old_bits, bits);
    case AtomicType::kUInt32:
      return apply<uint32_t>(operation, old_bits, bits);
    case AtomicType::kUInt64:
      return apply<uint64_t>(operation, old_bits, bits);
  }
  return bits;
}

template <typename Word>
uint64_t update(AtomicOperation operation, AtomicType type, void* address, uint64_t bits) {
  auto* word = static_cast<Word*>(address);
  Word old = tsan::load(word, /*acquire=*/false);
  while (!tsan::compare_exchange(word, &old, static_cast<Word>(result_of(operation, type, old, bits)), false)) {
  }
  return old;
}

void count_atomic(const void* place, const void* address, int bytes) {
  check_global("an atomic operation takes", address, bytes);
  count_access(place, Instruction::kAtomic, Memory::kGlobal, true, reinterpret_cast<uint64_t>(address), bytes);
}

}  // namespace

uint64_t atomic(AtomicOperation operation, AtomicType type, void* address, uint64_t value) {
  FLAGATTN_HOST_EXEC_FRAME;
  const bool wide = type == AtomicType::kUInt64;
  count_atomic(__builtin_return_address(0), address, wide ? 8 : 4);
  const uint64_t old =
      wide ? update<uint64_t>(operation, type, address, value) : update<uint32_t>(operation, type, address, value);
  machine->residents->something_changed();
  may_yield();
  return old;
}

uint32_t atomic_compare_exchange(uint32_t* address, uint32_t expected, uint32_t value) {
  FLAGATTN_HOST_EXEC_FRAME;
  count_atomic(__builtin_return_address(0), address, 4);
  tsan::compare_exchange(address, &expected, value, false);
  machine->residents->something_changed();
  may_yield();
  return expected;
}

void signal(uint32_t* counter, uint32_t value) {
  FLAGATTN_HOST_EXEC_FRAME;
  count_atomic(__builtin_return_address(0), counter, 4);
  uint32_t old = tsan::load(counter, false);
  while (!tsan::compare_exchange(counter, &old, old + value, /*release=*/true)) {
  }
  machine->residents->something_changed();
  may_yield();
}

// Other blocks get a turn here, under seeds also where nothing is to be waited for.
void global_wait(const uint32_t* counter, uint32_t least) {
  FLAGATTN_HOST_EXEC_FRAME;
  check_global("global_wait takes", counter, 4);
  count_at(__builtin_return_address(0), Instruction::kAtomic);
  self->awaited = {counter, least};
  if (!self->awaited.is_there() || (machine->options.seed != 0 && machine->random.one_in(2))) wait_at("global_wait");
  self->awaited = {};
  tsan::load(counter, /*acquire=*/true);
  may_yield();
}

}  // namespace flagattn::host_exec
