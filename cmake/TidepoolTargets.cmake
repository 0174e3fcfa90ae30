# One folder under src/ is one library target; these functions keep their CMakeLists.txt to a list of files and a list of
# dependencies.

# tidepool_library(NAME SOURCES a.cc b.cc DEPS base absl::status)
#   Defines the static library tidepool_NAME. A plain name in DEPS that is one of our folders becomes tidepool_<name>.
function(tidepool_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(tidepool_${name} STATIC ${ARG_SOURCES})
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

# tidepool_test(NAME SOURCES x_test.cc DEPS pool [TIMEOUT seconds] [LABELS ...])
#   One GoogleTest program NAME_test and one ctest entry for it. The entry has the label folder-<folder>, and the target
#   tests_<folder> builds all programs of one folder. The labels `serial` and `system` keep other tests from running beside it.
function(tidepool_test name)
  if(NOT TIDEPOOL_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${name}_test ${ARG_SOURCES})
  target_include_directories(${name}_test PRIVATE ${CMAKE_SOURCE_DIR}/src)
  target_compile_options(${name}_test PRIVATE ${TIDEPOOL_WARNINGS})
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
