// Vectors of 16 bytes of a row: how the row-wise kernels read operands, compute with them in fp32, and write results.
// What has no such vectors is read element by element, in a dtype that is known at run time only.
#pragma once

#include <cstring>

#include "arch/dtypes.h"
#include "arch/planted_fault.h"
#include "arch/ptx/convert.cuh"
#include "arch/ptx/global.cuh"
#include "arch/ptx/math.cuh"

namespace flagattn::cuda {

template <typename T>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(T));  // elements

// ---- In registers

template <typename T>
FLAGATTN_DEVICE void widen(const ptx::Bytes16& packed, float (&values)[kVector<T>]) {
  if constexpr (sizeof(T) == 4) {
    std::memcpy(values, packed.words, sizeof packed.words);
  } else {
    FLAGATTN_UNROLL_ALL
    for (int word = 0; word < 4; ++word) {
      const ptx::FloatPair pair = ptx::unpack<T>(packed.words[word]);
      values[2 * word] = pair.low;
      values[2 * word + 1] = pair.high;
    }
  }
}

// Rounds each value once.
template <typename T>
FLAGATTN_DEVICE ptx::Bytes16 narrow(const float (&values)[kVector<T>]) {
  ptx::Bytes16 packed;
  if constexpr (sizeof(T) == 4) {
    std::memcpy(packed.words, values, sizeof packed.words);
  } else {
    FLAGATTN_UNROLL_ALL
    for (int word = 0; word < 4; ++word) packed.words[word] = ptx::pack<T>(values[2 * word], values[2 * word + 1]);
  }
  return packed;
}

// ---- Vectors of rows that start at a multiple of 16 bytes and are `width` elements long, a whole number of vectors

// The vector at `column`, or zeros behind the row, where nothing is read.
template <typename T>
FLAGATTN_DEVICE ptx::Bytes16 load_vector(const T* row, int column, int width) {
  const int end = planted(Fault::kStrayRead) ? width + 1 : width;
  return column < end ? ptx::load_global_16_once(row + column) : ptx::Bytes16{};
}

// Writes the vector at `column`, or nothing behind the row.
template <typename T>
FLAGATTN_DEVICE void store_vector(T* row, int column, int width, const ptx::Bytes16& vector) {
  const int end = planted(Fault::kStrayWrite) ? width + 1 : width;
  if (column < end) ptx::store_global_16(row + column, vector);
}

// kCount = 4 or 8 columns of a row that is read many times, as floats; zeros behind the row.
template <int kCount>
FLAGATTN_DEVICE void load_columns(const void* row, DType dtype, int column, int width, float (&values)[kCount]) {
  FLAGATTN_UNROLL_ALL
  for (int i = 0; i < kCount; i += 4) {
    if (column >= width) {
      FLAGATTN_UNROLL_ALL
      for (int k = 0; k < 4; ++k) values[i + k] = 0.0f;
    } else if (dtype == DType::kFloat32) {
      const ptx::Bytes16 four = ptx::load_global_16(static_cast<const float*>(row) + column + i);
      std::memcpy(&values[i], four.words, sizeof four.words);
    } else {
      const void* source = static_cast<const uint16_t*>(row) + column + i;
      const auto four = ptx::load_global(static_cast<const ptx::Bytes8*>(source));
      FLAGATTN_UNROLL_ALL
      for (int k = 0; k < 2; ++k) {
        const bool is_bfloat16 = dtype == DType::kBFloat16;
        const auto pair = is_bfloat16 ? ptx::unpack<BFloat16>(four.words[k]) : ptx::unpack<Float16>(four.words[k]);
        values[i + 2 * k] = pair.low;
        values[i + 2 * k + 1] = pair.high;
      }
    }
  }
}

// ---- Elements of any row

FLAGATTN_DEVICE float load_number(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::kFloat32) return ptx::load_global(static_cast<const float*>(data) + index);
  const uint32_t bits = ptx::load_global(static_cast<const uint16_t*>(data) + index);
  return dtype == DType::kBFloat16 ? ptx::unpack<BFloat16>(bits).low : ptx::unpack<Float16>(bits).low;
}

// Rounds it first.
FLAGATTN_DEVICE void store_number(void* data, DType dtype, int64_t index, float value) {
  if (dtype == DType::kFloat32) return ptx::store_global(static_cast<float*>(data) + index, value);
  const uint32_t bits = dtype == DType::kBFloat16 ? ptx::pack<BFloat16>(value, 0.0f) : ptx::pack<Float16>(value, 0.0f);
  ptx::store_global(static_cast<uint16_t*>(data) + index, static_cast<uint16_t>(bits));
}

FLAGATTN_DEVICE float rounded_to(DType dtype, float value) {
  if (dtype == DType::kFloat32) return value;
  return dtype == DType::kBFloat16 ? ptx::unpack<BFloat16>(ptx::pack<BFloat16>(value, 0.0f)).low
                                   : ptx::unpack<Float16>(ptx::pack<Float16>(value, 0.0f)).low;
}

}  // namespace flagattn::cuda
