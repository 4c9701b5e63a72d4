// The attention backward of `_host_exec`.
#include "host_exec/python/attention_backward.h"

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>

#include "attention/cuda/sm80/backward.h"
#include "attention/cuda/sm80/backward_block.cuh"

namespace py = pybind11;

namespace flagattn {
namespace {

struct SharedBytes {
  template <int kHeadDim>
  static constexpr size_t of() {
    return sizeof(sm80::BackwardStorage<sm80::BackwardTraits<BFloat16, kHeadDim>>);
  }
};

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
      .def_property(
          "workspace", [](const AttentionBackwardParams& p) { return reinterpret_cast<uintptr_t>(p.workspace); },
          [](AttentionBackwardParams& p, uintptr_t address) { p.workspace = reinterpret_cast<float*>(address); });
  m.def("attention_backward_sm80_workspace", &sm80::attention_backward_workspace);
  m.def(
      "attention_backward_sm80",
      [](const AttentionBackwardParams& params) {
        const Status status = sm80::run_attention_backward(params, {});
        if (!status.ok()) throw std::runtime_error(status.message);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def("attention_backward_sm80_tile", [](int head_dim) {
    const sm80::BackwardTile tile = sm80::backward_tile(head_dim);
    return py::make_tuple(tile.block_m, tile.block_n, head_dim == 64 ? SharedBytes::of<64>() : SharedBytes::of<128>());
  });
  // (query tiles of every key tile, key tiles of every query tile, whether the band covers each pair).
  m.def("attention_backward_sm80_tiles",
        [](int64_t seqlen_q, int64_t seqlen_k, const MaskParams& mask, int block_m, int block_n) {
          const sm80::VisibleBand band(MaskShape{seqlen_q, seqlen_k, mask});
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
