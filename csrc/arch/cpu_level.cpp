#include "arch/cpu_level.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <cstring>

namespace flagattn {
namespace {

CpuLevelChoice& current() {
  static CpuLevelChoice choice = choose_cpu_level(host_cpu_level(), std::getenv("FLAGATTN_CPU_LEVEL"));
  return choice;
}

#if defined(__x86_64__)
// The tiles' instructions and the conversions to bf16.
[[maybe_unused]] bool host_has_tiles() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAvx512Bf16 = 1u << 5;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) {
    return false;
  }
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & kAvx512Bf16) != 0;
}

// A process asks Linux once for the tiles' eight KiB of registers; all its threads have them then.
[[maybe_unused]] bool system_grants_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuLevel find_host_level() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#if defined(FLAGATTN_EMULATED_TILES)  // the tests' build for hosts without them
  if (avx2) return CpuLevel::kAmx;
#endif
#if defined(FLAGATTN_HAS_AMX)
  if (avx2 && avx512 && host_has_tiles() && system_grants_tiles()) return CpuLevel::kAmx;
#endif
  if (avx2 && avx512) return CpuLevel::kAvx512;
  return avx2 ? CpuLevel::kAvx2 : CpuLevel::kScalar;
}
#endif

}  // namespace

const char* name_of(CpuLevel level) {
  switch (level) {
    case CpuLevel::kAmx:
      return "amx";
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
  static const CpuLevel level = find_host_level();
  return level;
#else
  return CpuLevel::kScalar;
#endif
}

CpuLevelChoice choose_cpu_level(CpuLevel host, const char* requested) {
  if (requested == nullptr || *requested == '\0') {
    return {host, std::string("the host supports ") + name_of(host)};
  }
  for (CpuLevel level : kCpuLevels) {
    if (std::strcmp(requested, name_of(level)) != 0) continue;
    if (level <= host) return {level, std::string("FLAGATTN_CPU_LEVEL asks for ") + requested};
    return {host, std::string("FLAGATTN_CPU_LEVEL asks for ") + requested + ", which this host lacks"};
  }
  return {host,
          std::string("FLAGATTN_CPU_LEVEL is '") + requested + "', not one of scalar, avx2, avx512, amx; ignored"};
}

const CpuLevelChoice& cpu_level() { return current(); }

bool set_cpu_level(CpuLevel level) {
  if (level > host_cpu_level()) return false;
  current() = {level, "set by flagattn.testing"};
  return true;
}

}  // namespace flagattn
