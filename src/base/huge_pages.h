// Memory that is read from end to end, as weights are in every step.
#pragma once

#include <cstddef>

namespace sluice {

// Asks the system for large pages from now on. In pages of 4 KiB the processor looks up each, twice in a virtual
// machine, and prefetches no further: large ones are read half as fast again and more. Where the system has none left,
// or gives none to shared memory, pages stay small. Call it before the memory is touched.
void prefer_huge_pages(void* memory, size_t bytes);

}  // namespace sluice
