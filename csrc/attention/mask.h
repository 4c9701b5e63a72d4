// Which keys a query row sees, and what that means for tiles: whole tiles are skipped or unmasked, and only edge tiles
// pay for mask arithmetic. Pure functions of shapes, shared by every device and brute-force tested.
#pragma once

#include <cstdint>

#include "arch/host_device.h"
#include "attention/params.h"

namespace flagattn {

// Keys [begin, end); empty where end <= begin.
struct KeyRange {
  int64_t begin;
  int64_t end;

  FLAGATTN_HOST_DEVICE constexpr bool empty() const { return end <= begin; }
};

FLAGATTN_HOST_DEVICE constexpr KeyRange intersection(const KeyRange& a, const KeyRange& b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

// The lengths of one sequence and its mask. Row i is aligned with key i + seqlen_k - seqlen_q (bottom-right).
struct MaskShape {
  int64_t seqlen_q;
  int64_t seqlen_k;
  MaskParams mask;

  // The keys row `row` sees: one interval for every mask we have.
  FLAGATTN_HOST_DEVICE constexpr KeyRange keys_of_row(int64_t row) const {
    const int64_t aligned = row + seqlen_k - seqlen_q;
    // Compared before they are added: a window may be as large as an int64.
    const bool open_left = mask.window_left == MaskParams::kUnbounded || mask.window_left >= aligned;
    const bool open_right = mask.window_right == MaskParams::kUnbounded || mask.window_right >= seqlen_k - 1 - aligned;
    const int64_t end = open_right ? seqlen_k : aligned + mask.window_right + 1;
    return {open_left ? 0 : aligned - mask.window_left, end < 0 ? 0 : end};
  }

  // The keys that some row of [first, last] sees, without gaps: both ends of a row's interval grow with the row.
  FLAGATTN_HOST_DEVICE constexpr KeyRange keys_of_any_row(int64_t first, int64_t last) const {
    return {keys_of_row(first).begin, keys_of_row(last).end};
  }

  // The keys that every row of [first, last] sees: tiles inside need no mask.
  FLAGATTN_HOST_DEVICE constexpr KeyRange keys_of_every_row(int64_t first, int64_t last) const {
    return {keys_of_row(last).begin, keys_of_row(first).end};
  }

  // The same for single elements: row i sees key j iff j - i lies in [begin, end). Open sides lie beyond every element,
  // so that both ends fit into 32 bits where the lengths do.
  FLAGATTN_HOST_DEVICE constexpr KeyRange diagonals() const {
    const int64_t aligned = seqlen_k - seqlen_q;
    const bool open_left = mask.window_left == MaskParams::kUnbounded || mask.window_left >= seqlen_k;
    const bool open_right = mask.window_right == MaskParams::kUnbounded || mask.window_right >= seqlen_q;
    return {open_left ? -seqlen_q : aligned - mask.window_left,
            open_right ? seqlen_k : aligned + mask.window_right + 1};
  }

  // Piecewise attention: row `row` scores keys [0, far_end) with (q2, k2) and the others with (q, k). Grows with the
  // row.
  FLAGATTN_HOST_DEVICE constexpr int64_t far_end(int64_t row, int64_t dist_threshold) const {
    const int64_t aligned = row + seqlen_k - seqlen_q;
    if (dist_threshold > aligned) return 0;
    if (dist_threshold <= aligned - (seqlen_k - 1)) return seqlen_k;
    return aligned - dist_threshold + 1;
  }
};

// The keys that one product scores: all that the mask leaves, or, piecewise, the near ones (q, k) or the far ones
// (q2, k2). Each is one interval per row again, whose ends grow with the row.
enum class KeyPart { kAll, kNear, kFar };

struct PartShape {
  MaskShape shape;
  KeyPart part = KeyPart::kAll;
  int64_t dist_threshold = 0;

  FLAGATTN_HOST_DEVICE constexpr KeyRange keys_of_any_row(int64_t first, int64_t last) const {
    return cut(shape.keys_of_any_row(first, last), first, last);
  }
  FLAGATTN_HOST_DEVICE constexpr KeyRange keys_of_every_row(int64_t first, int64_t last) const {
    return cut(shape.keys_of_every_row(first, last), last, first);
  }

  // As MaskShape::diagonals().
  FLAGATTN_HOST_DEVICE constexpr KeyRange diagonals() const {
    const KeyRange all = shape.diagonals();
    if (part == KeyPart::kAll) return all;
    const int64_t aligned = shape.seqlen_k - shape.seqlen_q;
    // Compared before they are subtracted: a threshold may be any number.
    const int64_t border = dist_threshold > aligned + shape.seqlen_q        ? -shape.seqlen_q
                           : dist_threshold <= aligned + 1 - shape.seqlen_k ? shape.seqlen_k
                                                                            : aligned - dist_threshold + 1;
    return part == KeyPart::kNear ? intersection(all, {border, all.end}) : intersection(all, {all.begin, border});
  }

 private:
  // Rows whose far keys end first and last among those that count for an interval's begin and for its end.
  FLAGATTN_HOST_DEVICE constexpr KeyRange cut(const KeyRange& keys, int64_t row_of_begin, int64_t row_of_end) const {
    if (part == KeyPart::kNear) {
      return intersection(keys, {shape.far_end(row_of_begin, dist_threshold), shape.seqlen_k});
    }
    if (part == KeyPart::kFar) return intersection(keys, {0, shape.far_end(row_of_end, dist_threshold)});
    return keys;
  }
};

}  // namespace flagattn
