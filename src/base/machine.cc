#include "base/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <optional>
#include <sstream>
#include <string_view>
#include <vector>

namespace sluice {
namespace {

std::optional<std::string> first_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  if (!std::getline(in, line)) return std::nullopt;
  return line;
}

std::optional<int64_t> number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end == text.data()) return std::nullopt;
  return value;
}

// Folders of the cgroups that this process is in, innermost first, up to the mount's root.
std::vector<std::string> cgroup_folders(const CgroupPlaces& places, std::string_view controller) {
  std::vector<std::string> folders;
  std::ifstream in(places.membership);
  for (std::string line; std::getline(in, line);) {
    // "0::/path" (v2) or "4:memory:/path" (v1).
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    std::string root;
    if (controllers.empty()) {
      root = places.mount;
    } else if (("," + controllers + ",").find("," + std::string(controller) + ",") != std::string::npos) {
      root = places.mount + "/" + controllers;
    } else {
      continue;
    }
    while (path.find('/') != std::string::npos && path != "/") {
      folders.push_back(root + path);
      path.erase(path.find_last_of('/'));
    }
    folders.push_back(root);
  }
  return folders;
}

}  // namespace

int64_t usable_cores(const CgroupPlaces& places) {
  cpu_set_t set;
  int64_t cores = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : sysconf(_SC_NPROCESSORS_ONLN);
  const auto bound_by = [&](double quota, double period) {
    if (quota > 0 && period > 0) cores = std::min(cores, static_cast<int64_t>(std::ceil(quota / period)));
  };
  for (const auto& folder : cgroup_folders(places, "cpu")) {
    if (const auto line = first_line(folder + "/cpu.max")) {  // "max 100000" or "200000 100000"
      std::istringstream words(*line);
      std::string quota;
      double period = 0;
      words >> quota >> period;
      if (const auto n = number(quota)) bound_by(static_cast<double>(*n), period);
    }
    const auto quota = first_line(folder + "/cpu.cfs_quota_us");
    const auto period = first_line(folder + "/cpu.cfs_period_us");
    if (quota && period) {
      bound_by(static_cast<double>(number(*quota).value_or(-1)), static_cast<double>(number(*period).value_or(0)));
    }
  }
  return std::max<int64_t>(1, cores);
}

int64_t memory_limit_bytes(const CgroupPlaces& places) {
  int64_t limit = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  for (const auto& folder : cgroup_folders(places, "memory")) {
    for (const auto* file : {"/memory.max", "/memory.limit_in_bytes"}) {
      const auto line = first_line(folder + file);
      if (const auto bytes = line ? number(*line) : std::nullopt; bytes && *bytes > 0) limit = std::min(limit, *bytes);
    }
  }
  return limit;
}

int64_t cold_bytes() {
  constexpr int64_t kAtLeast = 256 << 20;  // where the system does not know its caches
  return std::min(std::max<int64_t>(4 * sysconf(_SC_LEVEL3_CACHE_SIZE), kAtLeast), memory_limit_bytes() / 8);
}

}  // namespace sluice
