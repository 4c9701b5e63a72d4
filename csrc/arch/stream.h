// The stream a CUDA launcher enqueues its work on; a cudaStream_t without the CUDA headers.
#pragma once

namespace flagattn {

struct Stream {
  void* handle = nullptr;  // null is the device's default stream
};

}  // namespace flagattn
