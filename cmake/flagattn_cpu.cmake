# `_C`: every schema, and the CPU kernels. Files named *_isa.cpp are compiled once per CPU level, the rest for the baseline.

file(GLOB_RECURSE plain_sources CONFIGURE_DEPENDS RELATIVE "${CMAKE_CURRENT_SOURCE_DIR}" csrc/*.cpp)
set(isa_sources ${plain_sources})
list(FILTER isa_sources INCLUDE REGEX "_isa\\.cpp$")
set(torch_sources ${plain_sources})
list(FILTER torch_sources INCLUDE REGEX "^csrc/torch/")
set(torch_cuda_sources ${torch_sources})
list(FILTER torch_cuda_sources INCLUDE REGEX "_cuda\\.cpp$")
list(FILTER torch_sources EXCLUDE REGEX "_cuda\\.cpp$")
list(FILTER plain_sources EXCLUDE REGEX "_isa\\.cpp$|^csrc/torch/|^csrc/host_exec/|/cuda/")

set(level_flags_scalar "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(levels scalar avx2 avx512)
  set(level_flags_avx2 -mavx2 -mfma -mf16c)
  set(level_flags_avx512 ${level_flags_avx2} -mavx512f -mavx512dq -mavx512bw -mavx512vl)
else()
  set(levels scalar)
endif()

set(level_objects "")
foreach(level IN LISTS levels)
  if(isa_sources)
    add_library(flagattn_${level} OBJECT ${isa_sources})
    target_link_libraries(flagattn_${level} PRIVATE flagattn_flags)
    target_compile_options(flagattn_${level} PRIVATE ${level_flags_${level}})
    list(APPEND level_objects $<TARGET_OBJECTS:flagattn_${level}>)
  endif()
  string(TOUPPER ${level} upper)
  list(APPEND level_definitions FLAGATTN_HAS_${upper})
endforeach()

# Without torch's include path, so that another torch recompiles csrc/torch only.
add_library(flagattn_cpu OBJECT ${plain_sources})
target_link_libraries(flagattn_cpu PRIVATE flagattn_flags)
target_compile_definitions(flagattn_cpu PRIVATE ${level_definitions})

flagattn_add_module(_C ${torch_sources} $<TARGET_OBJECTS:flagattn_cpu> ${level_objects})
