// Which instruction set the CPU kernels use: the best the host has, or what FLAGATTN_CPU_LEVEL asks for.
#pragma once

#include <string>

namespace flagattn {

// kAmx: AVX-512 with its bf16 conversions, and matrix products in tiles (attention and linear). What has no kernels in
// tiles, attention's column sums and gradient of a bias and linear maps of few rows among it, runs those of AVX-512.
enum class CpuLevel { kScalar, kAvx2, kAvx512, kAmx };
inline constexpr CpuLevel kCpuLevels[] = {CpuLevel::kScalar, CpuLevel::kAvx2, CpuLevel::kAvx512, CpuLevel::kAmx};

constexpr CpuLevel without_tiles(CpuLevel level) { return level == CpuLevel::kAmx ? CpuLevel::kAvx512 : level; }

struct CpuLevelChoice {
  CpuLevel level;
  std::string reason;  // one sentence: "the host has ...", "FLAGATTN_CPU_LEVEL asks for ..."
};

// Pure: what the host supports and what the environment variable says (null if unset) decide.
CpuLevelChoice choose_cpu_level(CpuLevel host, const char* requested);

CpuLevel host_cpu_level();

// Decided at the first call; `set_cpu_level` (tests only) overrides it and refuses what the host lacks.
const CpuLevelChoice& cpu_level();
bool set_cpu_level(CpuLevel level);

const char* name_of(CpuLevel level);

}  // namespace flagattn
