// What a rank computes with, as few numbers: enough to say how long a step takes at best.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "models/wire_bytes.h"

namespace sluice::engine {

// Rates are of one device and what programs reach, not what data sheets promise.
struct Hardware {
  std::string name;
  int64_t devices = 1;
  int64_t memory_bytes = 0;    // of a device
  double bandwidth = 0;        // bytes per second of reading weights and KV
  double flops = 0;            // operations per second of matrix products
  double link_bandwidth = 0;   // bytes per second that arrive from other devices
  double link_latency = 0;     // seconds that a collective call takes at least
  double memory_fraction = 0;  // for weights and KV, where no flag says
  int64_t default_chunk = 0;   // prompt tokens of a step, where no flag says; 0: the engine's own default
  // One machine whose memory, bandwidth and arithmetic any number of ranks divide among them; `devices` is then the
  // largest number of ranks that is weighed, and the figures are the machine's.
  bool divisible = false;
  models::SumRule sums = models::kAlwaysShare;  // how sums to all ranks travel

  bool has_rates() const { return bandwidth > 0 && flops > 0; }
  // As each of `ranks` has it.
  Hardware of(int64_t ranks) const;
};

struct HardwareRow {
  std::string_view name;
  double memory_mib, bandwidth_gb, tflops, link_gb, link_latency_us;  // of the data sheets; tflops dense, bf16
};
const std::vector<HardwareRow>& known_hardware();
// kBadOption names those that are known. Rates are those of the data sheet times `efficiency`.
Result<Hardware> hardware_named(std::string_view name, int64_t devices, double efficiency);

// Without any figures.
Hardware other_hardware(int64_t devices);

// This machine, without rates.
Hardware this_machine();
// With rates: what our products with weights in the cache of no core reach with all cores, and what copying does. Takes
// some seconds.
Result<Hardware> measure_this_machine();

}  // namespace sluice::engine
