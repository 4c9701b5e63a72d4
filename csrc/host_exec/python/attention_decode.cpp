// Attention over caches of `_host_exec`: the kernels, what they append, and how the work is cut.
#include "host_exec/python/attention_decode.h"

#include <cstdint>
#include <stdexcept>

#include "attention/cuda/sm80/append.h"
#include "attention/cuda/sm80/decode.h"
#include "attention/cuda/sm80/decode_launch.cuh"

namespace py = pybind11;

namespace flagattn {

namespace sm80 {
extern template Status launch_attention_decode<BFloat16, 64>(const DecodeArguments&, Stream);
extern template Status launch_attention_decode<BFloat16, 96>(const DecodeArguments&, Stream);
extern template Status launch_attention_decode<BFloat16, 128>(const DecodeArguments&, Stream);
extern template Status launch_attention_decode<BFloat16, 192>(const DecodeArguments&, Stream);
extern template Status launch_attention_decode<BFloat16, 256>(const DecodeArguments&, Stream);
}  // namespace sm80

namespace {

void throw_unless_ok(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message);
}

template <int kHeadDim>
py::tuple tile_of() {
  using Traits = sm80::ForwardTraits<BFloat16, kHeadDim, true>;
  return py::make_tuple(Traits::kBlockM, Traits::kBlockN, sizeof(sm80::DecodeShared<Traits>));
}

py::tuple tile(int head_dim) {
  switch (head_dim) {
    case 64:
      return tile_of<64>();
    case 96:
      return tile_of<96>();
    case 128:
      return tile_of<128>();
    case 192:
      return tile_of<192>();
    default:
      return tile_of<256>();
  }
}

// The first of the two kernels alone, so that its counters are the last ones; bf16, one launch.
Status attend_to_splits(const AttentionParams& params, float* workspace) {
  const auto arguments = sm80::DecodeArguments::of(params, workspace);
  switch (sm80::forward_kernel_head_dim(params.head_dim, params.head_dim_v)) {
    case 64:
      return sm80::launch_attention_decode<BFloat16, 64>(arguments, {});
    case 96:
      return sm80::launch_attention_decode<BFloat16, 96>(arguments, {});
    case 128:
      return sm80::launch_attention_decode<BFloat16, 128>(arguments, {});
    case 192:
      return sm80::launch_attention_decode<BFloat16, 192>(arguments, {});
    default:
      return sm80::launch_attention_decode<BFloat16, 256>(arguments, {});
  }
}

}  // namespace

void bind_attention_decode(py::module_& m) {
  m.def(
      "attention_decode_sm80",
      [](const AttentionParams& params, uintptr_t workspace) {
        throw_unless_ok(sm80::run_attention_decode(params, reinterpret_cast<float*>(workspace), {}));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def("attention_decode_sm80_splits", [](const AttentionParams& params, uintptr_t workspace) {
    throw_unless_ok(attend_to_splits(params, reinterpret_cast<float*>(workspace)));
  });
  m.def("attention_decode_sm80_workspace", &sm80::attention_decode_workspace);
  m.def("attention_decode_sm80_tile", tile);
  m.def("attention_decode_sm80_schedule", [](const AttentionParams& params) {
    const sm80::DecodeSchedule schedule = sm80::decode_schedule(params);
    py::list works;
    for (int block = 0; block < schedule.blocks(); ++block) {
      const auto work = schedule.work_of(block);
      works.append(py::make_tuple(work.sequence, work.head_k, work.column_tile, work.split));
    }
    return py::make_tuple(schedule.sequences, schedule.column_tiles, schedule.splits, schedule.columns, works);
  });

  using sm80::AppendParams;
  py::class_<AppendParams>(m, "AppendParams")
      .def(py::init<>())
      .def_readwrite("from_rows", &AppendParams::from)
      .def_readwrite("to", &AppendParams::to)
      .def_readwrite("rows", &AppendParams::rows)
      .def_readwrite("heads", &AppendParams::heads)
      .def_readwrite("head_dim", &AppendParams::head_dim)
      .def_readwrite("to_cache", &AppendParams::to_cache)
      .def_readwrite("table_dtype", &AppendParams::table_dtype)
      .def_readwrite("half_dim", &AppendParams::half_dim)
      .def_readwrite("num_positions", &AppendParams::num_positions)
      .def_readwrite("interleaved", &AppendParams::interleaved)
      .def_readwrite("own_positions", &AppendParams::own_positions)
      .def("set_tables", [](AppendParams& p, uintptr_t cos, uintptr_t sin, int64_t cos_row, int64_t sin_row) {
        p.cos = {reinterpret_cast<const void*>(cos), 0, cos_row};
        p.sin = {reinterpret_cast<const void*>(sin), 0, sin_row};
      });
  m.def(
      "append_rows_sm80",
      [](const AttentionParams& params, const AppendParams& append) {
        throw_unless_ok(sm80::run_append(params, append, {}));
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace flagattn
