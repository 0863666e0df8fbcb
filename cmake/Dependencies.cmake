# What is found here is listed, with its reason, in docs/dependencies.md.
find_package(Threads REQUIRED)
find_package(Boost 1.81 REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(simdjson REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(prometheus-cpp REQUIRED CONFIG)
find_package(nlohmann_json REQUIRED)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
find_package(mimalloc REQUIRED)

# CLI11 is header-only, as is nlohmann-json.
find_path(CLI11_INCLUDE CLI/CLI.hpp REQUIRED)

if(SLUICE_ENGINE)
  find_package(dnnl REQUIRED)
  pkg_check_modules(ZMQ REQUIRED IMPORTED_TARGET libzmq)
  pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
  find_package(ICU REQUIRED COMPONENTS uc)
endif()

if(SLUICE_TESTS)
  find_package(GTest REQUIRED)
endif()
