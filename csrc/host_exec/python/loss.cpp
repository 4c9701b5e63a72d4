// Cross-entropy of `_host_exec`, called with a dict of its params' fields: tests/host_exec/kernels_loss.py fills it.
#include "loss/cuda/sm80/loss.h"

#include <cstdint>
#include <stdexcept>
#include <tuple>

#include "host_exec/python/loss.h"
#include "loss/cuda/sm80/forward_kernel.cuh"

namespace py = pybind11;

namespace flagattn {
namespace {

template <typename Pointer>
Pointer pointer(const py::dict& fields, const char* name) {
  return fields[name].is_none() ? nullptr : reinterpret_cast<Pointer>(fields[name].cast<uintptr_t>());
}

StridedRows strided_rows(const py::dict& fields, const char* name) {
  StridedRows rows;
  const auto [data, sizes, strides] = fields[name].cast<std::tuple<uintptr_t, py::tuple, py::tuple>>();
  rows.data = reinterpret_cast<void*>(data);
  rows.num_dims = static_cast<int>(sizes.size());
  for (int dim = 0; dim < rows.num_dims; ++dim) {
    rows.sizes[dim] = sizes[dim].cast<int64_t>();
    rows.strides[dim] = strides[dim].cast<int64_t>();
  }
  return rows;
}

LossRows loss_rows(const py::dict& fields) {
  LossRows in;
  in.rows = fields["rows"].cast<int64_t>();
  in.classes = fields["classes"].cast<int64_t>();
  in.targets = pointer<const int64_t*>(fields, "targets");
  in.weights = pointer<const float*>(fields, "weights");
  in.options = {fields["ignore_index"].cast<int64_t>(), static_cast<Reduction>(fields["reduction"].cast<int32_t>()),
                fields["softcap"].cast<float>(), fields["z_loss"].cast<float>(),
                fields["label_smoothing"].cast<float>()};
  return in;
}

void throw_unless_ok(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message);
}

void cross_entropy(const py::dict& fields) {
  CrossEntropyParams p;
  p.in = loss_rows(fields);
  p.dtype = fields["dtype"].cast<DType>();
  p.logits = strided_rows(fields, "logits");
  p.out.loss = pointer<float*>(fields, "loss");
  p.out.lse = pointer<float*>(fields, "lse");
  p.out.maximum = pointer<float*>(fields, "parts");
  p.out.sum = p.out.maximum + p.in.rows;
  throw_unless_ok(sm80::run_cross_entropy(p, pointer<double*>(fields, "scratch"), {}));
}

void cross_entropy_backward(const py::dict& fields) {
  CrossEntropyBackwardParams p;
  p.in = loss_rows(fields);
  p.dtype = fields["dtype"].cast<DType>();
  p.logits = strided_rows(fields, "logits");
  p.upstream.dloss = pointer<const float*>(fields, "dloss");
  p.upstream.dlse = pointer<const float*>(fields, "dlse");
  p.upstream.maximum = pointer<const float*>(fields, "parts");
  p.upstream.sum = p.upstream.maximum + p.in.rows;
  p.dlogits = strided_rows(fields, "dlogits");
  throw_unless_ok(sm80::run_cross_entropy_backward(p, pointer<double*>(fields, "scratch"), {}));
}

size_t shared_bytes(const std::string& kernel) {
  if (kernel == "loss_total_kernel") return sizeof(sm80::LossTotalShared);
  return kernel == "cross_entropy_kernel" ? sizeof(sm80::LossShared) : 0;
}

}  // namespace

void bind_loss(py::module_& m) {
  m.def("cross_entropy_sm80", cross_entropy);
  m.def("cross_entropy_backward_sm80", cross_entropy_backward);
  m.def("loss_shared_bytes_sm80", shared_bytes);
  m.def("loss_plan_sm80", [](int64_t classes, DType dtype) {
    const cuda::RowPlan plan = sm80::loss_plan(classes, dtype);
    return py::make_tuple(plan.lanes, plan.teams, plan.rows_per_team);
  });
}

}  // namespace flagattn
