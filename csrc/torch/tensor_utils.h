// Tensors as the ops see them: arguments with a name for the error messages, allocation, and the views kernels take.
//
// An op checks in this order: dtypes, device, layout, shapes (and on the CPU values), so that the first message a user
// meets is the most useful one. A message is one sentence: which argument, what came, what is allowed.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "arch/dtypes.h"
#include "arch/status.h"

namespace flagattn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

template <typename... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << "flagattn::" << op << ": ";
  (text << ... << parts);
  throw std::runtime_error(std::move(text).str());
}

template <typename... Parts>
void check(bool condition, const char* op, const Parts&... parts) {
  if (!condition) [[unlikely]] {
    fail(op, parts...);
  }
}

inline void check(const Status& status, const char* op) {
  if (!status.ok()) fail(op, status.message);
}

// Written out only where a check has failed: strings of every shape would take longer than a small call.
struct SizesText {
  Sizes sizes;
};
inline SizesText text_of(Sizes sizes) { return {sizes}; }
inline std::ostream& operator<<(std::ostream& out, const SizesText& text) {
  out << '(';
  for (size_t i = 0; i < text.sizes.size(); ++i) out << (i == 0 ? "" : ", ") << text.sizes[i];
  return out << (text.sizes.size() == 1 ? ",)" : ")");
}

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

// A tensor argument and the metadata that is asked for more than once. Borrows the tensor.
struct Argument {
  const char* name;
  const Tensor& tensor;
  ScalarType dtype;
  Sizes sizes;
  Sizes strides;

  Argument(const char* name, const Tensor& tensor)
      : name(name), tensor(tensor), dtype(tensor.scalar_type()), sizes(tensor.sizes()), strides(tensor.strides()) {}

  int64_t dim() const { return static_cast<int64_t>(sizes.size()); }
  bool last_dim_is_contiguous() const { return dim() > 0 && (strides[dim() - 1] == 1 || sizes[dim() - 1] <= 1); }
};

// Pointers for the params structs. Never null, so that "null: absent" there stays true of empty tensors too.
inline void* data_of(void* data) {
  static char nothing;
  return data != nullptr ? data : &nothing;
}
inline void* input_data(const Tensor& tensor) { return data_of(const_cast<void*>(tensor.const_data_ptr())); }
inline void* output_data(const Tensor& tensor) { return data_of(tensor.mutable_data_ptr()); }

// An uninitialised contiguous tensor on the device of `like`.
inline Tensor empty_like_device(const Tensor& like, ScalarType dtype, Sizes sizes) {
  constexpr size_t kMaxDims = 8;
  if (sizes.size() > kMaxDims)
    throw std::runtime_error("flagattn: tensors of more than 8 dimensions are not supported.");
  int64_t strides[kMaxDims];
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i] > 0 ? sizes[i] : 1;
  }
  int32_t device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides,
                               torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type,
                               like.get_device_index(), &handle));
  return Tensor(handle);
}
inline Tensor empty_like_device(const Tensor& like, ScalarType dtype, std::initializer_list<int64_t> sizes) {
  return empty_like_device(like, dtype, Sizes(sizes.begin(), sizes.size()));
}

// ---- Checks ----

inline DType check_floating(const char* op, const Argument& argument) {
  switch (argument.dtype) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      fail(op, argument.name, " is ", name_of(argument.dtype), "; float32, bfloat16 and float16 are supported.");
  }
}

inline void check_dtype(const char* op, const Argument& argument, ScalarType expected) {
  check(argument.dtype == expected, op, argument.name, " is ", name_of(argument.dtype), "; it must be ",
        name_of(expected), ".");
}

inline void check_same_dtype(const char* op, const Argument& argument, const Argument& first) {
  check(argument.dtype == first.dtype, op, argument.name, " is ", name_of(argument.dtype), ", but ", first.name, " is ",
        name_of(first.dtype), "; they must agree.");
}

inline void check_same_device(const char* op, const Argument& argument, const Argument& first) {
  int32_t type, first_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(argument.tensor.get(), &type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(first.tensor.get(), &first_type));
  check(type == first_type && argument.tensor.get_device_index() == first.tensor.get_device_index(), op, argument.name,
        " and ", first.name, " are on different devices; they must be on one.");
}

inline void check_last_dim_contiguous(const char* op, const Argument& argument) {
  check(argument.last_dim_is_contiguous(), op, argument.name, " of shape ", text_of(argument.sizes), " has strides ",
        text_of(argument.strides), "; its last dimension must be contiguous.");
}

inline void check_shape(const char* op, const Argument& argument, std::initializer_list<int64_t> expected,
                        const char* meaning) {
  const Sizes wanted(expected.begin(), expected.size());
  bool same = argument.sizes.size() == wanted.size();
  for (size_t i = 0; same && i < wanted.size(); ++i) same = argument.sizes[i] == wanted[i];
  check(same, op, argument.name, " has shape ", text_of(argument.sizes), "; it must be ", meaning, " = ",
        text_of(wanted), ".");
}

inline float checked_softcap(const char* op, double softcap) {
  check(softcap >= 0.0, op, "softcap is ", softcap, "; it must be 0 (off) or positive.");
  const auto cap = static_cast<float>(softcap);
  check(std::isfinite(cap) && (cap > 0.0f) == (softcap > 0.0), op, "softcap is ", softcap,
        "; it must be 0 (off), or positive and finite in fp32.");
  return cap;
}

}  // namespace flagattn
