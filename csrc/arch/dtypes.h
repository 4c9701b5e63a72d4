// Storage types of the operands and the run-time tag that names them. Arithmetic is always fp32.
#pragma once

#include <cstdint>

namespace flagattn {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Operands of matrix products only.
struct Float8E4M3 {
  uint8_t bits;
};
struct Float8E5M2 {
  uint8_t bits;
};

constexpr int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// Calls `body` with a value of the C++ type behind `dtype`: dispatch(dtype, [&]<typename T>(T) { ... }).
template <typename Body>
decltype(auto) dispatch(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kBFloat16:
      return body(BFloat16{});
    case DType::kFloat16:
      return body(Float16{});
    default:
      return body(float{});
  }
}

}  // namespace flagattn
