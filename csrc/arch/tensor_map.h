// Tensors as the bulk copy engine sees them: a box of up to five dimensions is copied between global and shared memory.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "arch/dtypes.h"
#include "arch/host_device.h"
#include "arch/status.h"

namespace flagattn {

enum class TensorType : uint8_t { kUInt8, kInt32, kUInt32, kFloat16, kBFloat16, kFloat32 };

template <typename Element>
constexpr TensorType tensor_type_of() {
  if constexpr (std::is_same_v<Element, uint8_t>) return TensorType::kUInt8;
  if constexpr (std::is_same_v<Element, int32_t>) return TensorType::kInt32;
  if constexpr (std::is_same_v<Element, uint32_t>) return TensorType::kUInt32;
  if constexpr (std::is_same_v<Element, Float16>) return TensorType::kFloat16;
  if constexpr (std::is_same_v<Element, BFloat16>) return TensorType::kBFloat16;
  if constexpr (std::is_same_v<Element, float>) return TensorType::kFloat32;
}

constexpr int size_of(TensorType type) {
  return type == TensorType::kUInt8 ? 1 : type == TensorType::kFloat16 || type == TensorType::kBFloat16 ? 2 : 4;
}

// How 16-byte chunks of shared memory are permuted: the chunk's index within 32, 64 or 128 bytes, XOR the index of the
// 128 bytes it lies in, modulo 2, 4 or 8. The values are the exponents.
enum class Swizzle : uint8_t { kNone, k32, k64, k128 };

FLAGATTN_HOST_DEVICE constexpr uint32_t swizzled(uint32_t address, Swizzle swizzle) {
  const uint32_t chunks = (1u << static_cast<int>(swizzle)) - 1;
  return address ^ ((address >> 7 & chunks) << 4);
}

// What elements outside of the tensor become when they are loaded.
enum class OutsideFill : uint8_t { kZero, kNaN };

inline constexpr int kMostTensorDims = 5;

// Dimension 0 is contiguous; strides[i] is the distance of dimension i + 1 in bytes.
struct TensorShape {
  TensorType type = TensorType::kBFloat16;
  int rank = 0;
  void* data = nullptr;
  int64_t sizes[kMostTensorDims] = {};
  int64_t strides[kMostTensorDims - 1] = {};
  int32_t box[kMostTensorDims] = {};
  Swizzle swizzle = Swizzle::kNone;
  OutsideFill fill = OutsideFill::kZero;
};

// Opaque to kernels, which take it by value in their params (it must stay in the kernel's constant memory).
struct alignas(64) TensorMap {
  uint8_t bytes[128];
};

// What the copy engine demands; an error names the field.
inline Status check_tensor_shape(const TensorShape& shape) {
  const auto refuse = [](const std::string& what) { return Status::error("a tensor map with " + what); };
  const auto number = [](int64_t value) { return std::to_string(value); };
  if (shape.rank < 1 || shape.rank > kMostTensorDims) return refuse("rank " + number(shape.rank) + "; 1 to 5 exist");
  if (reinterpret_cast<uintptr_t>(shape.data) % 16 != 0) return refuse("data that is not 16-byte aligned");
  for (int i = 0; i < shape.rank; ++i) {
    const std::string dim = " in dimension " + number(i);
    if (shape.sizes[i] < 1 || shape.sizes[i] > int64_t{1} << 32) return refuse("size " + number(shape.sizes[i]) + dim);
    if (shape.box[i] < 1 || shape.box[i] > 256)
      return refuse("box size " + number(shape.box[i]) + dim + "; 1 to 256 exist");
    if (i == 0) continue;
    const int64_t stride = shape.strides[i - 1];
    if (stride < 0 || stride % 16 != 0 || stride >= int64_t{1} << 40) {
      return refuse("stride " + number(stride) + dim + "; multiples of 16 below 2^40 are supported");
    }
  }
  const int64_t row = int64_t{shape.box[0]} * size_of(shape.type);
  if (row % 16 != 0) return refuse("box rows of " + number(row) + " bytes, which is not a multiple of 16");
  if (shape.swizzle != Swizzle::kNone && row > 16 << static_cast<int>(shape.swizzle)) {
    return refuse("box rows of " + number(row) + " bytes, more than the swizzle's");
  }
  if (shape.fill == OutsideFill::kNaN &&
      (shape.type == TensorType::kUInt8 || shape.type == TensorType::kInt32 || shape.type == TensorType::kUInt32)) {
    return refuse("NaN as fill for integers");
  }
  return Status::success();
}

}  // namespace flagattn
