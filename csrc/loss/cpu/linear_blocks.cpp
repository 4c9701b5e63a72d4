#include "loss/cpu/linear_blocks.h"

#include <algorithm>
#include <cstring>

namespace flagattn::cpu {
namespace {

constexpr int64_t kRowsPerItem = 16;  // of gathering and scattering

const void* element(const void* data, DType dtype, int64_t index) {
  return static_cast<const char*>(data) + index * size_of(dtype);
}
void* element(void* data, DType dtype, int64_t index) { return static_cast<char*>(data) + index * size_of(dtype); }

const void* row_at(const StridedRows& rows, DType dtype, int64_t row) {
  if (size_of(dtype) == 4) return row_of<const float>(rows, row);
  return row_of<const uint16_t>(rows, row);
}

int64_t tiles_of(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

}  // namespace

LinearBlocks::LinearBlocks(const LinearOperands& operands, const std::vector<int64_t>& kept, const LinearLossPlan& plan,
                           const ParallelFor& parallel, MatrixProduct product)
    : operands_(operands),
      plan_(plan),
      parallel_(parallel),
      product_(product),
      kernels_(loss_kernels()),
      kept_(kept),
      logits_(plan.block_rows * std::min(plan.block_classes, operands.in.classes)),
      hidden_(plan.block_rows * operands.features) {}

// Operands in fp32

void LinearBlocks::load_rows(int64_t begin, int64_t count) {
  const int64_t features = operands_.features;
  for_each_range(parallel_, count, kRowsPerItem, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      kernels_.widen(operands_.hidden_dtype, row_at(operands_.hidden, operands_.hidden_dtype, kept_[begin + i]),
                     hidden_.get() + i * features, features);
    }
  });
}

void LinearBlocks::load_weight(int64_t class_begin, int64_t count) {
  const DType dtype = operands_.weight_dtype;
  const void* rows = element(operands_.weight, dtype, class_begin * operands_.weight_stride);
  if (dtype == DType::kFloat32) {
    block_weight_ = const_cast<float*>(static_cast<const float*>(rows));
    block_weight_stride_ = operands_.weight_stride;
    return;
  }
  const int64_t features = operands_.features;
  if (weight_.empty()) weight_ = Floats(std::min(plan_.block_classes, operands_.in.classes) * features);
  block_weight_ = weight_.get();
  block_weight_stride_ = features;
  for_each_range(parallel_, count, kRowsPerItem, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      kernels_.widen(dtype, element(rows, dtype, i * operands_.weight_stride), weight_.get() + i * features, features);
    }
  });
}

// Views

// Rows of the tile whose classes begin at `tile_begin` of the block. A tile's elements lie together.
Matrix LinearBlocks::tile(const Block& block, int64_t tile_begin, int64_t row_begin, int64_t row_end) const {
  const int64_t width = std::min(plan_.tile_classes, block.classes - tile_begin);
  return {logits_.get() + tile_begin * block.rows + row_begin * width, row_end - row_begin, width, width};
}

Matrix LinearBlocks::hidden(int64_t begin, int64_t end) const {
  return {hidden_.get() + begin * operands_.features, end - begin, operands_.features, operands_.features};
}

Matrix LinearBlocks::weight(const Block& block, int64_t tile_begin) const {
  const int64_t width = std::min(plan_.tile_classes, block.classes - tile_begin);
  return {block_weight_ + tile_begin * block_weight_stride_, width, operands_.features, block_weight_stride_};
}

// Logits

void LinearBlocks::product_tiles(const Block& block, SegmentSummary* summaries, float* target_logits) {
  const LossRows& in = operands_.in;
  const LossOptions& options = in.options;
  const int64_t row_tiles = tiles_of(block.rows, plan_.tile_rows);
  const int64_t class_tiles = tiles_of(block.classes, plan_.tile_classes);
  for_each_item(
      parallel_, row_tiles * class_tiles, [] { return 0; },
      [&](int64_t item, int) {
        const int64_t tile_begin = item / row_tiles * plan_.tile_classes;
        const int64_t row_begin = item % row_tiles * plan_.tile_rows;
        const int64_t row_end = std::min(block.rows, row_begin + plan_.tile_rows);
        const Matrix logits = tile(block, tile_begin, row_begin, row_end);
        product_(hidden(row_begin, row_end), weight(block, tile_begin).transposed(), logits, false);
        if (summaries == nullptr) return;
        SegmentSummary* of_tile = summaries + tile_begin / kLossTileStep * block.rows;
        for (int64_t row = row_begin; row < row_end; ++row) {
          const float* x = logits.data + (row - row_begin) * logits.row_stride;
          for (int64_t begin = 0; begin < logits.cols; begin += kLossTileStep) {
            of_tile[begin / kLossTileStep * block.rows + row] =
                kernels_.summarise(DType::kFloat32, x + begin, std::min(kLossTileStep, logits.cols - begin),
                                   options.softcap, options.label_smoothing != 0.0f);
          }
          const int64_t target = in.targets[kept_[block.row_begin + row]] - block.class_begin - tile_begin;
          if (0 <= target && target < logits.cols) {
            target_logits[block.row_begin + row] = kernels_.capped(DType::kFloat32, x + target, options.softcap);
          }
        }
      });
}

void LinearBlocks::logits(const Block& block) { product_tiles(block, nullptr, nullptr); }

void LinearBlocks::logits(const Block& block, std::vector<RowSummary>& summaries, std::vector<float>& target_logits) {
  const int64_t num_segments = tiles_of(block.classes, kLossTileStep);
  std::vector<SegmentSummary> segments(num_segments * block.rows);
  product_tiles(block, segments.data(), target_logits.data());
  for_each_range(parallel_, block.rows, kRowsPerItem, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      absorb(summaries[block.row_begin + row], segments.data() + row, num_segments, block.rows);
    }
  });
}

// Gradients

void LinearBlocks::gradients(const Block& block, const std::vector<RowGradient>& coefficients, void* dweight,
                             bool accumulate) {
  const DType dtype = operands_.weight_dtype;
  const int64_t features = operands_.features;
  const bool rounds = dweight != nullptr && dtype != DType::kFloat32;
  if (rounds && dweight_.empty()) dweight_ = Floats(std::min(plan_.block_classes, operands_.in.classes) * features);
  for_each_range(parallel_, block.classes, plan_.tile_classes, [&](int64_t tile_begin, int64_t tile_end) {
    const Matrix logits = tile(block, tile_begin, 0, block.rows);
    for (int64_t row = 0; row < block.rows; ++row) {
      float* x = logits.data + row * logits.row_stride;
      const int64_t target = operands_.in.targets[kept_[block.row_begin + row]] - block.class_begin - tile_begin;
      kernels_.gradient(DType::kFloat32, x, x, logits.cols, coefficients[block.row_begin + row], target,
                        operands_.in.options.softcap);
    }
    if (dweight == nullptr) return;
    void* out = element(dweight, dtype, (block.class_begin + tile_begin) * features);
    float* sums = rounds ? dweight_.get() + tile_begin * features : static_cast<float*>(out);
    const int64_t elements = (tile_end - tile_begin) * features;
    product_(logits.transposed(), hidden(0, block.rows), {sums, tile_end - tile_begin, features, features}, accumulate);
    if (rounds) kernels_.narrow(dtype, sums, 1.0f, out, elements);
  });
}

void LinearBlocks::dhidden(const Block& block, float* dhidden, bool accumulate) {
  const int64_t features = operands_.features;
  const int64_t class_tiles = tiles_of(block.classes, plan_.tile_classes);
  const int64_t parts = std::min(plan_.class_parts, class_tiles);
  const int64_t row_tiles = tiles_of(block.rows, plan_.tile_rows);
  const int64_t feature_tiles = tiles_of(features, plan_.tile_features);
  // The first part is added up where the result belongs.
  const int64_t part_elements = block.rows * features;
  if (parts > 1 && parts_.empty()) parts_ = Floats((plan_.class_parts - 1) * plan_.block_rows * features);
  for_each_item(
      parallel_, parts * row_tiles * feature_tiles, [] { return 0; },
      [&](int64_t item, int) {
        const int64_t part = item / (row_tiles * feature_tiles);
        const int64_t row_begin = item / feature_tiles % row_tiles * plan_.tile_rows;
        const int64_t row_end = std::min(block.rows, row_begin + plan_.tile_rows);
        const int64_t feature_begin = item % feature_tiles * plan_.tile_features;
        const int64_t width = std::min(plan_.tile_features, features - feature_begin);
        float* sums = part == 0 ? dhidden : parts_.get() + (part - 1) * part_elements;
        const Matrix out = {sums + row_begin * features + feature_begin, row_end - row_begin, width, features};
        const int64_t first = part * class_tiles / parts, last = (part + 1) * class_tiles / parts;
        for (int64_t index = first; index < last; ++index) {
          Matrix columns = weight(block, index * plan_.tile_classes);
          columns.data += feature_begin;
          columns.cols = width;
          product_(tile(block, index * plan_.tile_classes, row_begin, row_end), columns, out,
                   index > first || (part == 0 && accumulate));
        }
      });
  if (parts == 1) return;
  for_each_range(parallel_, block.rows, kRowsPerItem, [&](int64_t first, int64_t last) {
    for (int64_t part = 0; part < parts - 1; ++part) {
      kernels_.add(parts_.get() + part * part_elements + first * features, dhidden + first * features,
                   (last - first) * features);
    }
  });
}

void LinearBlocks::scatter(const float* dhidden, int64_t begin, int64_t count, void* to, DType dtype) const {
  const int64_t features = operands_.features;
  for_each_range(parallel_, count, kRowsPerItem, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      kernels_.narrow(dtype, dhidden + i * features, 1.0f, element(to, dtype, kept_[begin + i] * features), features);
    }
  });
}

void LinearBlocks::clear_others(void* dhidden, DType dtype) const {
  const int64_t row_bytes = operands_.features * size_of(dtype);
  size_t next = 0;
  for (int64_t row = 0; row < operands_.in.rows; ++row) {
    if (next < kept_.size() && kept_[next] == row) {
      ++next;
    } else {
      std::memset(static_cast<char*>(dhidden) + row * row_bytes, 0, static_cast<size_t>(row_bytes));
    }
  }
}

}  // namespace flagattn::cpu
