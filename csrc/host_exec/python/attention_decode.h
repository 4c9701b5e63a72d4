// Binds attention over caches into `_host_exec`.
#pragma once

#include <pybind11/pybind11.h>

namespace flagattn {

void bind_attention_decode(pybind11::module_& m);

}  // namespace flagattn
