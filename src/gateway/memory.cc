#include "gateway/memory.h"

#include <malloc.h>

namespace sluice::gateway {

void keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
  mallopt(M_TRIM_THRESHOLD, 16 << 20);
}

}  // namespace sluice::gateway
