// The CPU: kernels on the rank's thread pool, with the widest vector instructions of this machine; matrix products
// through oneDNN, single-threaded from our threads.
#pragma once

#include <memory>

#include "kernels/kernels.h"

namespace sluice::kernels {

std::unique_ptr<Backend> make_cpu_backend(int threads);

}  // namespace sluice::kernels
