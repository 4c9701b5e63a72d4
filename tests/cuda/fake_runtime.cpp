// Stands in for the CUDA runtime where there is no GPU, as far as launches.cu needs: launches run nothing, what an H100
// would refuse fails, and the last error stays until cudaGetLastError takes it, as the manual says.
#include <cuda_runtime_api.h>

namespace {

cudaError_t last_error = cudaSuccess;

cudaError_t ended_with(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

bool is_possible(size_t threads, size_t shared_bytes) { return threads <= 1024 && shared_bytes <= (227u << 10); }

}  // namespace

extern "C" {

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid argument"; }
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor   ? 9
           : attribute == cudaDevAttrComputeCapabilityMinor ? 0
                                                            : 227 << 10;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  return ended_with(is_possible(1, static_cast<size_t>(value)) ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void**) {
  const bool possible = is_possible(config->blockDim.x, config->dynamicSmemBytes);
  return ended_with(possible ? cudaSuccess : cudaErrorInvalidConfiguration);
}
cudaError_t cudaLaunchKernel(const void*, dim3, dim3 block, void**, size_t shared_bytes, cudaStream_t) {
  return ended_with(is_possible(block.x, shared_bytes) ? cudaSuccess : cudaErrorInvalidConfiguration);
}

// What nvcc's host code calls for kernels and for <<<>>>.
namespace {
dim3 pushed_block;
size_t pushed_bytes;
}  // namespace
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, uint3*, uint3*, dim3*, dim3*, int*) {}
unsigned __cudaPushCallConfiguration(dim3, dim3 block, size_t shared_bytes, cudaStream_t) {
  pushed_block = block;
  pushed_bytes = shared_bytes;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void*) {
  *grid = dim3(1);
  *block = pushed_block;
  *shared_bytes = pushed_bytes;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void*) {
  *kernel = nullptr;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3 block, void**, size_t shared_bytes, cudaStream_t) {
  return ended_with(is_possible(block.x, shared_bytes) ? cudaSuccess : cudaErrorInvalidConfiguration);
}
}
