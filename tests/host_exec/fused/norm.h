// RMSNorm, forward with residual and backward with both gradients.
#pragma once

#include <vector>

#include "norm/cuda/sm80/heuristics.h"
#include "norm/cuda/sm80/norm.h"
#include "tests/host_exec/fused/problem.h"

namespace flagattn::fused {

inline int run_norm(const Options& options) {
  const int64_t rows = options.whole("rows", 9), cols = options.whole("cols", 64), stride = options.whole("stride");
  const DType dtype = options.dtype();
  const float eps = 1e-3f, offset = 1.0f;
  std::mt19937 random(7);
  Operand x(dtype, rows, cols, stride), residual(dtype, rows, cols, stride), weight(options.dtype("weight"), 1, cols);
  Operand y(dtype, rows, cols), summed(dtype, rows, cols), rstd(DType::kFloat32, 1, rows);
  Operand dy(dtype, rows, cols, stride), dsummed(dtype, rows, cols, stride), ds(dtype, rows, cols);
  Operand dweight(weight.dtype, 1, cols);
  for (Operand* operand : {&x, &residual, &weight, &dy, &dsummed}) operand->fill(random);
  Verdict verdict;

  RmsNormParams p;
  p.dtype = dtype;
  p.weight_dtype = weight.dtype;
  p.rows = rows;
  p.cols = cols;
  p.x = x.view();
  p.residual = residual.view();
  p.weight = weight.data;
  p.eps = eps;
  p.offset = offset;
  p.y = y.data;
  p.summed = summed.data;
  p.rstd = rstd.floats();
  if (!verdict.ran(sm80::run_rms_norm(p, {}))) return verdict.exit_code();

  Operand scratch(DType::kFloat32, 1, sm80::norm_backward_scratch(rows, cols, dtype) / 4);
  RmsNormBackwardParams b;
  b.dtype = dtype;
  b.weight_dtype = weight.dtype;
  b.rows = rows;
  b.cols = cols;
  b.dy = dy.view();
  b.dsummed = dsummed.view();
  b.s = summed.view();
  b.rstd = p.rstd;
  b.weight = weight.data;
  b.offset = offset;
  b.ds = ds.data;
  b.dweight = dweight.data;
  b.scratch = scratch.data;
  if (!verdict.ran(sm80::run_rms_norm_backward(b, {}))) return verdict.exit_code();

  // In float64, from the sums as the kernel has rounded them.
  std::vector<double> scale(rows), mean(rows), weight_gradient(cols);
  const auto gain = [&](int64_t col) { return weight.at(0, col) + offset; };
  for (int64_t row = 0; row < rows; ++row) {
    double squares = 0.0, products = 0.0;
    for (int64_t col = 0; col < cols; ++col) squares += summed.at(row, col) * summed.at(row, col);
    scale[row] = 1.0 / std::sqrt(squares / static_cast<double>(cols) + eps);
    for (int64_t col = 0; col < cols; ++col) {
      const double n = summed.at(row, col) * scale[row];
      products += dy.at(row, col) * gain(col) * n;
      weight_gradient[col] += dy.at(row, col) * n;
    }
    mean[row] = products / static_cast<double>(cols);
  }
  verdict.compare("summed", summed, 1,
                  [&](int64_t row, int64_t col) { return x.at(row, col) + residual.at(row, col); });
  verdict.compare("y", y, 4, [&](int64_t row, int64_t col) { return summed.at(row, col) * scale[row] * gain(col); });
  verdict.compare("ds", ds, 8, [&](int64_t row, int64_t col) {
    const double n = summed.at(row, col) * scale[row];
    return scale[row] * (dy.at(row, col) * gain(col) - n * mean[row]) + dsummed.at(row, col);
  });
  verdict.compare("dweight", dweight, 8, [&](int64_t, int64_t col) { return weight_gradient[col]; });
  return verdict.exit_code();
}

}  // namespace flagattn::fused
