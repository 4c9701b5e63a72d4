// Kernels of a few lines, one for each instruction that csrc/arch/ptx wraps, with what they must give. The same source
// runs on the CPU (instructions.cpp, under every schedule and sanitizer) and is compiled by nvcc (instructions.cu),
// whose program asks a GPU the same questions.
#pragma once

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "arch/planted_fault.h"
#include "arch/ptx/launch.cuh"
#include "arch/ptx/shared_memory.cuh"

namespace flagattn::instructions {

// Memory that kernels read and write: `data` here; on a GPU a copy that device() fills and fetch() brings back.
template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t count, T value = {}) : data(count, value) {}
#if FLAGATTN_ON_GPU
  ~Buffer() { cudaFree(copy_); }
  T* device() {
    if (copy_ == nullptr) cudaMalloc(&copy_, bytes());
    cudaMemcpy(copy_, data.data(), bytes(), cudaMemcpyHostToDevice);
    return copy_;
  }
  void fetch() { cudaMemcpy(data.data(), copy_, bytes(), cudaMemcpyDeviceToHost); }
#else
  ~Buffer() = default;
  T* device() { return data.data(); }
  void fetch() {}
#endif
  Buffer(const Buffer&) = delete;

  std::vector<T> data;

 private:
  size_t bytes() const { return data.size() * sizeof(T); }
#if FLAGATTN_ON_GPU
  T* copy_ = nullptr;
#endif
};

struct Shared {
  alignas(1024) uint32_t words[8192];
};

// Runs the kernel to its end; prints why if it does not come there.
template <typename SharedStorage = Shared, typename Argument>
bool run(void (*kernel)(const Argument), int blocks, int threads, const Argument& argument) {
  std::string error = ptx::launch<SharedStorage>(kernel, blocks, threads, {}, argument).message;
#if FLAGATTN_ON_GPU
  const cudaError_t result = cudaDeviceSynchronize();
  if (error.empty() && result != cudaSuccess) error = cudaGetErrorString(result);
#endif
  if (!error.empty()) std::printf("%s\n", error.c_str());
  return error.empty();
}

// Compares got[i] with expected(i).
template <typename T, typename Expected>
bool equal(const char* what, const std::vector<T>& got, const Expected& expected) {
  for (size_t i = 0; i < got.size(); ++i) {
    const T right = static_cast<T>(expected(static_cast<int>(i)));
    if (got[i] == right) continue;
    std::printf("%s: element %zu is %g, not %g\n", what, i, static_cast<double>(got[i]), static_cast<double>(right));
    return false;
  }
  return true;
}

struct Check {
  const char* name;
  bool (*body)();
};

}  // namespace flagattn::instructions
