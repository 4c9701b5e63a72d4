# `_C_emulated`, for tests: `_C` with the AVX-512 level compiled over tests/arch/avx512_emulation, so that it runs on hosts
# that have AVX2 only. Built on request: cmake --build BUILD --target _C_emulated; loaded with FLAGATTN_LIBRARY=PATH.
if("avx2" IN_LIST levels)
  set(emulation "${CMAKE_CURRENT_SOURCE_DIR}/tests/arch/avx512_emulation")
  add_library(flagattn_avx512_emulated OBJECT EXCLUDE_FROM_ALL ${isa_sources})
  target_link_libraries(flagattn_avx512_emulated PRIVATE flagattn_flags)
  target_include_directories(flagattn_avx512_emulated BEFORE PRIVATE "${emulation}")
  target_compile_options(flagattn_avx512_emulated PRIVATE ${level_flags_avx2} -D__AVX512F__=1 -Wno-psabi
    $<$<CONFIG:Release>:-O2>)

  add_library(flagattn_cpu_emulated OBJECT EXCLUDE_FROM_ALL ${plain_sources})
  target_link_libraries(flagattn_cpu_emulated PRIVATE flagattn_flags)
  target_compile_definitions(flagattn_cpu_emulated PRIVATE ${level_definitions} FLAGATTN_EMULATED_AVX512)

  flagattn_add_test_module(_C_emulated ${torch_sources} $<TARGET_OBJECTS:flagattn_cpu_emulated>
    $<TARGET_OBJECTS:flagattn_scalar> $<TARGET_OBJECTS:flagattn_avx2> $<TARGET_OBJECTS:flagattn_avx512_emulated>)
  target_include_directories(_C_emulated PRIVATE "${CMAKE_BINARY_DIR}/generated")
endif()
