// `_host_exec`: our CUDA kernels on CPU memory, for tests. Tensors come as addresses and strides, so that the module
// needs no torch; tests/host_exec/kernels.py is the side that knows tensors.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>

#include "attention/cuda/sm80/forward.h"
#include "attention/cuda/sm80/forward_kernel.cuh"
#include "attention/cuda/sm80/heuristics.h"
#include "attention/params.h"
#include "host_exec/host_exec.h"
#include "host_exec/python/attention_backward.h"
#include "host_exec/python/attention_decode.h"
#include "host_exec/python/fused.h"
#include "host_exec/python/loss.h"
#include "host_exec/python/recording.h"

namespace py = pybind11;

namespace flagattn {
namespace {

void throw_unless_ok(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message);
}

// A pointer field, seen from Python as its address.
template <typename Pointer, auto kField, typename Struct>
void bind_pointer(py::class_<Struct>& bound, const char* name) {
  bound.def_property(
      name, [](const Struct& s) { return reinterpret_cast<uintptr_t>(s.*kField); },
      [](Struct& s, uintptr_t address) { s.*kField = reinterpret_cast<Pointer>(address); });
}

void bind_params(py::module_& m) {
  py::enum_<DType>(m, "DType")
      .value("float32", DType::kFloat32)
      .value("bfloat16", DType::kBFloat16)
      .value("float16", DType::kFloat16);
  py::class_<HeadsView>(m, "HeadsView").def(py::init([](uintptr_t data, int64_t batch, int64_t row, int64_t head) {
    return HeadsView{reinterpret_cast<void*>(data), batch, row, head};
  }));
  py::class_<RowsView>(m, "RowsView").def(py::init([](uintptr_t data, int64_t batch, int64_t head) {
    return RowsView{reinterpret_cast<float*>(data), batch, head};
  }));
  py::class_<MaskParams>(m, "MaskParams").def(py::init([](int64_t left, int64_t right) {
    return MaskParams{left, right};
  }));

  py::class_<ScoresView>(m, "ScoresView")
      .def(py::init([](uintptr_t data, int64_t batch, int64_t head, int64_t row, int64_t key) {
        return ScoresView{reinterpret_cast<void*>(data), batch, head, row, key};
      }));
  py::class_<AlibiParams>(m, "AlibiParams").def(py::init([](uintptr_t slopes, int64_t batch_stride) {
    return AlibiParams{reinterpret_cast<const float*>(slopes), batch_stride};
  }));
  py::class_<DropoutParams>(m, "DropoutParams")
      .def(py::init([](uintptr_t rng_state, uint32_t last_dropped, float scale) {
        return DropoutParams{reinterpret_cast<const int64_t*>(rng_state), last_dropped, scale};
      }));

  py::class_<CacheParams> cache(m, "CacheParams");
  cache.def(py::init<>())
      .def_readwrite("present", &CacheParams::present)
      .def_readwrite("rows", &CacheParams::rows)
      .def_readwrite("capacity", &CacheParams::capacity)
      .def_readwrite("appended", &CacheParams::appended)
      .def_readwrite("block_table_stride", &CacheParams::block_table_stride)
      .def_readwrite("page_size", &CacheParams::page_size);
  bind_pointer<const int32_t*, &CacheParams::seqlens>(cache, "seqlens");
  bind_pointer<const int32_t*, &CacheParams::batch_idx>(cache, "batch_idx");
  bind_pointer<const int32_t*, &CacheParams::leftpad>(cache, "leftpad");
  bind_pointer<const int32_t*, &CacheParams::block_table>(cache, "block_table");

  py::class_<AttentionParams> params(m, "AttentionParams");
  params.def(py::init<>())
      .def_readwrite("dtype", &AttentionParams::dtype)
      .def_readwrite("batch", &AttentionParams::batch)
      .def_readwrite("heads_q", &AttentionParams::heads_q)
      .def_readwrite("heads_k", &AttentionParams::heads_k)
      .def_readwrite("seqlen_q", &AttentionParams::seqlen_q)
      .def_readwrite("seqlen_k", &AttentionParams::seqlen_k)
      .def_readwrite("head_dim", &AttentionParams::head_dim)
      .def_readwrite("head_dim_v", &AttentionParams::head_dim_v)
      .def_readwrite("q", &AttentionParams::q)
      .def_readwrite("k", &AttentionParams::k)
      .def_readwrite("v", &AttentionParams::v)
      .def_readwrite("out", &AttentionParams::out)
      .def_readwrite("lse", &AttentionParams::lse)
      .def_readwrite("q2", &AttentionParams::q2)
      .def_readwrite("k2", &AttentionParams::k2)
      .def_readwrite("total_q", &AttentionParams::total_q)
      .def_readwrite("total_k", &AttentionParams::total_k)
      .def_readwrite("softmax_scale", &AttentionParams::softmax_scale)
      .def_readwrite("softcap", &AttentionParams::softcap)
      .def_readwrite("mask", &AttentionParams::mask);
  bind_pointer<const int32_t*, &AttentionParams::cu_seqlens_q>(params, "cu_seqlens_q");
  bind_pointer<const int32_t*, &AttentionParams::cu_seqlens_k>(params, "cu_seqlens_k");

  // What joins the scores.
  bind_pointer<const float*, &AttentionParams::sinks>(params, "sinks");
  params.def_readwrite("bias", &AttentionParams::bias)
      .def_readwrite("bias_dtype", &AttentionParams::bias_dtype)
      .def_readwrite("keep", &AttentionParams::keep)
      .def_readwrite("alibi", &AttentionParams::alibi)
      .def_readwrite("dropout", &AttentionParams::dropout)
      .def_readwrite("dist_threshold", &AttentionParams::dist_threshold)
      .def_readwrite("cache", &AttentionParams::cache);
}

void bind_runner(py::module_& m) {
  using host_exec::CopyTiming;
  py::enum_<CopyTiming>(m, "CopyTiming")
      .value("eager", CopyTiming::kEager)
      .value("lazy", CopyTiming::kLazy)
      .value("random", CopyTiming::kRandom);
  m.def("set_options", [](uint32_t seed, CopyTiming copies, int workers, int compute_capability) {
    host_exec::Options& options = host_exec::options();
    options = {};
    options.seed = seed;
    options.copies = copies;
    options.workers = workers;
    options.compute_capability = compute_capability;
  });
  m.def("counters", [](int before) {
    if (before < 0 || before > 7) throw py::value_error("counters are kept of the last launch and of the seven before");
    const host_exec::Counters& c = host_exec::counters(before);
    py::dict counters;
    py::dict instructions;
    for (int i = 0; i < host_exec::kInstructions; ++i) {
      instructions[host_exec::kInstructionNames[i]] = c.instructions[i];
    }
    counters["instructions"] = instructions;
    counters["matrix_flops"] = c.matrix_flops;
    counters["bank_conflicts"] = c.bank_conflicts;
    counters["global_bytes_read"] = c.global_bytes_read;
    counters["global_bytes_written"] = c.global_bytes_written;
    counters["global_sectors_read"] = c.global_sectors_read;
    counters["global_sectors_written"] = c.global_sectors_written;
    counters["barrier_waits"] = c.barrier_waits;
    return counters;
  });
}

template <int kHeadDim>
size_t forward_shared_bytes(bool terms) {
  return terms ? sizeof(sm80::ForwardShared<sm80::ForwardTraits<BFloat16, kHeadDim, true>>)
               : sizeof(sm80::ForwardShared<sm80::ForwardTraits<BFloat16, kHeadDim, false>>);
}

size_t forward_shared_bytes(int head_dim, bool terms) {
  switch (head_dim) {
    case 64:
      return forward_shared_bytes<64>(terms);
    case 96:
      return forward_shared_bytes<96>(terms);
    case 128:
      return forward_shared_bytes<128>(terms);
    case 192:
      return forward_shared_bytes<192>(terms);
    default:
      return forward_shared_bytes<256>(terms);
  }
}

void bind_attention(py::module_& m) {
  m.def(
      "attention_forward_sm80",
      [](const AttentionParams& params) { throw_unless_ok(sm80::run_attention_forward(params, {})); },
      py::call_guard<py::gil_scoped_release>());
  m.def("attention_forward_sm80_tile", [](int head_dim, bool terms) {
    const sm80::ForwardTile tile = sm80::forward_tile(head_dim, terms);
    return py::make_tuple(tile.block_m, tile.block_n, forward_shared_bytes(head_dim, terms));
  });
  m.def("attention_forward_sm80_schedule", [](const AttentionParams& params, int block_m) {
    const sm80::ForwardSchedule schedule = sm80::forward_schedule(params, block_m);
    py::list works;
    for (int block = 0; block < schedule.blocks(); ++block) {
      const auto work = schedule.work_of(block);
      works.append(py::make_tuple(work.sequence, work.head, work.query_tile));
    }
    return works;
  });
}

}  // namespace
}  // namespace flagattn

PYBIND11_MODULE(_host_exec, m) {
  flagattn::bind_params(m);
  flagattn::bind_runner(m);
  flagattn::bind_attention(m);
  flagattn::bind_attention_backward(m);
  flagattn::bind_attention_decode(m);
  flagattn::bind_fused(m);
  flagattn::bind_loss(m);
  flagattn::bind_recording(m);
}
