// The process's allocator, for one that passes prompts on.
#pragma once

namespace sluice::gateway {

// What requests free is kept for the next ones, up to some megabytes for each thread: by default the allocator gives a
// prompt of 200 KB back to the system at once, and the next one pays for 30 page faults, a tenth of all that it costs.
// What is larger than a megabyte still goes back. Of the whole process; before its first thread.
void keep_freed_memory();

}  // namespace sluice::gateway
