// Dense products by aten: whatever BLAS torch was built with, on the calling thread where torch's threads are busy.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>

#include "arch/matrix_product.h"

namespace flagattn {

inline torch::stable::Tensor tensor_of(const Matrix& matrix) {
  const int64_t sizes[] = {matrix.rows, matrix.cols}, strides[] = {matrix.row_stride, matrix.col_stride};
  return torch::stable::from_blob(matrix.data, {sizes, 2}, {strides, 2},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                  torch::headeronly::ScalarType::Float);
}

inline MatrixProduct aten_product() {
  return [](const Matrix& a, const Matrix& b, const Matrix& c, bool accumulate) {
    const auto left = tensor_of(a), right = tensor_of(b);
    auto out = tensor_of(c);
    STABLE_TORCH_ERROR_CODE_CHECK(
        accumulate ? aoti_torch_cpu_addmm_out(out.get(), out.get(), left.get(), right.get(), 1.0, 1.0)
                   : aoti_torch_cpu_mm_out(out.get(), left.get(), right.get()));
  };
}

}  // namespace flagattn
