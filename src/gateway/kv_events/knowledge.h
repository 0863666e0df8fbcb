#pragma once

#include <cstdint>

namespace sluice::gateway {

// How much of a worker's cache the index of blocks has.
enum class KvKnowledge : uint8_t {
  kNothing,
  kPart,  // what it has is held there; there may be more
  kAll,
};

}  // namespace sluice::gateway
