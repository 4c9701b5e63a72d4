// What few_rows_isa.cpp offers at each ISA level: some columns of a map of few rows, so that threading stays in
// few_rows.cpp.
#pragma once

#include "linear/params.h"

namespace flagattn {

// Columns whose weights are read side by side: work is cut at multiples of it.
constexpr int64_t kFewRowsCols = 4;

// fp32 scratch of a thread: the rows, each to a multiple of the widest step.
constexpr int64_t few_rows_stride(int64_t depth) { return (depth + 31) / 32 * 32; }

struct FewRowsKernels {
  // The rows in fp32, in the order in which the columns are multiplied with them.
  void (*pack)(const FewRowsParams& params, float* rows);
  // Columns [begin, end) of a map.
  void (*columns)(const FewRowsParams& params, const FewRowsParams::Map& map, int64_t begin, int64_t end,
                  const float* rows);
};

namespace scalar {
extern const FewRowsKernels few_rows_kernels;
}
namespace avx2 {
extern const FewRowsKernels few_rows_kernels;
}
namespace avx512 {
extern const FewRowsKernels few_rows_kernels;
}

}  // namespace flagattn
