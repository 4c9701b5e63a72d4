# `_C_emulated`, for tests: `_C` with the AVX-512 and AMX levels compiled over tests/arch/*_emulation, so that they run
# on hosts that have AVX2 only. Built on request: cmake --build BUILD --target _C_emulated; loaded with FLAGATTN_LIBRARY=PATH.
if("avx2" IN_LIST levels)
  set(emulation "${CMAKE_CURRENT_SOURCE_DIR}/tests/arch/avx512_emulation")
  set(emulated_avx512 ${isa_sources})
  set(emulated_amx ${tile_sources})
  foreach(level IN ITEMS avx512 amx)
    add_library(flagattn_${level}_emulated OBJECT EXCLUDE_FROM_ALL ${emulated_${level}})
    target_link_libraries(flagattn_${level}_emulated PRIVATE flagattn_flags)
    target_include_directories(flagattn_${level}_emulated BEFORE PRIVATE "${emulation}")
    target_compile_options(flagattn_${level}_emulated PRIVATE ${level_flags_avx2} -D__AVX512F__=1 -Wno-psabi
      $<$<CONFIG:Release>:-O2>)
  endforeach()
  target_compile_definitions(flagattn_amx_emulated PRIVATE __AMX_BF16__=1)
  target_include_directories(flagattn_amx_emulated BEFORE PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}/tests/arch/tile_emulation")

  add_library(flagattn_cpu_emulated OBJECT EXCLUDE_FROM_ALL ${plain_sources})
  target_link_libraries(flagattn_cpu_emulated PRIVATE flagattn_flags)
  target_compile_definitions(flagattn_cpu_emulated PRIVATE ${level_definitions} FLAGATTN_HAS_AMX
    FLAGATTN_EMULATED_TILES)

  flagattn_add_test_module(_C_emulated ${torch_sources} $<TARGET_OBJECTS:flagattn_cpu_emulated>
    $<TARGET_OBJECTS:flagattn_scalar> $<TARGET_OBJECTS:flagattn_avx2> $<TARGET_OBJECTS:flagattn_avx512_emulated>
    $<TARGET_OBJECTS:flagattn_amx_emulated>)
  target_include_directories(_C_emulated PRIVATE "${CMAKE_BINARY_DIR}/generated")
endif()
