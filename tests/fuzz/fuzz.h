// What the targets share. A target is one file with LLVMFuzzerTestOneInput(): clang's libFuzzer drives it where clang
// is installed (-DSLUICE_FUZZERS=ON), tests/fuzz/driver.cc everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace sluice::fuzz {

// Ends the process, as the sanitizers do: the input is then what has to be looked at.
#define FUZZ_CHECK(condition, what)                                                                \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      std::fprintf(stderr, "%s:%d: %s does not hold: %s\n", __FILE__, __LINE__, #condition, what); \
      std::abort();                                                                                \
    }                                                                                              \
  } while (false)

// The input as a supply of small decisions, and what is left of it as text.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

  // 0 once there is nothing left.
  uint8_t byte() {
    if (rest_.empty()) return 0;
    const auto value = static_cast<uint8_t>(rest_.front());
    rest_.remove_prefix(1);
    return value;
  }
  std::string_view rest() const { return rest_; }

 private:
  std::string_view rest_;
};

// Lengths of pieces, 1 to 16, the same ones for the same seed.
class Splits {
 public:
  explicit Splits(uint8_t seed) : state_(seed * 2654435761u + 1) {}
  size_t next(size_t left) {
    state_ = state_ * 1664525 + 1013904223;
    const size_t piece = 1 + (state_ >> 28);
    return piece < left ? piece : left;
  }

 private:
  uint32_t state_;
};

}  // namespace sluice::fuzz
