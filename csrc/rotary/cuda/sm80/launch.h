// What the rotary kernels are told, and the launch that their instances offer; rotary.cu picks among them.
#pragma once

#include "arch/status.h"
#include "arch/stream.h"
#include "rotary/cuda/sm80/heuristics.h"

namespace flagattn::sm80 {

struct RotaryArguments {
  RotaryParams params;
  RotaryPlan plan;
};

template <typename T>
Status launch_rotary(const RotaryArguments& arguments, Stream stream);

}  // namespace flagattn::sm80
