// The process's allocator, for one that passes prompts on.
#pragma once

namespace sluice::gateway {

// What requests free is kept for the next ones, up to 16 MB at the end of each arena: by default the allocator gives a
// prompt of 200 KB back to the system, and the next one pays for its page faults. What is larger than a megabyte is
// mapped and goes back each time, for memory is to be bounded. Of the whole process; before its first thread.
void keep_freed_memory();

}  // namespace sluice::gateway
