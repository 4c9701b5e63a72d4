// The fused ops' part of `_host_exec`.
#pragma once

#include <pybind11/pybind11.h>

namespace flagattn {

void bind_fused(pybind11::module_& m);

}  // namespace flagattn
