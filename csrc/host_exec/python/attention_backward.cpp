// The attention backward of `_host_exec`.
#include "host_exec/python/attention_backward.h"

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>

#include "attention/cuda/sm80/backward.h"
#include "attention/cuda/sm80/backward_bias_kernel.cuh"
#include "attention/cuda/sm80/backward_block.cuh"

namespace py = pybind11;

namespace flagattn {
namespace {

template <int kHeadDim, bool kTerms = false, bool kSmall = false>
size_t shared_bytes() {
  constexpr sm80::BackwardTile kTile = sm80::BackwardKernel{kHeadDim, kTerms, kSmall}.tile();
  return sizeof(sm80::BackwardStorage<sm80::BackwardTraits<BFloat16, kHeadDim, kTerms, kTile>>);
}

size_t shared_bytes(const sm80::BackwardKernel& kernel) {
  const bool terms = kernel.has_terms;
  if (kernel.is_small)
    return kernel.head_dim == 128 ? shared_bytes<128, true, true>() : shared_bytes<256, true, true>();
  switch (kernel.head_dim) {
    case 64:
      return terms ? shared_bytes<64, true>() : shared_bytes<64>();
    case 96:
      return shared_bytes<96>();
    case 128:
      return terms ? shared_bytes<128, true>() : shared_bytes<128>();
    case 192:
      return shared_bytes<192>();
    default:
      return terms ? shared_bytes<256, true>() : shared_bytes<256>();
  }
}

template <typename Pointer>
uintptr_t address_of(Pointer pointer) {
  return reinterpret_cast<uintptr_t>(pointer);
}

}  // namespace

void bind_attention_backward(py::module_& m) {
  py::class_<AttentionBackwardParams>(m, "AttentionBackwardParams")
      .def(py::init<>())
      .def_readwrite("forward", &AttentionBackwardParams::forward)
      .def_readwrite("dout", &AttentionBackwardParams::dout)
      .def_readwrite("dlse", &AttentionBackwardParams::dlse)
      .def_readwrite("dq", &AttentionBackwardParams::dq)
      .def_readwrite("dk", &AttentionBackwardParams::dk)
      .def_readwrite("dv", &AttentionBackwardParams::dv)
      .def_readwrite("dq2", &AttentionBackwardParams::dq2)
      .def_readwrite("dk2", &AttentionBackwardParams::dk2)
      .def_readwrite("dbias", &AttentionBackwardParams::dbias)
      .def_readwrite("dsink_shares", &AttentionBackwardParams::dsink_shares)
      .def_property(
          "dsinks", [](const AttentionBackwardParams& p) { return address_of(p.dsinks); },
          [](AttentionBackwardParams& p, uintptr_t address) { p.dsinks = reinterpret_cast<float*>(address); })
      .def_property(
          "workspace", [](const AttentionBackwardParams& p) { return address_of(p.workspace); },
          [](AttentionBackwardParams& p, uintptr_t address) { p.workspace = reinterpret_cast<float*>(address); });
  m.def("attention_backward_sm80_workspace", &sm80::attention_backward_workspace);
  m.def(
      "attention_backward_sm80",
      [](const AttentionBackwardParams& params) {
        const Status status = sm80::run_attention_backward(params, {});
        if (!status.ok()) throw std::runtime_error(status.message);
      },
      py::call_guard<py::gil_scoped_release>());
  // The kernel for a GPU that gives a block `most` bytes: (width, score terms, query rows, keys, shared bytes).
  m.def("attention_backward_sm80_kernel", [](const AttentionParams& params, int64_t most) {
    const sm80::BackwardKernel kernel = sm80::backward_kernel(params, most);
    const sm80::BackwardTile tile = kernel.tile();
    return py::make_tuple(kernel.head_dim, kernel.has_terms, tile.block_m, tile.block_n, shared_bytes(kernel));
  });
  m.def("attention_backward_sm80_shared_bytes",
        [](int head_dim, bool terms, bool small) { return shared_bytes({head_dim, terms, small}); });
  m.def("attention_backward_sm80_group_parts", [](int heads_q, int heads_k, int seqlen_k, int block_n) {
    AttentionParams params;
    params.heads_q = heads_q, params.heads_k = heads_k, params.seqlen_k = seqlen_k;
    return sm80::backward_group_parts(params, block_n);
  });
  m.def("attention_bias_gradient_sm80_shared_bytes", [](int head_dim, bool small) {
    if (small) return sizeof(sm80::BiasTraits<BFloat16, 256, true>::Tiles);
    return head_dim == 128 ? sizeof(sm80::BiasTraits<BFloat16, 128>::Tiles)
                           : sizeof(sm80::BiasTraits<BFloat16, 256>::Tiles);
  });
  py::enum_<KeyPart>(m, "KeyPart")
      .value("all", KeyPart::kAll)
      .value("near", KeyPart::kNear)
      .value("far", KeyPart::kFar);
  // (query tiles of every key tile, key tiles of every query tile, whether the band covers each pair).
  m.def("attention_backward_sm80_tiles", [](int64_t seqlen_q, int64_t seqlen_k, const MaskParams& mask, int block_m,
                                            int block_n, KeyPart part, int64_t dist_threshold) {
    const sm80::VisibleBand band(PartShape{{seqlen_q, seqlen_k, mask}, part, dist_threshold});
    py::list of_keys, of_queries;
    for (int tile = 0; tile * block_n < seqlen_k; ++tile) {
      const sm80::TileRange range = band.query_tiles(tile, block_m, block_n);
      of_keys.append(py::make_tuple(range.first, range.end));
    }
    for (int tile = 0; tile * block_m < seqlen_q; ++tile) {
      const sm80::TileRange range = band.key_tiles(tile, block_m, block_n);
      py::list covered;
      for (int key_tile = 0; key_tile * block_n < seqlen_k; ++key_tile) {
        covered.append(band.covers(tile * block_m, block_m, key_tile * block_n, block_n));
      }
      of_queries.append(py::make_tuple(range.first, range.end, covered));
    }
    return py::make_tuple(of_keys, of_queries, band.first_seeing_row());
  });
}

}  // namespace flagattn
