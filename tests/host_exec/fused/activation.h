// SwiGLU, both ways.
#pragma once

#include "activation/cuda/sm80/activation.h"
#include "tests/host_exec/fused/problem.h"

namespace flagattn::fused {

inline int run_swiglu(const Options& options) {
  const int64_t rows = options.whole("rows", 9), cols = options.whole("cols", 64), stride = options.whole("stride");
  const DType dtype = options.dtype();
  std::mt19937 random(7);
  Operand gate(dtype, rows, cols, stride), up(dtype, rows, cols, stride), dy(dtype, rows, cols, stride);
  Operand y(dtype, rows, cols), dgate(dtype, rows, cols), dup(dtype, rows, cols);
  for (Operand* operand : {&gate, &up, &dy}) operand->fill(random, 2.0f);
  Verdict verdict;
  if (!verdict.ran(sm80::run_swiglu({dtype, rows, cols, gate.view(), up.view(), y.data}, {}))) {
    return verdict.exit_code();
  }
  const SwigluBackwardParams backward{dtype, rows, cols, dy.view(), gate.view(), up.view(), dgate.data, dup.data};
  if (!verdict.ran(sm80::run_swiglu_backward(backward, {}))) return verdict.exit_code();

  const auto p = [&](int64_t row, int64_t col) { return 1.0 / (1.0 + std::exp(-gate.at(row, col))); };
  const auto silu = [&](int64_t row, int64_t col) { return gate.at(row, col) * p(row, col); };
  verdict.compare("y", y, 4, [&](int64_t row, int64_t col) { return silu(row, col) * up.at(row, col); });
  verdict.compare("dgate", dgate, 4, [&](int64_t row, int64_t col) {
    return dy.at(row, col) * up.at(row, col) * (p(row, col) + silu(row, col) * (1.0 - p(row, col)));
  });
  verdict.compare("dup", dup, 4, [&](int64_t row, int64_t col) { return dy.at(row, col) * silu(row, col); });
  return verdict.exit_code();
}

}  // namespace flagattn::fused
