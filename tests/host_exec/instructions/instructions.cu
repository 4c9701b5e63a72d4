// The same checks on a GPU: prints "NAME: right" or "NAME: wrong" for each that the GPU has instructions for, and exits
// with 1 if one is wrong. Compiled by tests/cuda/test_instructions.py; bench/gpu_session.sh may run what it compiles.
#include <cuda_runtime_api.h>

#include "tests/host_exec/instructions/checks.cuh"

int main() {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
    std::printf("no GPU\n");
    return 2;
  }
  bool right = true;
  for (const auto& check : flagattn::instructions::all_checks(properties.major * 10)) {
    const bool passed = check.body();
    std::printf("%s: %s\n", check.name, passed ? "right" : "wrong");
    right = right && passed;
  }
  return right ? 0 : 1;
}
