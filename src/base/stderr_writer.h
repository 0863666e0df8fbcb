// Writes to a stderr that may not be read: a pager that was left open, a stopped terminal. Nobody waits for its reader:
// what does not fit is lost, and how much that was is said when it reads again.
#pragma once

#include <string_view>

namespace sluice {

// Any thread. Of bytes in one call, up to 4 KiB, nothing else is in between.
void write_stderr(std::string_view bytes);

}  // namespace sluice
