#include "engine/explain/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

namespace sluice::engine {
namespace {

constexpr double kMiB = 1 << 20, kGiB = 1 << 30;

// Of the server's flags, those that a layout and its figures depend on.
bool changes_what_is_explained(std::string_view name) {
  constexpr std::array kNames = {"model-path",
                                 "dtype",
                                 "context-length",
                                 "kv-cache-dtype",
                                 "json-model-override-args",
                                 "dp-size",
                                 "tp-size",
                                 "ep-size",
                                 "enable-dp-attention",
                                 "enable-dp-lm-head",
                                 "moe-dense-tp-size",
                                 "moe-a2a-backend",
                                 "deepep-dispatch-dtype",
                                 "deepep-mode",
                                 "enable-two-batch-overlap",
                                 "ep-num-redundant-experts",
                                 "init-expert-location",
                                 "ep-dispatch-algorithm",
                                 "enable-eplb",
                                 "eplb-algorithm",
                                 "mem-fraction-static",
                                 "max-total-tokens",
                                 "page-size",
                                 "disable-radix-cache",
                                 "max-running-requests",
                                 "chunked-prefill-size",
                                 "max-prefill-tokens"};
  return std::ranges::find(kNames, name) != kNames.end();
}

struct Joined {
  std::vector<internal::OptionSpec> all;  // ours first
  std::vector<internal::OptionSpec> relevant;
};

const Joined& joined() {
  static const Joined tables = [] {
    Joined join;
    join.all = join.relevant = explain_option_table().specs();
    for (const internal::OptionSpec& spec : engine_option_table().specs()) {
      join.all.push_back(spec);
      if (changes_what_is_explained(spec.name)) join.relevant.push_back(spec);
    }
    return join;
  }();
  return tables;
}

}  // namespace

const OptionTable<ExplainOptions>& explain_option_table() {
  using O = ExplainOptions;
  using OptReal = std::optional<double>;
  constexpr std::string_view kHere = "engine/explain/options";
  constexpr std::string_view kHardware = "Hardware", kLoad = "Load";
  static const OptionTable<O> table({
      {.name = "json",
       .field = &O::json,
       .value = false,
       .read_by = "cli/explain",
       .group = "Output",
       .help = "Print everything as one JSON object."},
      {.name = "hardware",
       .field = &O::hardware,
       .value = std::string("cpu"),
       .choices = {"cpu", "other", "a100", "h100", "h200", "b200"},
       .read_by = kHere,
       .group = kHardware,
       .help = "What the ranks run on: this machine, which is measured for some seconds; a GPU by its data sheet; or "
               "other, with the figures given by the flags below, which also change single figures of the rest."},
      {.name = "num-gpus",
       .field = &O::num_gpus,
       .value = std::optional<int64_t>(),
       .range = {1, 4096},
       .read_by = kHere,
       .group = kHardware,
       .help = "Devices among which layouts are weighed; default: as many as the layout given has ranks, on this "
               "machine its cores."},
      {.name = "gpu-memory",
       .field = &O::gpu_memory,
       .value = OptReal(),
       .range = {0.001, 1e6},
       .metavar = "GIB",
       .read_by = kHere,
       .group = kHardware,
       .help = "Memory of a device in GiB."},
      {.name = "gpu-bandwidth",
       .field = &O::gpu_bandwidth,
       .value = OptReal(),
       .range = {0.001, 1e6},
       .metavar = "GB/S",
       .read_by = kHere,
       .group = kHardware,
       .help = "Bandwidth of a device's memory in GB/s, as reached."},
      {.name = "gpu-flops",
       .field = &O::gpu_flops,
       .value = OptReal(),
       .range = {0.00001, 1e6},
       .metavar = "TFLOPS",
       .read_by = kHere,
       .group = kHardware,
       .help = "Operations of matrix products per second in 10^12, as reached."},
      {.name = "link-bandwidth",
       .field = &O::link_bandwidth,
       .value = OptReal(),
       .range = {0.001, 1e6},
       .metavar = "GB/S",
       .read_by = kHere,
       .group = kHardware,
       .help = "What arrives at a device from the others in GB/s, as reached."},
      {.name = "link-latency",
       .field = &O::link_latency,
       .value = OptReal(),
       .range = {0, 1e6},
       .metavar = "US",
       .read_by = kHere,
       .group = kHardware,
       .help = "What a collective call takes at least, in microseconds."},
      {.name = "efficiency",
       .field = &O::efficiency,
       .value = 0.7,
       .range = {0.01, 1},
       .read_by = kHere,
       .group = kHardware,
       .help = "Share of a data sheet's rates that is taken to be reached."},
      {.name = "input-len",
       .field = &O::input_len,
       .value = int64_t{1024},
       .range = {1, 1 << 24},
       .read_by = "cli/explain",
       .group = kLoad,
       .help = "Prompt tokens of a request."},
      {.name = "output-len",
       .field = &O::output_len,
       .value = int64_t{256},
       .range = {1, 1 << 24},
       .read_by = "cli/explain",
       .group = kLoad,
       .help = "Output tokens of a request."},
      {.name = "concurrency",
       .field = &O::concurrency,
       .value = StringList{},
       .metavar = "N",
       .read_by = kHere,
       .group = kLoad,
       .help =
           "Requests at a time for which throughput is predicted; default: 1 2 4 ... 512. Layouts are ranked at the "
           "last."},
  });
  return table;
}

const std::vector<internal::OptionSpec>& explain_option_specs() { return joined().relevant; }

Result<ExplainArguments> parse_explain_arguments(const std::vector<std::string>& arguments) {
  const auto& ours = explain_option_table();
  const auto& engines = engine_option_table();
  SLUICE_TRY(const auto given,
             internal::parse_options(joined().all, engines.rejected(), arguments, /*allow_prefixes=*/true));
  ExplainArguments parsed{engines.defaults(), ours.defaults()};
  for (const auto& [row, value] : given) {
    if (row < ours.size()) {
      ours.assign(parsed.explain, row, value);
    } else {
      engines.assign(parsed.engine, row - ours.size(), value);
    }
  }
  return parsed;
}

Result<std::vector<int64_t>> concurrency_of(const ExplainOptions& options) {
  std::vector<int64_t> all;
  for (const std::string& text : options.concurrency) {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < 1 || value > 1'000'000) {
      return Error{ErrorCode::kBadOption,
                   fmt::format("--concurrency: '{}' is not a whole number from 1 to 1000000", text)};
    }
    all.push_back(value);
  }
  if (all.empty()) {
    for (int64_t value = 1; value <= 512; value *= 2) all.push_back(value);
  }
  std::ranges::sort(all);
  return all;
}

Result<Hardware> hardware_of(const ExplainOptions& options, int64_t ranks) {
  Hardware hardware = other_hardware(options.num_gpus.value_or(ranks));
  if (options.hardware == "cpu") {
    SLUICE_TRY(hardware, measure_this_machine());
    hardware.devices = options.num_gpus.value_or(std::max(ranks, hardware.devices));
  } else if (options.hardware != "other") {
    SLUICE_TRY(hardware, hardware_named(options.hardware, hardware.devices, options.efficiency));
  }
  if (options.gpu_memory) hardware.memory_bytes = static_cast<int64_t>(*options.gpu_memory * kGiB / kMiB) << 20;
  if (options.gpu_bandwidth) hardware.bandwidth = *options.gpu_bandwidth * 1e9;
  if (options.gpu_flops) hardware.flops = *options.gpu_flops * 1e12;
  if (options.link_bandwidth) hardware.link_bandwidth = *options.link_bandwidth * 1e9;
  if (options.link_latency) hardware.link_latency = *options.link_latency * 1e-6;
  const std::pair<std::string_view, double> needed[] = {{"gpu-memory", static_cast<double>(hardware.memory_bytes)},
                                                        {"gpu-bandwidth", hardware.bandwidth},
                                                        {"gpu-flops", hardware.flops},
                                                        {"link-bandwidth", hardware.link_bandwidth}};
  for (const auto& [flag, value] : needed) {
    if (value > 0) continue;
    return Error{ErrorCode::kBadOption, fmt::format("--hardware other needs --{}, a positive number", flag)};
  }
  return hardware;
}

}  // namespace sluice::engine
