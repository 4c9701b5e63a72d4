// Launchers of the fused ops, called with a dict of their params' fields: tests/host_exec/kernels_fused.py fills it.
#include "host_exec/python/fused.h"

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

#include "activation/cuda/sm80/activation.h"
#include "norm/cuda/sm80/forward_kernel.cuh"
#include "norm/cuda/sm80/heuristics.h"
#include "norm/cuda/sm80/norm.h"
#include "rotary/cuda/sm80/kernel.cuh"
#include "rotary/cuda/sm80/rotary.h"

namespace py = pybind11;

namespace flagattn {
namespace {

// One field of the dict; tensors are addresses, None is null.
class Fields {
 public:
  explicit Fields(const py::dict& fields) : fields_(fields) {}

  template <typename Value>
  void into(const char* name, Value& field) const {
    if constexpr (std::is_pointer_v<Value>) {
      if (!fields_[name].is_none()) field = reinterpret_cast<Value>(fields_[name].cast<uintptr_t>());
    } else {
      field = fields_[name].cast<Value>();
    }
  }
  void into(const char* name, StridedRows& rows) const {
    if (fields_[name].is_none()) return;
    const auto [data, sizes, strides] = fields_[name].cast<std::tuple<uintptr_t, py::tuple, py::tuple>>();
    rows.data = reinterpret_cast<void*>(data);
    rows.num_dims = static_cast<int>(sizes.size());
    for (int dim = 0; dim < rows.num_dims; ++dim) {
      rows.sizes[dim] = sizes[dim].cast<int64_t>();
      rows.strides[dim] = strides[dim].cast<int64_t>();
    }
  }

  void into(const char* name, RotaryOperand& operand) const {
    const auto [data, batch, row, head] = fields_[name].cast<std::tuple<uintptr_t, int64_t, int64_t, int64_t>>();
    operand = {reinterpret_cast<void*>(data), batch, row, head};
  }
  void into(const char* name, RotaryTable& table) const {
    const auto [data, batch, row] = fields_[name].cast<std::tuple<uintptr_t, int64_t, int64_t>>();
    table = {reinterpret_cast<const void*>(data), batch, row};
  }

 private:
  const py::dict& fields_;
};

void throw_unless_ok(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message);
}

void rms_norm(const py::dict& dict) {
  const Fields fields(dict);
  RmsNormParams p;
  fields.into("dtype", p.dtype);
  fields.into("weight_dtype", p.weight_dtype);
  fields.into("rows", p.rows);
  fields.into("cols", p.cols);
  fields.into("x", p.x);
  fields.into("residual", p.residual);
  fields.into("weight", p.weight);
  fields.into("eps", p.eps);
  fields.into("offset", p.offset);
  fields.into("round_normalised", p.round_normalised);
  fields.into("y", p.y);
  fields.into("summed", p.summed);
  fields.into("rstd", p.rstd);
  throw_unless_ok(sm80::run_rms_norm(p, {}));
}

void rms_norm_backward(const py::dict& dict) {
  const Fields fields(dict);
  RmsNormBackwardParams p;
  fields.into("dtype", p.dtype);
  fields.into("weight_dtype", p.weight_dtype);
  fields.into("rows", p.rows);
  fields.into("cols", p.cols);
  fields.into("dy", p.dy);
  fields.into("dsummed", p.dsummed);
  fields.into("s", p.s);
  fields.into("rstd", p.rstd);
  fields.into("weight", p.weight);
  fields.into("offset", p.offset);
  fields.into("ds", p.ds);
  fields.into("dweight", p.dweight);
  fields.into("scratch", p.scratch);
  throw_unless_ok(sm80::run_rms_norm_backward(p, {}));
}

void swiglu(const py::dict& dict) {
  const Fields fields(dict);
  SwigluParams p;
  fields.into("dtype", p.dtype);
  fields.into("rows", p.rows);
  fields.into("cols", p.cols);
  fields.into("gate", p.gate);
  fields.into("up", p.up);
  fields.into("y", p.y);
  throw_unless_ok(sm80::run_swiglu(p, {}));
}

void swiglu_backward(const py::dict& dict) {
  const Fields fields(dict);
  SwigluBackwardParams p;
  fields.into("dtype", p.dtype);
  fields.into("rows", p.rows);
  fields.into("cols", p.cols);
  fields.into("dy", p.dy);
  fields.into("gate", p.gate);
  fields.into("up", p.up);
  fields.into("dgate", p.dgate);
  fields.into("dup", p.dup);
  throw_unless_ok(sm80::run_swiglu_backward(p, {}));
}

void rotary(const py::dict& dict) {
  const Fields fields(dict);
  RotaryParams p;
  fields.into("dtype", p.dtype);
  fields.into("table_dtype", p.table_dtype);
  fields.into("batch", p.batch);
  fields.into("seqlen", p.seqlen);
  fields.into("heads", p.heads);
  fields.into("head_dim", p.head_dim);
  fields.into("half_dim", p.half_dim);
  fields.into("num_positions", p.num_positions);
  fields.into("x", p.x);
  fields.into("y", p.y);
  fields.into("cos", p.cos);
  fields.into("sin", p.sin);
  fields.into("positions32", p.positions32);
  fields.into("positions64", p.positions64);
  fields.into("positions_batch_stride", p.positions_batch_stride);
  fields.into("interleaved", p.interleaved);
  fields.into("conjugate", p.conjugate);
  throw_unless_ok(sm80::run_rotary(p, {}));
}

// Of each kernel by its name, as the table of tests/cuda asks.
size_t shared_bytes(const std::string& kernel) {
  if (kernel == "weight_gradient_kernel") return sizeof(sm80::WeightGradientShared);
  if (kernel.starts_with("rms_norm")) return sizeof(sm80::NormShared);
  if (kernel == "rotary_kernel" || kernel.starts_with("rotary_instance")) return sizeof(sm80::RotaryShared);
  return 0;
}

py::tuple plan_tuple(const cuda::RowPlan& plan) { return py::make_tuple(plan.lanes, plan.teams, plan.rows_per_team); }

}  // namespace

void bind_fused(py::module_& m) {
  m.def("rms_norm_sm80", rms_norm);
  m.def("rms_norm_backward_sm80", rms_norm_backward);
  m.def("swiglu_sm80", swiglu);
  m.def("swiglu_backward_sm80", swiglu_backward);
  m.def("rotary_sm80", rotary);
  m.def("fused_shared_bytes_sm80", shared_bytes);
  m.def("rms_norm_backward_scratch_sm80", sm80::norm_backward_scratch);
  m.def("rms_norm_forward_plan_sm80", [](int64_t rows, int64_t cols, DType dtype) {
    return plan_tuple(sm80::norm_forward_plan(rows, cols, dtype).rows);
  });
  m.def("rms_norm_backward_plan_sm80", [](int64_t rows, int64_t cols, DType dtype) {
    return plan_tuple(sm80::norm_backward_plan(rows, cols, dtype));
  });
}

}  // namespace flagattn
