// What the columns of one panel see, and how a key tile falls into runs of strips that the same vectors see.
#pragma once

#include <cstdint>

#include "attention/cpu/micro_kernel.h"

namespace flagattn::FLAGATTN_ISA {

// Column c sees keys [begin[c], end[c]), the first far_end[c] of which are far (piecewise). All three grow with the
// column.
struct PanelMask {
  alignas(64) int32_t begin[kPanel];
  alignas(64) int32_t end[kPanel];
  alignas(64) int32_t far_end[kPanel];
};

constexpr int32_t first_column(int v) { return v * F32::kLanes; }
constexpr int32_t last_column(int v) { return v * F32::kLanes + F32::kLanes - 1; }

// Keys [begin, end) of a tile, counted from its start and in whole strips of kMR, seen by vectors
// [first_vector, first_vector + num_vectors) and, as a whole vector, by no other. Every column of them sees all of
// [clear_begin, clear_end).
struct Run {
  int32_t begin, end;
  int32_t clear_begin, clear_end;
  int32_t first_vector, num_vectors;
};

constexpr int32_t strip_floor(int32_t key) { return key / kMR * kMR; }
constexpr int32_t strip_ceil(int32_t key) { return (key + kMR - 1) / kMR * kMR; }
FLAGATTN_INLINE int32_t clamp_to(int32_t x, int32_t low, int32_t high) { return x < low ? low : x > high ? high : x; }

inline constexpr int kMostRuns = 2 * kNV + 1;

// The runs of a tile, in the order of their keys.
struct Runs {
  Run at[kMostRuns];
  int count;

  const Run* begin() const { return at; }
  const Run* end() const { return at + count; }
};

// Calls body.operator()<NV>() for the run's number of vectors.
template <typename Body>
FLAGATTN_INLINE void with_vectors(int num_vectors, Body&& body) {
  static_assert(kNV == 3);
  switch (num_vectors) {
    case 3:
      return body.template operator()<3>();
    case 2:
      return body.template operator()<2>();
    default:
      return body.template operator()<1>();
  }
}

// Cuts the tile of `num_keys` keys from `first_key` on; returns the number of runs, none where no column sees a key.
inline int cut_into_runs(const PanelMask& mask, int32_t first_key, int32_t num_keys, Run (&runs)[kMostRuns]) {
  int32_t begin[kNV], end[kNV];  // of the strips that vector v sees
  for (int v = 0; v < kNV; ++v) {
    const int32_t low = clamp_to(mask.begin[first_column(v)] - first_key, 0, num_keys);
    const int32_t high = clamp_to(mask.end[last_column(v)] - first_key, 0, num_keys);
    begin[v] = low < high ? strip_floor(low) : 0;
    end[v] = low < high ? strip_ceil(high) : 0;
  }
  int num_runs = 0;
  const int32_t stop = strip_ceil(num_keys);
  for (int32_t at = 0; at < stop;) {
    int first = kNV, last = -1;
    int32_t next = stop;
    for (int v = 0; v < kNV; ++v) {
      if (begin[v] <= at && at < end[v]) {
        if (first == kNV) first = v;
        last = v;
      }
      if (begin[v] > at && begin[v] < next) next = begin[v];
      if (end[v] > at && end[v] < next) next = end[v];
    }
    if (last >= 0) {
      Run& run = runs[num_runs++];
      run = {at, next, next, next, first, last - first + 1};
      const int32_t low = mask.begin[last_column(last)] - first_key, high = mask.end[first_column(first)] - first_key;
      const int32_t clear_begin = strip_ceil(clamp_to(low, at, next));
      const int32_t clear_end = strip_floor(clamp_to(high, at, next < num_keys ? next : num_keys));
      if (clear_begin < clear_end) run.clear_begin = clear_begin, run.clear_end = clear_end;
    }
    at = next;
  }
  return num_runs;
}

}  // namespace flagattn::FLAGATTN_ISA
