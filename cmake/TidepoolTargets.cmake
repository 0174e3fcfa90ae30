# One folder under src/ is one library target; these functions keep their CMakeLists.txt to a list of files and a list of
# dependencies.

# Headers that most sources include, parsed once for all libraries and, with GoogleTest, once for all test programs. Tests are
# compiled with -Og: a third of a build is theirs.
set(TIDEPOOL_COMMON_HEADERS
    <algorithm> <array> <atomic> <charconv> <cmath> <cstdint> <cstring> <deque> <filesystem> <functional> <map> <memory> <mutex>
    <optional> <set> <span> <string> <string_view> <thread> <tuple> <utility> <variant> <vector>
    <absl/status/statusor.h> <absl/synchronization/mutex.h> <absl/time/time.h> <fmt/format.h>)
set(TIDEPOOL_TEST_OPTIONS $<$<CONFIG:Release>:-Og>)
if(TIDEPOOL_PCH)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    add_compile_options(-fpch-preprocess) # without it ccache cannot see into the header
  endif()
  add_library(tidepool_library_headers OBJECT ${CMAKE_SOURCE_DIR}/cmake/precompiled.cc)
  target_precompile_headers(tidepool_library_headers PRIVATE ${TIDEPOOL_COMMON_HEADERS})
  target_link_libraries(tidepool_library_headers PRIVATE absl::statusor absl::synchronization absl::time fmt::fmt)
  if(TIDEPOOL_TESTS)
    add_library(tidepool_test_headers OBJECT ${CMAKE_SOURCE_DIR}/cmake/precompiled.cc)
    target_precompile_headers(tidepool_test_headers PRIVATE ${TIDEPOOL_COMMON_HEADERS} <random> <gmock/gmock.h> <gtest/gtest.h>)
    target_link_libraries(tidepool_test_headers PRIVATE absl::statusor absl::synchronization absl::time fmt::fmt GTest::gmock)
    # As programs are compiled.
    set_target_properties(tidepool_test_headers PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(tidepool_test_headers PRIVATE -fPIE ${TIDEPOOL_TEST_OPTIONS})
  endif()
endif()

# tidepool_library(NAME SOURCES a.cc b.cc DEPS base absl::status [OWN_HEADERS])
#   Defines the static library tidepool_NAME. A plain name in DEPS that is one of our folders becomes tidepool_<name>.
#   OWN_HEADERS: without the precompiled ones, for what uses torch, whose definitions they do not fit.
function(tidepool_library name)
  cmake_parse_arguments(ARG "OWN_HEADERS" "" "SOURCES;DEPS" ${ARGN})
  add_library(tidepool_${name} STATIC ${ARG_SOURCES})
  if(TIDEPOOL_PCH AND NOT ARG_OWN_HEADERS)
    target_precompile_headers(tidepool_${name} REUSE_FROM tidepool_library_headers)
  endif()
  target_include_directories(tidepool_${name} PUBLIC ${CMAKE_SOURCE_DIR}/src ${CMAKE_BINARY_DIR}/generated)
  target_compile_options(tidepool_${name} PRIVATE ${TIDEPOOL_WARNINGS})
  tidepool_link(tidepool_${name} PUBLIC ${ARG_DEPS})
endfunction()

# tidepool_link(TARGET PUBLIC|PRIVATE dep...): links our folders by their short names and anything else as it is.
function(tidepool_link target visibility)
  foreach(dep ${ARGN})
    if(IS_DIRECTORY ${CMAKE_SOURCE_DIR}/src/${dep} OR TARGET tidepool_${dep})
      target_link_libraries(${target} ${visibility} tidepool_${dep})
    else()
      target_link_libraries(${target} ${visibility} ${dep})
    endif()
  endforeach()
endfunction()

# tidepool_test(NAME SOURCES x_test.cc DEPS pool [TIMEOUT seconds] [LABELS ...] [OWN_HEADERS])
#   One GoogleTest program NAME_test and one ctest entry for it. The entry has the label folder-<folder>, and the target
#   tests_<folder> builds all programs of one folder. The labels `serial` and `system` keep other tests from running beside it.
function(tidepool_test name)
  if(NOT TIDEPOOL_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "OWN_HEADERS" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${name}_test ${ARG_SOURCES})
  target_include_directories(${name}_test PRIVATE ${CMAKE_SOURCE_DIR}/src)
  target_compile_options(${name}_test PRIVATE ${TIDEPOOL_WARNINGS} ${TIDEPOOL_TEST_OPTIONS})
  if(TIDEPOOL_PCH AND NOT ARG_OWN_HEADERS)
    target_precompile_headers(${name}_test REUSE_FROM tidepool_test_headers)
  endif()
  target_compile_definitions(${name}_test PRIVATE TIDEPOOL_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
                             TIDEPOOL_BINARY_DIR="${CMAKE_BINARY_DIR}")
  tidepool_link(${name}_test PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest GTest::gtest_main)
  add_test(NAME ${name}_test COMMAND ${name}_test)
  get_filename_component(folder ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  if(NOT TARGET tests_${folder})
    add_custom_target(tests_${folder})
  endif()
  add_dependencies(tests_${folder} ${name}_test)
  list(APPEND ARG_LABELS folder-${folder})
  set_tests_properties(${name}_test PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
  if("serial" IN_LIST ARG_LABELS OR "system" IN_LIST ARG_LABELS)
    set_tests_properties(${name}_test PROPERTIES RUN_SERIAL ON)
  endif()
endfunction()

# tidepool_bench(NAME SOURCES x_bench.cc DEPS pool): one Google Benchmark program NAME_bench, run by ./dev bench.
function(tidepool_bench name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name}_bench ${ARG_SOURCES})
  target_include_directories(${name}_bench PRIVATE ${CMAKE_SOURCE_DIR}/src)
  target_compile_options(${name}_bench PRIVATE ${TIDEPOOL_WARNINGS})
  tidepool_link(${name}_bench PRIVATE ${ARG_DEPS})
endfunction()
