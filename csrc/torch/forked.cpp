#include "torch/forked.h"

#include <pthread.h>

namespace flagattn {
namespace {

bool forked = false;

[[maybe_unused]] const int watching = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

bool in_forked_child() { return forked; }

}  // namespace flagattn
