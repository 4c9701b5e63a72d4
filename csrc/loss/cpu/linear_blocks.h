// The blocks of linear cross-entropy: logits of some rows and classes, made and turned into gradients tile by tile.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "arch/matrix_product.h"
#include "arch/parallel.h"
#include "loss/cpu/loss.h"
#include "loss/cpu/row_terms.h"
#include "loss/heuristics.h"
#include "loss/params.h"

namespace flagattn::cpu {

// Uninitialised floats at a cache line.
class Floats {
 public:
  explicit Floats(int64_t count) : data_(static_cast<float*>(::operator new(bytes(count), kAlignment))) {}
  Floats() = default;
  float* get() const { return data_.get(); }
  bool empty() const { return data_ == nullptr; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  static size_t bytes(int64_t count) { return static_cast<size_t>(count > 0 ? count : 1) * sizeof(float); }
  struct Delete {
    void operator()(float* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<float, Delete> data_;
};

// Calls body(begin, end) for consecutive ranges of `step` within [0, size).
template <typename Body>
void for_each_range(const ParallelFor& parallel, int64_t size, int64_t step, Body&& body) {
  for_each_item(
      parallel, (size + step - 1) / step, [] { return 0; },
      [&](int64_t item, int) { body(item * step, item * step + step < size ? item * step + step : size); });
}

// Some rows, of those that are kept, and some classes.
struct Block {
  int64_t row_begin;
  int64_t rows;
  int64_t class_begin;
  int64_t classes;
};

class LinearBlocks {
 public:
  // `kept`: the rows that count for the loss, in order.
  LinearBlocks(const LinearOperands& operands, const std::vector<int64_t>& kept, const LinearLossPlan& plan,
               const ParallelFor& parallel, MatrixProduct product);

  // Brings the hidden states of kept rows [begin, begin + count), and the weights of a block, within reach in fp32.
  void load_rows(int64_t begin, int64_t count);
  void load_weight(int64_t class_begin, int64_t count);

  // The block's logits. Each row's summary, and its target's logit if that is in the block, are brought up to date.
  void logits(const Block& block, std::vector<RowSummary>& summaries, std::vector<float>& target_logits);
  // Without summaries.
  void logits(const Block& block);

  // Turns logits into their gradients, by each kept row's coefficients, and adds their product with the hidden states
  // to dweight or, unless it is to accumulate, puts it there. dweight: null, or (classes, features) in the weight's
  // dtype; only fp32 accumulates.
  void gradients(const Block& block, const std::vector<RowGradient>& coefficients, void* dweight, bool accumulate);
  // The block's share of the hidden states' gradient, added to dhidden (kept rows of the block, features) or put there.
  void dhidden(const Block& block, float* dhidden, bool accumulate);

  // Puts the gradients of kept rows [begin, begin + count) where they belong.
  void scatter(const float* dhidden, int64_t begin, int64_t count, void* to, DType dtype) const;
  // Zeros for all rows that are not kept.
  void clear_others(void* dhidden, DType dtype) const;

 private:
  Matrix tile(const Block& block, int64_t tile_begin, int64_t row_begin, int64_t row_end) const;
  Matrix hidden(int64_t begin, int64_t end) const;
  Matrix weight(const Block& block, int64_t tile_begin) const;
  void product_tiles(const Block& block, SegmentSummary* summaries, float* target_logits);

  const LinearOperands& operands_;
  const LinearLossPlan plan_;
  const ParallelFor& parallel_;
  const MatrixProduct product_;
  const LossKernels& kernels_;
  const std::vector<int64_t>& kept_;
  Floats logits_;
  Floats hidden_;
  Floats weight_;  // of a block, where the weight is not fp32; so is the next
  Floats dweight_;
  Floats parts_;  // of dhidden
  float* block_weight_ = nullptr;
  int64_t block_weight_stride_ = 0;
};

}  // namespace flagattn::cpu
