// Binds recordings and planted faults into `_host_exec`.
#pragma once

#include <pybind11/pybind11.h>

namespace flagattn {

void bind_recording(pybind11::module_& m);

}  // namespace flagattn
