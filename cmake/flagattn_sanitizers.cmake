# `_C_sanitized`, for tests: `_C` under AddressSanitizer and UndefinedBehaviorSanitizer, every CPU level. Built on request:
# cmake --build BUILD --target _C_sanitized; loaded with FLAGATTN_LIBRARY=PATH and the sanitizer's library preloaded.
set(sanitizer_flags -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
  $<$<CONFIG:Release>:-O1>)

set(sanitized_objects "")
foreach(level IN LISTS levels)
  add_library(flagattn_${level}_sanitized OBJECT EXCLUDE_FROM_ALL ${level_sources_${level}})
  target_link_libraries(flagattn_${level}_sanitized PRIVATE flagattn_flags)
  target_compile_options(flagattn_${level}_sanitized PRIVATE ${level_flags_${level}} ${sanitizer_flags})
  list(APPEND sanitized_objects $<TARGET_OBJECTS:flagattn_${level}_sanitized>)
endforeach()

# The twin of the tiles' instructions reads and writes memory in C++, where the sanitizer sees it.
if(TARGET flagattn_amx_sanitized)
  target_include_directories(flagattn_amx_sanitized BEFORE PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}/tests/arch/tile_emulation")
  # GCC 12 sees offsets of its own making behind the checks that the sanitizers put between a pointer and its use.
  target_compile_options(flagattn_amx_sanitized PRIVATE -Wno-array-bounds)
endif()

add_library(flagattn_cpu_sanitized OBJECT EXCLUDE_FROM_ALL ${plain_sources})
target_link_libraries(flagattn_cpu_sanitized PRIVATE flagattn_flags)
target_compile_definitions(flagattn_cpu_sanitized PRIVATE ${level_definitions})
target_compile_options(flagattn_cpu_sanitized PRIVATE ${sanitizer_flags})

flagattn_add_test_module(_C_sanitized ${torch_sources} $<TARGET_OBJECTS:flagattn_cpu_sanitized> ${sanitized_objects})
target_include_directories(_C_sanitized PRIVATE "${CMAKE_BINARY_DIR}/generated")
target_compile_options(_C_sanitized PRIVATE ${sanitizer_flags})
target_link_options(_C_sanitized PRIVATE -fsanitize=address,undefined -Wl,--unresolved-symbols=ignore-all)
