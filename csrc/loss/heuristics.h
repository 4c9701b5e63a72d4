// How linear cross-entropy cuts its logits. Pure functions of the shape: the number of threads changes no bits.
//
// A block of rows x classes is what is held in memory at a time. Either its rows are whole, so that their softmax is
// known and gradients can be taken at once, or it is a group of classes of all rows.
#pragma once

#include <algorithm>
#include <cstdint>

namespace flagattn {

struct LinearLossPlan {
  int64_t block_rows;
  int64_t block_classes;
  int64_t tile_rows;      // one product for logits makes tile_rows x tile_classes of a block,
  int64_t tile_classes;   // one for the weight's gradient tile_classes x features,
  int64_t tile_features;  // one for the hidden states' gradient tile_rows x tile_features,
  int64_t class_parts;    // over one of this many ranges of a block's classes, whose results are added in order
};

constexpr int64_t kLossTileRows = 512;
constexpr int64_t kLossTileClasses = 1024;  // at most, in steps of
constexpr int64_t kLossTileStep = 256;      // classes, whose logits are summed up together, however they are cut
constexpr int64_t kLossTileFeatures = 512;

constexpr int64_t round_up_to(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Whole rows. Products over few rows read and write the weight and its gradient for little work, so rows are never
// fewer than 512, which keep a block of 100 000 classes below an eighth of eager's memory; where there are fewer
// classes a block takes more rows for the same memory.
constexpr LinearLossPlan plan_whole_rows(int64_t rows, int64_t classes) {
  constexpr int64_t kElements = int64_t{1} << 25, kFewest = 512, kMost = 2048;
  const int64_t block_rows = std::clamp(kElements / std::max<int64_t>(1, classes) / 64 * 64, kFewest, kMost);
  // At least 16 tiles for the threads, unless they would get too narrow.
  const int64_t tile_classes =
      std::min(round_up_to(std::max<int64_t>(1, (classes + 15) / 16), kLossTileStep), kLossTileClasses);
  const int64_t tiles = (classes + tile_classes - 1) / tile_classes;
  return {std::min(block_rows, std::max<int64_t>(1, rows)),
          std::max<int64_t>(1, classes),
          kLossTileRows,
          tile_classes,
          kLossTileFeatures,
          std::clamp<int64_t>(tiles, 1, 8)};
}

// Groups of classes of all rows: what the loss alone and gradients in 16 bit take. The block's logits and, where the
// weight is not fp32, its rows in fp32 are kept within 32 and 16 MiB.
constexpr LinearLossPlan plan_class_groups(int64_t rows, int64_t features) {
  constexpr int64_t kLogits = int64_t{1} << 23, kWeights = int64_t{1} << 22, kTile = kLossTileStep;
  const int64_t classes =
      std::min(kLogits / std::max<int64_t>(1, rows), kWeights / std::max<int64_t>(1, features)) / kTile * kTile;
  return {std::max<int64_t>(1, rows),
          std::clamp<int64_t>(classes, kTile, 4096),
          kLossTileRows,
          kTile,
          kLossTileFeatures,
          1};
}

}  // namespace flagattn
