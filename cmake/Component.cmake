# sluice_component(<folder> [PCH std|net] [SUBDIRS a b ...] [DEPS ...] [TEST_DEPS ...])
#
# One library per folder of src/: every *.cc of the folder and of SUBDIRS is in the library sluice_<folder>, except
# *_test.cc, which together make the test program <folder>_test. So a test file cannot be forgotten, and adding a file
# needs no edit here. A folder without sources is an interface library.
function(sluice_component folder)
  cmake_parse_arguments(ARG "" "PCH" "SUBDIRS;DEPS;TEST_DEPS" ${ARGN})
  set(patterns ${CMAKE_CURRENT_SOURCE_DIR}/${folder}/*.cc)
  foreach(sub ${ARG_SUBDIRS})
    list(APPEND patterns ${CMAKE_CURRENT_SOURCE_DIR}/${folder}/${sub}/*.cc)
  endforeach()
  file(GLOB all CONFIGURE_DEPENDS ${patterns})
  set(tests ${all})
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  set(sources ${all})
  list(FILTER sources EXCLUDE REGEX "_(test|bench)\\.cc$")

  string(REPLACE "/" "_" name ${folder})
  set(library sluice_${name})
  if(sources)
    add_library(${library} STATIC ${sources})
    target_include_directories(${library} PUBLIC ${CMAKE_SOURCE_DIR}/src)
    target_link_libraries(${library} PUBLIC ${ARG_DEPS})
    if(ARG_PCH)
      target_precompile_headers(${library} REUSE_FROM sluice_pch_${ARG_PCH})
    endif()
  else()
    add_library(${library} INTERFACE)
    target_include_directories(${library} INTERFACE ${CMAKE_SOURCE_DIR}/src)
    target_link_libraries(${library} INTERFACE ${ARG_DEPS})
  endif()

  if(SLUICE_TESTS AND tests)
    add_executable(${name}_test ${tests})
    target_link_libraries(${name}_test PRIVATE ${library} ${ARG_TEST_DEPS} GTest::gmock GTest::gtest_main)
    # Only where fixtures are read: a path on the command line keeps another clone's ccache from being of use.
    if(name MATCHES "^(bench|engine|models|tensor|tokenizer)$")
      target_compile_definitions(${name}_test PRIVATE SLUICE_FIXTURES_DIR="${CMAKE_BINARY_DIR}/fixtures")
    endif()
    if(ARG_PCH)
      target_precompile_headers(${name}_test REUSE_FROM sluice_pch_${ARG_PCH})
    endif()
    # Discovered when ctest runs, so that building does not run anything.
    gtest_discover_tests(${name}_test DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 300 PROPERTIES TIMEOUT ${SLUICE_TEST_SECONDS}
                         EXTRA_ARGS --gtest_brief=1)
  endif()
endfunction()

# What is precompiled for all.
set(SLUICE_STD_HEADERS <algorithm> <array> <atomic> <chrono> <cstdint> <functional> <memory> <mutex> <optional> <span>
                       <string> <string_view> <unordered_map> <variant> <vector> <fmt/format.h>)

# A precompiled header that components share. `headers` are system headers only: a change of ours never rebuilds it.
function(sluice_pch name)
  cmake_parse_arguments(ARG "" "" "HEADERS;DEPS" ${ARGN})
  set(stub ${CMAKE_BINARY_DIR}/pch_${name}.cc)
  file(CONFIGURE OUTPUT ${stub} CONTENT "namespace sluice {}\n")
  add_library(sluice_pch_${name} STATIC ${stub})
  target_link_libraries(sluice_pch_${name} PUBLIC ${ARG_DEPS})
  target_precompile_headers(sluice_pch_${name} PRIVATE ${ARG_HEADERS})
endfunction()
