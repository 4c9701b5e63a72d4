// Reductions of the bulk copy engine on global memory.
#include <algorithm>
#include <cstring>

#include "host_exec/machine.h"
#include "host_exec/numbers.h"

namespace flagattn::host_exec {
namespace {

template <typename Value>
uint32_t reduced(Reduction reduction, uint32_t old_bits, uint32_t bits) {
  Value old, value;
  std::memcpy(&old, &old_bits, sizeof old);
  std::memcpy(&value, &bits, sizeof value);
  const Value result = reduction == Reduction::kAdd   ? static_cast<Value>(old + value)
                       : reduction == Reduction::kMin ? std::min(old, value)
                                                      : std::max(old, value);
  uint32_t result_bits = 0;
  std::memcpy(&result_bits, &result, sizeof result);
  return result_bits;
}

uint32_t reduced_bfloat16(Reduction reduction, uint32_t old_bits, uint32_t bits) {
  const float old = widen_bfloat16(static_cast<uint16_t>(old_bits)),
              value = widen_bfloat16(static_cast<uint16_t>(bits));
  const float result = reduction == Reduction::kAdd   ? old + value
                       : reduction == Reduction::kMin ? std::min(old, value)
                                                      : std::max(old, value);
  uint32_t wide;
  std::memcpy(&wide, &result, sizeof wide);
  return (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
}

uint32_t reduced_as(TensorType type, Reduction reduction, uint32_t old_bits, uint32_t bits) {
  switch (type) {
    case TensorType::kFloat32:
      return reduced<float>(reduction, old_bits, bits);
    case TensorType::kInt32:
      return reduced<int32_t>(reduction, old_bits, bits);
    case TensorType::kUInt32:
      return reduced<uint32_t>(reduction, old_bits, bits);
    case TensorType::kFloat16:
      return reduced<_Float16>(reduction, old_bits, bits);
    case TensorType::kBFloat16:
      return reduced_bfloat16(reduction, old_bits, bits);
    default:
      return reduced<uint8_t>(reduction, old_bits, bits);
  }
}

}  // namespace

// One atomic operation per element, on the 4-byte word around it.
void reduce(TensorType type, Reduction reduction, std::byte* global, const std::byte* values, int bytes) {
  const int element = size_of(type);
  const uint32_t mask = element == 4 ? ~0u : (1u << 8 * element) - 1;
  for (int i = 0; i < bytes; i += element) {
    const auto address = reinterpret_cast<uintptr_t>(global + i);
    auto* word = reinterpret_cast<uint32_t*>(address & ~uintptr_t{3});
    const int shift = static_cast<int>(address % 4) * 8;
    uint32_t value = 0;
    tsan::copy_unseen(&value, values + i, element);
    for (uint32_t old = tsan::load(word, false);;) {
      const uint32_t result = reduced_as(type, reduction, old >> shift & mask, value) & mask;
      if (tsan::compare_exchange(word, &old, (old & ~(mask << shift)) | result << shift, false)) break;
    }
  }
}

}  // namespace flagattn::host_exec
