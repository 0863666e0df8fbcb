#include "engine/explain/hardware.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/clock.h"
#include "base/huge_pages.h"
#include "base/machine.h"
#include "kernels/kernels.h"

namespace sluice::engine {
namespace {

constexpr double kMiB = 1 << 20;
// The engine's default on a machine that other programs use too, and the runtime's where it does not know the device.
constexpr double kMachineFraction = 0.5, kDeviceFraction = 0.88;
constexpr int64_t kDeviceChunk = 8192;
// Of processes that meet in shared memory, on cores that they have to share (docs/results/collectives.md).
constexpr double kSharedMemoryLatency = 30e-6;

// The shortest of a few runs: what else runs only makes them longer.
template <class F>
double shortest_seconds(int runs, const F& run) {
  double best = 1e9;
  for (int i = 0; i < runs; ++i) {
    const TimePoint begin = real_clock().now();
    run();
    best = std::min(best, seconds(real_clock().now() - begin));
  }
  return best;
}

// y = x W^T with weights that are in no cache when they are needed.
class Products {
 public:
  static Result<std::unique_ptr<Products>> make(int threads) {
    SLUICE_TRY(auto backend, kernels::make_backend("cpu", threads));
    std::unique_ptr<Products> products(new Products(std::move(backend)));
    const kernels::RowReader rows = [](int64_t, int64_t count, void* to) {
      std::memset(to, 0, static_cast<size_t>(count * kIn) * sizeof(float));
    };
    const size_t bytes = products->backend_->packed_bytes(products->shape_);
    products->weights_.resize(static_cast<size_t>(cold_bytes()) / bytes + 1);
    for (void*& weight : products->weights_) {
      SLUICE_TRY(weight, products->backend_->allocate(bytes));
      prefer_huge_pages(weight, bytes);  // as weights lie when they are served
      products->backend_->pack(products->shape_, rows, weight);
    }
    return products;
  }

  ~Products() {
    for (void* weight : weights_) {
      if (weight != nullptr) backend_->release(weight, backend_->packed_bytes(shape_));
    }
  }
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  double bytes() const { return static_cast<double>(backend_->packed_bytes(shape_) * weights_.size()); }
  double operations(int64_t rows) const {
    return 2.0 * kIn * kOut * static_cast<double>(rows * static_cast<int64_t>(weights_.size()));
  }
  double seconds_with(int64_t rows) {
    const auto padded = static_cast<size_t>(backend_->padded_rows(rows));
    std::vector<char> in(padded * kIn * sizeof(float) + 64);
    std::vector<char> out(padded * kOut * sizeof(float) + 64);
    const auto run = [&] {
      for (const void* weight : weights_) {
        backend_->linear(context_, {.shape = &shape_,
                                    .weight = weight,
                                    .in = aligned(in),
                                    .out = reinterpret_cast<float*>(aligned(out)),
                                    .n = rows});
      }
    };
    run();
    return shortest_seconds(3, run);
  }

 private:
  static constexpr int64_t kIn = 2048, kOut = 8192;

  explicit Products(std::unique_ptr<kernels::Backend> backend)
      : backend_(std::move(backend)), stream_(backend_->make_stream()), context_{backend_.get(), stream_.get()} {
    shape_ = {.in = kIn, .out = kOut, .dtype = kernels::best_dtype()};
  }
  static char* aligned(std::vector<char>& memory) {
    const auto at = reinterpret_cast<uintptr_t>(memory.data());
    return memory.data() + ((64 - at % 64) % 64);
  }

  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<kernels::Stream> stream_;
  kernels::Context context_;
  kernels::LinearShape shape_;
  std::vector<void*> weights_;
};

}  // namespace

Hardware Hardware::of(int64_t ranks) const {
  if (!divisible) return *this;
  Hardware part = *this;
  const auto n = static_cast<double>(ranks);
  part.memory_bytes = memory_bytes / ranks;
  part.bandwidth /= n;
  part.flops /= n;
  part.link_bandwidth /= n;
  return part;
}

const std::vector<HardwareRow>& known_hardware() {
  static const std::vector<HardwareRow> rows = {
      {"a100", 81'920, 2'039, 312, 300, 10},
      {"h100", 81'559, 3'350, 989, 450, 10},
      {"h200", 143'771, 4'800, 989, 450, 10},
      {"b200", 183'359, 8'000, 2'250, 900, 10},
  };
  return rows;
}

Hardware other_hardware(int64_t devices) {
  return {.name = "other", .devices = devices, .memory_fraction = kDeviceFraction, .default_chunk = kDeviceChunk};
}

Result<Hardware> hardware_named(std::string_view name, int64_t devices, double efficiency) {
  std::string known;
  for (const HardwareRow& row : known_hardware()) {
    known += fmt::format("{}, ", row.name);
    if (row.name != name) continue;
    return Hardware{.name = std::string(name),
                    .devices = devices,
                    .memory_bytes = static_cast<int64_t>(row.memory_mib * kMiB),
                    .bandwidth = row.bandwidth_gb * 1e9 * efficiency,
                    .flops = row.tflops * 1e12 * efficiency,
                    .link_bandwidth = row.link_gb * 1e9 * efficiency,
                    .link_latency = row.link_latency_us * 1e-6,
                    .memory_fraction = kDeviceFraction,
                    .default_chunk = kDeviceChunk};
  }
  return Error{ErrorCode::kBadOption, fmt::format("--hardware {} is not known; {}cpu and other are", name, known)};
}

Hardware this_machine() {
  return {.name = "this machine",
          .devices = usable_cores(),
          .memory_bytes = memory_limit_bytes(),
          .link_latency = kSharedMemoryLatency,
          .memory_fraction = kMachineFraction,
          .divisible = true,
          .sums = {}};
}

Result<Hardware> measure_this_machine() {
  Hardware machine = this_machine();
  SLUICE_TRY(const auto products, Products::make(static_cast<int>(usable_cores())));
  machine.bandwidth = products->bytes() / products->seconds_with(1);
  machine.flops = products->operations(256) / products->seconds_with(256);
  std::vector<char> from(64 << 20, 1), to(from.size());
  // What arrives is written by one rank and read by another.
  const double copied = shortest_seconds(3, [&] { std::memcpy(to.data(), from.data(), from.size()); });
  machine.link_bandwidth = static_cast<double>(from.size()) / copied / 2;
  return machine;
}

}  // namespace sluice::engine
