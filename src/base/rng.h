// A small fast random source with a seed (xoshiro256**, Blackman and Vigna 2018, seeded by splitmix64). Used by one
// thread at a time. Not for secrets.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/check.h"

namespace sluice {

class Rng {
 public:
  using result_type = uint64_t;

  explicit Rng(uint64_t seed) {
    for (auto& word : state_) {
      seed += 0x9e3779b97f4a7c15;
      uint64_t z = seed;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
      z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
      word = z ^ (z >> 31);
    }
  }

  uint64_t next() {
    const uint64_t result = rotl(state_[1] * 5, 7) * 9;
    const uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = rotl(state_[3], 45);
    return result;
  }
  uint64_t operator()() { return next(); }
  static constexpr uint64_t min() { return 0; }
  static constexpr uint64_t max() { return ~uint64_t{0}; }

  // Uniform in [0, n), n > 0, without modulo bias (Lemire 2019).
  uint64_t below(uint64_t n) {
    SLUICE_CHECK(n > 0, "Rng::below needs a positive bound");
    for (;;) {
      const auto m = static_cast<unsigned __int128>(next()) * n;
      if (static_cast<uint64_t>(m) >= n || static_cast<uint64_t>(m) >= (0 - n) % n)
        return static_cast<uint64_t>(m >> 64);
    }
  }
  // Uniform in [0, 1).
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  // Exponential with the given mean.
  double exponential(double mean) { return -mean * std::log1p(-uniform()); }

 private:
  static uint64_t rotl(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

  uint64_t state_[4];
};

// A seed from the machine's entropy, for where nobody asked for a repeatable run.
uint64_t random_seed();

}  // namespace sluice
