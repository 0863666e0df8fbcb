# The C++ core of xgrammar, without its Python bindings: target xgrammar. Its own CMake file sets flags for everybody.
set(xgrammar_source ${CMAKE_SOURCE_DIR}/.cache/xgrammar-0.2.8)
if(NOT EXISTS ${xgrammar_source}/include/xgrammar/xgrammar.h)
  message(STATUS "Fetching xgrammar from PyPI")
  execute_process(COMMAND ${CMAKE_SOURCE_DIR}/scripts/fetch_xgrammar.sh ${xgrammar_source} RESULT_VARIABLE failed)
  if(NOT failed EQUAL 0)
    message(FATAL_ERROR "The source package of xgrammar 0.2.8 cannot be had from PyPI. -DSLUICE_GRAMMAR=OFF builds without "
                        "it: regex, json_schema, ebnf and response_format are refused then.")
  endif()
endif()

file(GLOB_RECURSE xgrammar_sources ${xgrammar_source}/cpp/*.cc)
list(FILTER xgrammar_sources EXCLUDE REGEX "/cpp/tvm_ffi/")
add_library(xgrammar STATIC EXCLUDE_FROM_ALL ${xgrammar_sources})
set_target_properties(xgrammar PROPERTIES CXX_STANDARD 17)
target_include_directories(xgrammar PRIVATE ${xgrammar_source}/3rdparty/picojson)
# For it and for the file that uses it. What it has to say comes to us instead of stderr.
set(XGRAMMAR_OPTIONS -isystem${xgrammar_source}/include -isystem${xgrammar_source}/3rdparty/dlpack/include
                     -DXGRAMMAR_ENABLE_CPPTRACE=0 -DXGRAMMAR_ENABLE_INTERNAL_CHECK=0 -DXGRAMMAR_LOG_CUSTOMIZE=1)
# Its warnings are not ours, and debug information doubles its time.
target_compile_options(xgrammar PRIVATE ${XGRAMMAR_OPTIONS} -O2 -g0 -w)
