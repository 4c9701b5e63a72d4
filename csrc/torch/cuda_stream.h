// torch's current CUDA stream, found at run time.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <stdexcept>

#include "arch/stream.h"

namespace flagattn {

// Stream::nativeHandle needs torch 2.13, so this asks the older C function in libtorch_cuda. Linking to it would make
// the library depend on torch with CUDA at load time, and torch loads libtorch_cuda with local scope, where a plain
// dlsym would not see it: hence the look-up in the copy that is already there.
inline Stream current_cuda_stream(int32_t device_index) {
  using GetStream = AOTITorchError (*)(int32_t, void**);
  static const GetStream get_stream = []() -> GetStream {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    if (library == nullptr) return nullptr;
    return reinterpret_cast<GetStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  if (get_stream == nullptr) {
    throw std::runtime_error("flagattn: the running torch has no CUDA, so there is no CUDA stream to launch on.");
  }
  Stream stream;
  STABLE_TORCH_ERROR_CODE_CHECK(get_stream(device_index, &stream.handle));
  return stream;
}

}  // namespace flagattn
