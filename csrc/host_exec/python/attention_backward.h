// Binds the attention backward into `_host_exec`.
#pragma once

#include <pybind11/pybind11.h>

namespace flagattn {

void bind_attention_backward(pybind11::module_& m);

}  // namespace flagattn
