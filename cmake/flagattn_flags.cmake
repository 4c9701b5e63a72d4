# Flags that every translation unit shares, and how a library is linked.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_SCAN_FOR_MODULES OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")

# -ffp-contract=off: where a product and a sum are fused is written in the source, so that all levels round alike.
add_library(flagattn_flags INTERFACE)
target_include_directories(flagattn_flags INTERFACE "${CMAKE_CURRENT_SOURCE_DIR}/csrc")
target_compile_options(flagattn_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra $<$<BOOL:${FLAGATTN_WERROR}>:-Werror> -ffp-contract=off -fno-math-errno>)

# The stable ABI of torch 2.11: with this target torch's unstable headers refuse to be included.
add_library(flagattn_torch INTERFACE)
target_compile_definitions(flagattn_torch INTERFACE TORCH_TARGET_VERSION=0x020b000000000000)
target_include_directories(flagattn_torch SYSTEM INTERFACE ${FLAGATTN_TORCH_INCLUDE_DIRS})

# A module that exports no symbol (its static initialisers register the ops) and finds torch already loaded in the process,
# hence no RPATH. libstdc++ and libgcc stay shared: exceptions pass from our ops into torch, and two unwinders in one
# process would not see each other's frames.
function(flagattn_add_test_module name)
  add_library(${name} MODULE EXCLUDE_FROM_ALL ${ARGN})
  target_link_libraries(${name} PRIVATE flagattn_flags flagattn_torch)
  find_library(FLAGATTN_TORCH_CPU_LIBRARY torch_cpu PATHS ${FLAGATTN_TORCH_LIBRARY_DIRS} NO_DEFAULT_PATH NO_CACHE REQUIRED)
  target_link_libraries(${name} PRIVATE "${FLAGATTN_TORCH_CPU_LIBRARY}" ${CMAKE_DL_LIBS})
  set_target_properties(${name} PROPERTIES
    PREFIX "" SUFFIX ".so" LINKER_LANGUAGE CXX SKIP_BUILD_RPATH ON
    LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/lib")
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    set(exports "${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports.map")
    set_property(TARGET ${name} APPEND PROPERTY LINK_DEPENDS "${exports}")
    target_link_options(${name} PRIVATE -Wl,--no-undefined -Wl,--as-needed -Wl,--gc-sections "-Wl,--version-script=${exports}")
  endif()
endfunction()

# The same, and shipped: part of every build, copied into the package for in-place builds, installed into wheels.
function(flagattn_add_module name)
  flagattn_add_test_module(${name} ${ARGN})
  set_target_properties(${name} PROPERTIES EXCLUDE_FROM_ALL OFF)
  if(FLAGATTN_COPY_TO)  # by a rename, so that running processes keep the old one and a failed link leaves it in place
    add_custom_command(TARGET ${name} POST_BUILD VERBATIM
      COMMAND ${CMAKE_COMMAND} -E copy $<TARGET_FILE:${name}> "${FLAGATTN_COPY_TO}/${name}.so.new"
      COMMAND ${CMAKE_COMMAND} -E rename "${FLAGATTN_COPY_TO}/${name}.so.new" "${FLAGATTN_COPY_TO}/${name}.so")
  endif()
  install(TARGETS ${name} LIBRARY DESTINATION .)
endfunction()
