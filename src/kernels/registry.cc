#include <fmt/format.h>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/kernels.h"
#include "kernels/sim/sim_backend.h"

namespace sluice::kernels {

const std::vector<BackendRow>& backends() {
  static const std::vector<BackendRow> rows = {
      {"cpu", make_cpu_backend, /*host_visible=*/true, "this machine's cores"},
      {"sim", make_sim_backend, /*host_visible=*/false,
       "the CPU behind an address space of its own and a queue: proves that nothing above the "
       "kernels depends on host memory"},
  };
  return rows;
}

const BackendRow* find_backend(std::string_view name) {
  for (const BackendRow& row : backends()) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

Result<std::unique_ptr<Backend>> make_backend(std::string_view name, int threads) {
  if (const BackendRow* row = find_backend(name)) return row->make(threads);
  std::string known;
  for (const BackendRow& row : backends()) {
    known += fmt::format("{}{}", known.empty() ? "" : ", ", row.name);
  }
  return Error{ErrorCode::kBadOption, fmt::format("unknown device '{}'; the devices are: {}", name, known)};
}

DType best_dtype() { return __builtin_cpu_supports("avx512bf16") ? DType::kBf16 : DType::kF32; }

}  // namespace sluice::kernels
