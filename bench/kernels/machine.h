// What a machine gives at best, to hold kernels against.
#pragma once

#include <algorithm>
#include <chrono>
#include <string>

namespace sluice::bench {

// Of the best of some runs, since other programs share the machine.
template <class Body>
double seconds(const Body& body) {
  double best = 1e9;
  for (int i = 0; i < 9; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

struct Machine {
  double read = 0;        // bytes per second of reading memory that no cache holds
  double bf16 = 0;        // operations per second of one large matrix product; 0 where the machine has none in it
  double f32 = 0;         // likewise
  double eight_bits = 0;  // of one of bytes, by oneDNN: ours scale blocks and so do more than multiply
};

// With `threads` threads. Takes cold_bytes() and some seconds.
Machine measure_machine(int threads);

std::string to_string(const Machine& machine, int threads);

}  // namespace sluice::bench
