#include "arch/cpu_level.h"

#include <cstdlib>
#include <cstring>

namespace flagattn {
namespace {

CpuLevelChoice& current() {
  static CpuLevelChoice choice = choose_cpu_level(host_cpu_level(), std::getenv("FLAGATTN_CPU_LEVEL"));
  return choice;
}

}  // namespace

const char* name_of(CpuLevel level) {
  switch (level) {
    case CpuLevel::kAvx512:
      return "avx512";
    case CpuLevel::kAvx2:
      return "avx2";
    default:
      return "scalar";
  }
}

CpuLevel host_cpu_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#if defined(FLAGATTN_EMULATED_AVX512)  // the tests' build for hosts without it
  if (avx2) return CpuLevel::kAvx512;
#endif
  if (avx2 && avx512) return CpuLevel::kAvx512;
  if (avx2) return CpuLevel::kAvx2;
#endif
  return CpuLevel::kScalar;
}

CpuLevelChoice choose_cpu_level(CpuLevel host, const char* requested) {
  if (requested == nullptr || *requested == '\0') {
    return {host, std::string("the host supports ") + name_of(host)};
  }
  for (CpuLevel level : {CpuLevel::kScalar, CpuLevel::kAvx2, CpuLevel::kAvx512}) {
    if (std::strcmp(requested, name_of(level)) != 0) continue;
    if (level <= host) return {level, std::string("FLAGATTN_CPU_LEVEL asks for ") + requested};
    return {host, std::string("FLAGATTN_CPU_LEVEL asks for ") + requested + ", which this host lacks"};
  }
  return {host, std::string("FLAGATTN_CPU_LEVEL is '") + requested + "', not one of scalar, avx2, avx512; ignored"};
}

const CpuLevelChoice& cpu_level() { return current(); }

bool set_cpu_level(CpuLevel level) {
  if (level > host_cpu_level()) return false;
  current() = {level, "set by flagattn.testing"};
  return true;
}

}  // namespace flagattn
