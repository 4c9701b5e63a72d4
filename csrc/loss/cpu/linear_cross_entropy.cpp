// Linear cross-entropy: the loss of hidden weight^T without the logits of more than one block (loss/heuristics.h).
#include <cstring>
#include <vector>

#include "loss/cpu/linear_blocks.h"
#include "loss/cpu/loss.h"

namespace flagattn::cpu {
namespace {

std::vector<int64_t> kept_rows(const LossRows& in) {
  std::vector<int64_t> kept;
  for (int64_t row = 0; row < in.rows; ++row) {
    if (is_kept(in, row)) kept.push_back(row);
  }
  return kept;
}

void clear(const ParallelFor& parallel, void* data, int64_t bytes) {
  for_each_range(parallel, bytes, int64_t{1} << 20, [&](int64_t begin, int64_t end) {
    std::memset(static_cast<char*>(data) + begin, 0, static_cast<size_t>(end - begin));
  });
}

// The groups of classes of all kept rows, one after the other.
template <typename Body>
void for_each_group(LinearBlocks& blocks, const LinearLossPlan& plan, int64_t rows, int64_t classes, Body&& body) {
  for (int64_t begin = 0; begin < classes; begin += plan.block_classes) {
    const int64_t count = std::min(plan.block_classes, classes - begin);
    blocks.load_weight(begin, count);
    body(Block{0, rows, begin, count});
  }
}

}  // namespace

Status run_linear_cross_entropy(const LinearCrossEntropyParams& params, const ParallelFor& parallel,
                                MatrixProduct product) {
  const LinearOperands& operands = params.operands;
  const LossRows& in = operands.in;
  const LossResults& out = params.out;
  if (Status status = check_targets(in); !status.ok()) return status;
  const std::vector<int64_t> kept = kept_rows(in);
  const int64_t num_kept = static_cast<int64_t>(kept.size());
  const bool takes_gradients = params.dhidden != nullptr || params.dweight != nullptr;
  const double divisor = divisor_of(in);

  const LinearLossPlan plan =
      takes_gradients ? plan_whole_rows(num_kept, in.classes) : plan_class_groups(num_kept, operands.features);
  LinearBlocks blocks(operands, kept, plan, parallel, product);
  std::vector<double> losses(in.rows);
  std::vector<RowSummary> summaries(num_kept);
  std::vector<float> target_logits(num_kept);
  for (int64_t row = 0; row < in.rows; ++row) skip_row(row, out);
  const auto finish_rows = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      losses[kept[i]] = finish_row(in, kept[i], summaries[i], target_logits[i], out);
  };

  if (num_kept == 0) {
    if (params.dweight != nullptr) clear(parallel, params.dweight, in.classes * operands.features * 4);
  } else if (!takes_gradients) {
    blocks.load_rows(0, num_kept);
    for_each_group(blocks, plan, num_kept, in.classes,
                   [&](const Block& block) { blocks.logits(block, summaries, target_logits); });
    finish_rows(0, num_kept);
  } else {
    std::vector<RowGradient> coefficients(num_kept);
    const Floats dhidden(params.dhidden != nullptr ? plan.block_rows * operands.features : 0);
    blocks.load_weight(0, in.classes);
    for (int64_t begin = 0; begin < num_kept; begin += plan.block_rows) {
      const Block block = {begin, std::min(plan.block_rows, num_kept - begin), 0, in.classes};
      blocks.load_rows(begin, block.rows);
      blocks.logits(block, summaries, target_logits);
      finish_rows(begin, begin + block.rows);
      for (int64_t i = begin; i < begin + block.rows; ++i) {
        const double share = weight_of(in, kept[i]) / divisor;
        coefficients[i] = row_gradient(in, out.maximum[kept[i]], out.sum[kept[i]], share, 0.0);
      }
      blocks.gradients(block, coefficients, params.dweight, begin > 0);
      if (params.dhidden == nullptr) continue;
      blocks.dhidden(block, dhidden.get(), false);
      blocks.scatter(dhidden.get(), begin, block.rows, params.dhidden, DType::kFloat32);
    }
  }
  if (params.dhidden != nullptr) blocks.clear_others(params.dhidden, DType::kFloat32);
  reduce_losses(in, losses, divisor, out);
  return Status::success();
}

Status run_linear_cross_entropy_backward(const LinearCrossEntropyBackwardParams& params, const ParallelFor& parallel,
                                         MatrixProduct product) {
  const LinearOperands& operands = params.operands;
  const LossRows& in = operands.in;
  if (Status status = check_targets(in); !status.ok()) return status;
  const std::vector<int64_t> kept = kept_rows(in);
  const int64_t num_kept = static_cast<int64_t>(kept.size());
  const double divisor = divisor_of(in);

  const LinearLossPlan plan = plan_class_groups(num_kept, operands.features);
  LinearBlocks blocks(operands, kept, plan, parallel, product);
  if (num_kept == 0) {
    if (params.dweight != nullptr) {
      clear(parallel, params.dweight, in.classes * operands.features * size_of(operands.weight_dtype));
    }
  } else {
    std::vector<RowGradient> coefficients(num_kept);
    for (int64_t i = 0; i < num_kept; ++i) coefficients[i] = row_gradient(in, kept[i], params.upstream, divisor);
    const Floats dhidden(params.dhidden != nullptr ? num_kept * operands.features : 0);
    blocks.load_rows(0, num_kept);
    for_each_group(blocks, plan, num_kept, in.classes, [&](const Block& block) {
      blocks.logits(block);
      blocks.gradients(block, coefficients, params.dweight, false);
      if (params.dhidden != nullptr) blocks.dhidden(block, dhidden.get(), block.class_begin > 0);
    });
    if (params.dhidden != nullptr) blocks.scatter(dhidden.get(), 0, num_kept, params.dhidden, operands.hidden_dtype);
  }
  if (params.dhidden != nullptr) blocks.clear_others(params.dhidden, operands.hidden_dtype);
  return Status::success();
}

}  // namespace flagattn::cpu
