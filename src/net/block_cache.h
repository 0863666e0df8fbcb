// What `operator new` hands out on the threads of event loops. A request takes some thirty small blocks, its coroutines
// among them, and gives them back when it ends. The C library keeps seven of a size for each thread; with many requests
// under way nearly every block goes its slow way. A loop keeps more.
#pragma once

#include <cstddef>

namespace sluice::net {

// From now on this thread keeps blocks of up to 4 KiB that it deletes, at most 64 KiB of each size, for what it makes
// next; until it ends. Blocks may be made on one thread and deleted on another. Does nothing under sanitizers, which
// are to see each block made and freed.
void keep_freed_blocks();

// How many bytes this thread keeps.
size_t kept_block_bytes();

}  // namespace sluice::net
