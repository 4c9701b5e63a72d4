// Checks what the SwiGLU kernels can do, plans, and picks the kernel.
#include "activation/cuda/sm80/activation.h"

#include <initializer_list>
#include <string>

#include "activation/cuda/sm80/element_kernels.cuh"
#include "arch/ptx/launch.cuh"

namespace flagattn::sm80 {

template <>
Status launch_swiglu<float>(const SwigluArguments&, Stream);
template <>
Status launch_swiglu<BFloat16>(const SwigluArguments&, Stream);
template <>
Status launch_swiglu<Float16>(const SwigluArguments&, Stream);
template <>
Status launch_swiglu_backward<float>(const SwigluBackwardArguments&, Stream);
template <>
Status launch_swiglu_backward<BFloat16>(const SwigluBackwardArguments&, Stream);
template <>
Status launch_swiglu_backward<Float16>(const SwigluBackwardArguments&, Stream);

namespace {

struct Choice {
  bool by_vector;
  SwigluPlan plan;
};

template <typename Params>
Choice choose(const Params& p, std::initializer_list<const StridedRows*> operands,
              std::initializer_list<const void*> results) {
  bool by_vector = true;
  for (const StridedRows* view : operands) by_vector = by_vector && cuda::takes_vectors(*view, p.cols, p.dtype);
  for (const void* result : results) by_vector = by_vector && cuda::is_aligned(result);
  const int64_t pieces = by_vector ? cuda::vectors_of(p.cols, p.dtype) : p.cols;
  return {by_vector, {pieces == 0 ? 0 : p.rows, static_cast<int>(pieces == 0 ? 1 : pieces)}};
}

Status check_columns(int64_t cols) {
  if (cols <= cuda::kMostColumns) return Status::success();
  return Status::error("gate has " + std::to_string(cols) + " columns; swiglu on CUDA supports at most 2^30");
}

}  // namespace

Status run_swiglu(const SwigluParams& p, Stream stream) {
  if (Status status = check_columns(p.cols); !status.ok()) return status;
  const Choice choice = choose(p, {&p.gate, &p.up}, {p.y});
  const SwigluArguments arguments{p, choice.plan};
  if (choice.by_vector) return dispatch(p.dtype, [&]<typename T>(T) { return launch_swiglu<T>(arguments, stream); });
  return ptx::launch<ptx::NoShared>(swiglu_element_kernel, choice.plan.blocks(), kSwigluThreads, stream, arguments);
}

Status run_swiglu_backward(const SwigluBackwardParams& p, Stream stream) {
  if (Status status = check_columns(p.cols); !status.ok()) return status;
  const Choice choice = choose(p, {&p.dy, &p.gate, &p.up}, {p.dgate, p.dup});
  const SwigluBackwardArguments arguments{p, choice.plan};
  if (choice.by_vector) {
    return dispatch(p.dtype, [&]<typename T>(T) { return launch_swiglu_backward<T>(arguments, stream); });
  }
  return ptx::launch<ptx::NoShared>(swiglu_backward_element_kernel, choice.plan.blocks(), kSwigluThreads, stream,
                                    arguments);
}

}  // namespace flagattn::sm80
