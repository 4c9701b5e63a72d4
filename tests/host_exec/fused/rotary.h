// Rotary embedding of packed rows at positions from the end of the tables to their beginning.
#pragma once

#include <vector>

#include "rotary/cuda/sm80/rotary.h"
#include "tests/host_exec/fused/problem.h"

namespace flagattn::fused {

inline int run_rotary(const Options& options) {
  const int64_t rows = options.whole("rows", 5), heads = options.whole("heads", 3);
  const int64_t head_dim = options.whole("head_dim", 64), half_dim = options.whole("half_dim", head_dim / 2);
  const DType dtype = options.dtype();
  std::mt19937 random(7);
  Operand x(dtype, rows, heads * head_dim, options.whole("stride")), y(dtype, rows, heads * head_dim);
  Operand cos(options.dtype("table"), rows, half_dim), sin(cos.dtype, rows, half_dim);
  for (Operand* operand : {&x, &cos, &sin}) operand->fill(random);
  std::vector<int64_t> positions(rows);
  for (int64_t row = 0; row < rows; ++row) positions[row] = rows - 1 - row;

  RotaryParams p;
  p.dtype = dtype;
  p.table_dtype = cos.dtype;
  p.batch = 1;
  p.seqlen = rows;
  p.heads = heads;
  p.head_dim = head_dim;
  p.half_dim = half_dim;
  p.num_positions = rows;
  p.x = {x.data, 0, x.stride, head_dim};
  p.y = {y.data, 0, y.stride, head_dim};
  p.cos = {cos.data, 0, cos.stride};
  p.sin = {sin.data, 0, sin.stride};
  p.positions64 = positions.data();
  p.interleaved = options.number("interleaved") != 0.0;
  Verdict verdict;
  if (!verdict.ran(sm80::run_rotary(p, {}))) return verdict.exit_code();

  verdict.compare("y", y, 4, [&](int64_t row, int64_t col) {
    const int64_t channel = col % head_dim, head = col - channel;
    if (channel >= 2 * half_dim) return x.at(row, col);
    const int64_t pair = p.interleaved ? channel / 2 : channel % half_dim;
    const bool is_first = p.interleaved ? channel % 2 == 0 : channel < half_dim;
    const int64_t other = p.interleaved ? channel ^ 1 : is_first ? channel + half_dim : channel - half_dim;
    const double turned = x.at(row, head + other) * sin.at(positions[row], pair);
    return x.at(row, col) * cos.at(positions[row], pair) + (is_first ? -turned : turned);
  });
  return verdict.exit_code();
}

}  // namespace flagattn::fused
