// The same checks on a GPU: prints "NAME: right" or "NAME: wrong" for each that the GPU has instructions for, and exits
// with 1 if one is wrong, with 2 if there is no GPU. Built by tests/cuda/programs.py; run by
// tests/cuda/test_instructions.py and, before anything else, by bench/gpu_session.sh. `instructions NAME` runs one
// check.
#include <cuda_runtime_api.h>

#include "tests/host_exec/instructions/checks.cuh"

int main(int argc, char** argv) {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
    std::printf("no GPU\n");
    return 2;
  }
  bool right = true;
  for (const auto& check : flagattn::instructions::all_checks(properties.major * 10)) {
    if (argc > 1 && std::string(argv[1]) != check.name) continue;
    std::fflush(stdout);  // a check that hangs is the one behind the last line
    const bool passed = check.body();
    std::printf("%s: %s\n", check.name, passed ? "right" : "wrong");
    right = right && passed;
  }
  return right ? 0 : 1;
}
