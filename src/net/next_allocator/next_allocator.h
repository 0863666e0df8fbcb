// Stands between net/block_cache and the C++ library, as what is preloaded would: says what it was asked for.
#pragma once

#include <cstdint>

namespace sluice::net {

// Any thread.
int64_t blocks_made_by_next();
int64_t blocks_taken_back_by_next();

}  // namespace sluice::net
