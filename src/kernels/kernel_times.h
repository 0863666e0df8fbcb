// What each kernel of a run takes: a backend that measures another one's calls.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "kernels/kernels.h"

namespace sluice::kernels {

struct KernelTime {
  int64_t calls = 0;
  double seconds = 0;
  double bytes = 0;       // of weights or cached tokens read; 0 for kernels that read neither
  double operations = 0;  // of products, a multiplication and an addition each
};

// By the kernel's name; products and attention by their shape too. Not thread-safe.
using KernelTimes = std::map<std::string, KernelTime>;

// `backend`, with every kernel's call added to `times`, which outlives it. It must compute at once and in host memory,
// as that of the CPU does: a queued call's time would be that of queueing it.
std::unique_ptr<Backend> time_kernels(std::unique_ptr<Backend> backend, KernelTimes& times);

}  // namespace sluice::kernels
