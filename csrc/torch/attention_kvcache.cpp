// Attention over caches on the CPU.
#include <torch/csrc/stable/library.h>

#include "torch/attention_kvcache_cpu.h"

STABLE_TORCH_LIBRARY_IMPL(flagattn, CPU, m) { flagattn::CacheOps<flagattn::CachesOnCpu>::add_to(m); }
