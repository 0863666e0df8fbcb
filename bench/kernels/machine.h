// What a machine gives at best, to hold kernels against.
#pragma once

#include <string>

namespace sluice::bench {

struct Machine {
  double read = 0;  // bytes per second of reading memory that no cache holds
  double bf16 = 0;  // operations per second of one large matrix product; 0 where the machine has none in it
  double f32 = 0;   // likewise
};

// With `threads` threads; the best of some runs, since other programs share the machine. Takes 512 MiB and about a
// second.
Machine measure_machine(int threads);

std::string to_string(const Machine& machine, int threads);

}  // namespace sluice::bench
