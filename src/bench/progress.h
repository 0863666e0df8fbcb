// The line that a terminal shows during a run.
#pragma once

#include <string>

#include "bench/driver.h"

namespace sluice::bench {

// " 52%|██████▎     | 523/1000 [00:12<00:11, 41.90it/s], 3 failed", at most `width` columns.
std::string progress_line(const Progress& progress, size_t width);

}  // namespace sluice::bench
