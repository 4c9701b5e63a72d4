// Asynchronous copies of boxes of a tensor by one thread (sm_90): out-of-bounds elements are filled when loaded and
// left out when stored. Coordinates are in elements, dimension 0 first; shared addresses are multiples of 128, of 1024
// for swizzled boxes. Loads report the bytes of the whole box to an mbarrier; stores and reductions belong to the
// groups of bulk_copy.cuh.
#pragma once

#include "arch/ptx/bulk_copy.cuh"
#include "arch/tensor_map.h"

#if FLAGATTN_ON_GPU
#include <cuda.h>
#include <cuda_runtime_api.h>
#endif

namespace flagattn::ptx {

// Makes the map that kernels hand to the copies (cuTensorMapEncodeTiled).
inline Status encode_tensor_map(TensorMap& map, const TensorShape& shape) {
  const Status status = check_tensor_shape(shape);
  if (!status.ok()) return status;
#if FLAGATTN_ON_GPU
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  if (encode == nullptr) return Status::error("the driver has no cuTensorMapEncodeTiled");
  static constexpr CUtensorMapDataType kTypes[] = {CU_TENSOR_MAP_DATA_TYPE_UINT8,    CU_TENSOR_MAP_DATA_TYPE_INT32,
                                                   CU_TENSOR_MAP_DATA_TYPE_UINT32,   CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                                                   CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_DATA_TYPE_FLOAT32};
  cuuint64_t sizes[kMostTensorDims], strides[kMostTensorDims - 1];
  cuuint32_t box[kMostTensorDims], steps[kMostTensorDims];
  for (int i = 0; i < shape.rank; ++i) {
    sizes[i] = static_cast<cuuint64_t>(shape.sizes[i]);
    box[i] = static_cast<cuuint32_t>(shape.box[i]);
    steps[i] = 1;
    if (i + 1 < shape.rank) strides[i] = static_cast<cuuint64_t>(shape.strides[i]);
  }
  static_assert(sizeof(CUtensorMap) == sizeof(TensorMap));
  const CUresult result =
      encode(reinterpret_cast<CUtensorMap*>(&map), kTypes[static_cast<int>(shape.type)],
             static_cast<cuuint32_t>(shape.rank), shape.data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             static_cast<CUtensorMapSwizzle>(shape.swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             shape.fill == OutsideFill::kNaN ? CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA
                                             : CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) return Status::error("the driver refuses the tensor map");
#else
  host_exec::encode_tensor_map(map, shape);
#endif
  return Status::success();
}

// Fetches the map ahead of the first copy (prefetch.tensormap).
FLAGATTN_DEVICE void prefetch_tensor_map(const TensorMap& map) {
#if FLAGATTN_ON_GPU
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#else
  static_cast<void>(map);
#endif
}

// Copies the box at `coordinates` to shared memory; `barrier`, which must expect it, gets the bytes
// (cp.async.bulk.tensor).
template <int kRank>
FLAGATTN_DEVICE void tensor_load(SharedAddress destination, const TensorMap& map, const int32_t (&coordinates)[kRank],
                                 SharedAddress barrier) {
  static_assert(kRank >= 1 && kRank <= kMostTensorDims);
#if FLAGATTN_ON_GPU
  const int32_t* c = coordinates;
  if constexpr (kRank == 1) {
    asm volatile(
        "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3}], [%2];" ::"r"(
            destination),
        "l"(&map), "r"(barrier), "r"(c[0])
        : "memory");
  } else if constexpr (kRank == 2) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            destination),
        "l"(&map), "r"(barrier), "r"(c[0]), "r"(c[1])
        : "memory");
  } else if constexpr (kRank == 3) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
            "r"(destination),
        "l"(&map), "r"(barrier), "r"(c[0]), "r"(c[1]), "r"(c[2])
        : "memory");
  } else if constexpr (kRank == 4) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
        "[%2];" ::"r"(destination),
        "l"(&map), "r"(barrier), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3])
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], "
        "[%2];" ::"r"(destination),
        "l"(&map), "r"(barrier), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4])
        : "memory");
  }
#else
  host_exec::tensor_load(destination, map, coordinates, kRank, barrier);
#endif
}

// Copies a box in shared memory to `coordinates` (cp.async.bulk.tensor.bulk_group).
template <int kRank>
FLAGATTN_DEVICE void tensor_store(const TensorMap& map, SharedAddress source, const int32_t (&coordinates)[kRank]) {
  static_assert(kRank >= 1 && kRank <= kMostTensorDims);
#if FLAGATTN_ON_GPU
  const int32_t* c = coordinates;
  if constexpr (kRank == 1) {
    asm volatile("cp.async.bulk.tensor.1d.global.shared::cta.bulk_group [%0, {%2}], [%1];" ::"l"(&map), "r"(source),
                 "r"(c[0])
                 : "memory");
  } else if constexpr (kRank == 2) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map), "r"(source),
                 "r"(c[0]), "r"(c[1])
                 : "memory");
  } else if constexpr (kRank == 3) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
                 "r"(source), "r"(c[0]), "r"(c[1]), "r"(c[2])
                 : "memory");
  } else if constexpr (kRank == 4) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
                 "r"(source), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3])
                 : "memory");
  } else {
    asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(&map),
                 "r"(source), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4])
                 : "memory");
  }
#else
  host_exec::tensor_store(map, source, coordinates, kRank, host_exec::Reduction::kNone);
#endif
}

// Adds a box in shared memory to the elements at `coordinates`, each addition atomic (cp.reduce.async.bulk.tensor.add).
template <int kRank>
FLAGATTN_DEVICE void tensor_reduce_add(const TensorMap& map, SharedAddress source,
                                       const int32_t (&coordinates)[kRank]) {
  static_assert(kRank >= 1 && kRank <= kMostTensorDims);
#if FLAGATTN_ON_GPU
  const int32_t* c = coordinates;
  if constexpr (kRank == 1) {
    asm volatile("cp.reduce.async.bulk.tensor.1d.global.shared::cta.add.tile.bulk_group [%0, {%2}], [%1];" ::"l"(&map),
                 "r"(source), "r"(c[0])
                 : "memory");
  } else if constexpr (kRank == 2) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
        "r"(source), "r"(c[0]), "r"(c[1])
        : "memory");
  } else if constexpr (kRank == 3) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
        "r"(source), "r"(c[0]), "r"(c[1]), "r"(c[2])
        : "memory");
  } else if constexpr (kRank == 4) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
            &map),
        "r"(source), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3])
        : "memory");
  } else {
    asm volatile(
        "cp.reduce.async.bulk.tensor.5d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(
            &map),
        "r"(source), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4])
        : "memory");
  }
#else
  host_exec::tensor_store(map, source, coordinates, kRank, host_exec::Reduction::kAdd);
#endif
}

// The same for the smaller of the two (cp.reduce.async.bulk.tensor.min).
template <int kRank>
FLAGATTN_DEVICE void tensor_reduce_min(const TensorMap& map, SharedAddress source,
                                       const int32_t (&coordinates)[kRank]) {
  static_assert(kRank >= 1 && kRank <= kMostTensorDims);
#if FLAGATTN_ON_GPU
  const int32_t* c = coordinates;
  if constexpr (kRank == 1) {
    asm volatile("cp.reduce.async.bulk.tensor.1d.global.shared::cta.min.tile.bulk_group [%0, {%2}], [%1];" ::"l"(&map),
                 "r"(source), "r"(c[0])
                 : "memory");
  } else if constexpr (kRank == 2) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.min.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
        "r"(source), "r"(c[0]), "r"(c[1])
        : "memory");
  } else if constexpr (kRank == 3) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.3d.global.shared::cta.min.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
        "r"(source), "r"(c[0]), "r"(c[1]), "r"(c[2])
        : "memory");
  } else if constexpr (kRank == 4) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.4d.global.shared::cta.min.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
            &map),
        "r"(source), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3])
        : "memory");
  } else {
    asm volatile(
        "cp.reduce.async.bulk.tensor.5d.global.shared::cta.min.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(
            &map),
        "r"(source), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4])
        : "memory");
  }
#else
  host_exec::tensor_store(map, source, coordinates, kRank, host_exec::Reduction::kMin);
#endif
}

// The same for the larger of the two (cp.reduce.async.bulk.tensor.max).
template <int kRank>
FLAGATTN_DEVICE void tensor_reduce_max(const TensorMap& map, SharedAddress source,
                                       const int32_t (&coordinates)[kRank]) {
  static_assert(kRank >= 1 && kRank <= kMostTensorDims);
#if FLAGATTN_ON_GPU
  const int32_t* c = coordinates;
  if constexpr (kRank == 1) {
    asm volatile("cp.reduce.async.bulk.tensor.1d.global.shared::cta.max.tile.bulk_group [%0, {%2}], [%1];" ::"l"(&map),
                 "r"(source), "r"(c[0])
                 : "memory");
  } else if constexpr (kRank == 2) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.max.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
        "r"(source), "r"(c[0]), "r"(c[1])
        : "memory");
  } else if constexpr (kRank == 3) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.3d.global.shared::cta.max.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
        "r"(source), "r"(c[0]), "r"(c[1]), "r"(c[2])
        : "memory");
  } else if constexpr (kRank == 4) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.4d.global.shared::cta.max.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
            &map),
        "r"(source), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3])
        : "memory");
  } else {
    asm volatile(
        "cp.reduce.async.bulk.tensor.5d.global.shared::cta.max.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(
            &map),
        "r"(source), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4])
        : "memory");
  }
#else
  host_exec::tensor_store(map, source, coordinates, kRank, host_exec::Reduction::kMax);
#endif
}

}  // namespace flagattn::ptx
