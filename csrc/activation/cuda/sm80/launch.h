// What the SwiGLU kernels are told, and the launches that their instances offer; activation.cu picks among them.
#pragma once

#include "activation/cuda/sm80/heuristics.h"
#include "arch/status.h"
#include "arch/stream.h"

namespace flagattn::sm80 {

struct SwigluArguments {
  SwigluParams params;
  SwigluPlan plan;
};

struct SwigluBackwardArguments {
  SwigluBackwardParams params;
  SwigluPlan plan;
};

template <typename T>
Status launch_swiglu(const SwigluArguments& arguments, Stream stream);
template <typename T>
Status launch_swiglu_backward(const SwigluBackwardArguments& arguments, Stream stream);

}  // namespace flagattn::sm80
