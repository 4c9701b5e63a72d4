// The one way to start a kernel.
#pragma once

#include <cstdint>
#include <string>

#include "arch/ptx/language.cuh"
#include "arch/status.h"
#include "arch/stream.h"

#if FLAGATTN_ON_GPU
#include <cuda_runtime_api.h>
#endif

namespace flagattn::ptx {

// Of kernels that share no memory.
struct NoShared {};

// What the current GPU gives a block of shared memory; 0 where CUDA does not say.
inline int most_shared_bytes() {
#if FLAGATTN_ON_GPU
  int device = 0, most = 0;
  const bool said = cudaGetDevice(&device) == cudaSuccess &&
                    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess;
  return said ? most : 0;
#else
  return host_exec::most_shared_bytes();
#endif
}

#if FLAGATTN_ON_GPU
// Why CUDA refused a launch: first of all, whether the GPU gives a block the shared memory that the kernel takes.
inline std::string refusal(cudaError_t error, int shared_bytes) {
  int device, major, minor;
  const int most = most_shared_bytes();
  const auto ask = [&device](int& value, cudaDeviceAttr attribute) {
    return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
  };
  if (most > 0 && shared_bytes > most && cudaGetDevice(&device) == cudaSuccess &&
      ask(major, cudaDevAttrComputeCapabilityMajor) && ask(minor, cudaDevAttrComputeCapabilityMinor)) {
    return "a block of this kernel takes " + std::to_string((shared_bytes + 1023) / 1024) +
           " KiB of shared memory, but a GPU of compute capability " + std::to_string(major) + "." +
           std::to_string(minor) + " gives at most " + std::to_string(most / 1024) +
           " KiB; those of 8.0, 8.7, 9.0 and 10.0 give 163 or more";
  }
  return std::string("CUDA refused the launch: ") + cudaGetErrorString(error);
}
#endif

// Enqueues `blocks` blocks of `threads` threads, each with a SharedStorage, that run kernel(argument). Launching no
// block is allowed and does nothing. On the host the kernel has run when this returns.
template <typename SharedStorage, typename Argument>
Status launch(void (*kernel)(const Argument), int64_t blocks, int threads, Stream stream, const Argument& argument) {
  static_assert(sizeof(Argument) <= 4096);
  constexpr int kSharedBytes = sizeof(SharedStorage);
  if (blocks > INT32_MAX) {
    return Status::error("the launch asks for " + std::to_string(blocks) + " blocks; a grid holds at most 2147483647");
  }
  if (blocks <= 0) return Status::success();
#if FLAGATTN_ON_GPU
  cudaError_t error = cudaSuccess;
  if (kSharedBytes > 48 * 1024) {
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 kSharedBytes);
  }
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = kSharedBytes;
    config.stream = static_cast<cudaStream_t>(stream.handle);
    void* arguments[] = {const_cast<Argument*>(&argument)};
    error = cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments);
  }
  if (error == cudaSuccess) return Status::success();
  const std::string why = refusal(error, kSharedBytes);
  static_cast<void>(cudaGetLastError());  // told here: it must not be taken for the next call's
  return Status::error(why);
#else
  static_cast<void>(stream);
  struct Call {
    void (*kernel)(const Argument);
    const Argument& argument;
  } call{kernel, argument};
  return host_exec::launch(
      {static_cast<int>(blocks), threads, kSharedBytes, host_exec::type_name<Argument>()},
      [](const void* opaque) {
        const auto& self = *static_cast<const Call*>(opaque);
        self.kernel(self.argument);
      },
      &call);
#endif
}

}  // namespace flagattn::ptx
