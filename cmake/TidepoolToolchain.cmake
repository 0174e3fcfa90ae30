# Compiler and linker settings shared by every target.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
# Everywhere, because gRPC asks for it and one precompiled header is for all.
add_compile_options(-pthread)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG") # no line tables: they are an eighth of the time to compile
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1")
set(CMAKE_CXX_FLAGS_DEBUG "-O0 -g1")

find_program(TIDEPOOL_CCACHE ccache)
if(TIDEPOOL_CCACHE)
  # NOHASHDIR and BASEDIR let a fresh clone in another folder reuse what an earlier build compiled.
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1
      "CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime" ${TIDEPOOL_CCACHE})
endif()
find_program(TIDEPOOL_MOLD mold)
if(TIDEPOOL_MOLD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_link_options(-fuse-ld=mold)
endif()

if(TIDEPOOL_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address,undefined -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(TIDEPOOL_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  add_link_options(-fsanitize=thread)
elseif(TIDEPOOL_SANITIZE STREQUAL "fuzzer")
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "TIDEPOOL_SANITIZE is 'fuzzer' and the compiler is ${CMAKE_CXX_COMPILER_ID}; allowed: Clang")
  endif()
  add_compile_options(-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(NOT TIDEPOOL_SANITIZE STREQUAL "")
  message(FATAL_ERROR "TIDEPOOL_SANITIZE is '${TIDEPOOL_SANITIZE}'; allowed: empty, address, thread, fuzzer")
endif()

# -Wno-missing-field-initializers: designated initialisers name only what differs from the default.
set(TIDEPOOL_WARNINGS -Wall -Wextra -Wno-missing-field-initializers)
if(TIDEPOOL_WERROR)
  list(APPEND TIDEPOOL_WARNINGS -Werror)
endif()
