// How the SwiGLU kernels deal their elements. Pure functions of shapes.
#pragma once

#include "activation/params.h"
#include "arch/cuda/row_plan.h"

namespace flagattn::sm80 {

constexpr int kSwigluThreads = 256;
constexpr int kSwigluVectors = 2;  // of a thread: with three operands six loads are under way

// A block takes neighbouring pieces: vectors, or elements where vectors do not fit. `pieces` are those of a row.
struct SwigluPlan {
  int64_t rows;
  int pieces;

  constexpr int64_t blocks() const {
    constexpr int64_t kPerBlock = int64_t{kSwigluThreads} * kSwigluVectors;
    return (rows * pieces + kPerBlock - 1) / kPerBlock;
  }
};

}  // namespace flagattn::sm80
