// One name for "callable on both sides": nothing where there is no CUDA compiler.
#pragma once

#if defined(__CUDACC__)
#define FLAGATTN_HOST_DEVICE __host__ __device__
#else
#define FLAGATTN_HOST_DEVICE
#endif
