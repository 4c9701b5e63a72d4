// One problem of cross-entropy, forward and backward.
#pragma once

#include <vector>

#include "loss/cuda/sm80/loss.h"
#include "tests/host_exec/fused/problem.h"

namespace flagattn::fused {

inline int run_cross_entropy(const Options& options) {
  const int64_t rows = options.whole("rows", 3), classes = options.whole("cols", 64);
  std::mt19937 random(7);
  Operand logits(options.dtype(), rows, classes, options.whole("stride", classes));
  Operand dlogits(options.dtype(), rows, classes), losses(DType::kFloat32, rows, 1);
  logits.fill(random, 2.0f);
  std::vector<int64_t> targets;
  std::vector<double> scratch(static_cast<size_t>(rows), NAN), divisor(1, NAN);
  std::vector<float> weights, parts(static_cast<size_t>(2 * rows), NAN), lse(static_cast<size_t>(rows), NAN);
  for (int64_t row = 0; row < rows; ++row) {
    targets.push_back(row % 4 == 3 ? -100 : (row * 7 + classes - 1) % classes);
    weights.push_back(0.5f + 0.25f * static_cast<float>(row % 3));
  }
  float loss = NAN;
  const float dloss = 1.0f;

  CrossEntropyParams p;
  p.in.rows = rows;
  p.in.classes = classes;
  p.in.targets = targets.data();
  p.in.weights = weights.data();
  p.dtype = logits.dtype;
  p.logits = logits.view();
  p.out = {&loss, lse.data(), parts.data(), parts.data() + rows};
  CrossEntropyBackwardParams b;
  b.in = p.in;
  b.dtype = logits.dtype;
  b.logits = p.logits;
  b.upstream = {&dloss, nullptr, parts.data(), parts.data() + rows};
  b.dlogits = dlogits.view();
  Verdict verdict;
  if (!verdict.ran(sm80::run_cross_entropy(p, scratch.data(), {}))) return verdict.exit_code();
  if (!verdict.ran(sm80::run_cross_entropy_backward(b, divisor.data(), {}))) return verdict.exit_code();

  double sum_of_weights = 0.0, expected = 0.0;
  std::vector<double> log_sums;
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0.0;
    for (int64_t j = 0; j < classes; ++j) sum += std::exp(logits.at(row, j));
    log_sums.push_back(std::log(sum));
    if (targets[row] < 0) continue;
    sum_of_weights += weights[row];
    expected += weights[row] * (log_sums[row] - logits.at(row, targets[row]));
  }
  for (int64_t row = 0; row < rows; ++row) losses.set(row, 0, row == 0 ? loss : 0.0f);
  verdict.compare("loss", losses, 16.0,
                  [&](int64_t row, int64_t) { return row == 0 ? expected / sum_of_weights : 0.0; });
  verdict.compare("dlogits", dlogits, 16.0, [&](int64_t row, int64_t j) {
    if (targets[row] < 0) return 0.0;
    const double probability = std::exp(logits.at(row, j) - log_sums[row]);
    return weights[row] / sum_of_weights * (probability - (j == targets[row] ? 1.0 : 0.0));
  });
  return verdict.exit_code();
}

}  // namespace flagattn::fused
