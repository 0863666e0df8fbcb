// The seed of a random test. Runs repeat each other unless SLUICE_TEST_SEED says otherwise; put it in SCOPED_TRACE, so
// that a failure shows it.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace sluice::testing {

inline uint64_t test_seed(uint64_t otherwise = 7) {
  const char* text = std::getenv("SLUICE_TEST_SEED");
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

}  // namespace sluice::testing
