#include "gateway/memory.h"

#include <malloc.h>

#include "base/check.h"

namespace sluice::gateway {

void keep_freed_memory() {
  SLUICE_CHECK(mallopt(M_MMAP_THRESHOLD, 1 << 20) == 1 && mallopt(M_TRIM_THRESHOLD, 16 << 20) == 1,
               "the allocator refuses its thresholds");
}

}  // namespace sluice::gateway
