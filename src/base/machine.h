// What this process may use of the machine: containers get a part of it, which nothing that counts processors or
// memory modules shows.
#pragma once

#include <cstdint>
#include <string>

namespace sluice {

// Where the system says so.
struct CgroupPlaces {
  std::string membership = "/proc/self/cgroup";
  std::string mount = "/sys/fs/cgroup";
};

// Processors that this process may use: its affinity, and the quotas of the cgroups that it is in (v1 and v2), rounded
// up. At least 1.
int64_t usable_cores(const CgroupPlaces& places = {});
// The smaller of the machine's memory and the limits of those cgroups.
int64_t memory_limit_bytes(const CgroupPlaces& places = {});

// How much has to be read from end to end so that next to nothing of it comes from a cache the next time: four times
// the last one, which on some machines has 300 MB. At most an eighth of the memory.
int64_t cold_bytes();

}  // namespace sluice
