// A device without hardware. Its memory cannot be touched from the host (an access faults), and work is queued and runs
// only when the stream is synchronised: what passes here does not depend on the CPU being the device. The arithmetic is
// the CPU's.
#pragma once

#include <memory>

#include "kernels/kernels.h"

namespace sluice::kernels {

std::unique_ptr<Backend> make_sim_backend(int threads);

}  // namespace sluice::kernels
