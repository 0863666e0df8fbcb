// `sluice bench policy`: policies side by side in virtual time (gateway/simulator).
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "gateway/options.h"
#include "gateway/policy/policy.h"
#include "gateway/simulator/simulator.h"

namespace sluice::cli {
namespace {

using gateway::SimulationResult;
using gateway::SimulationRules;

struct BenchPolicyOptions {
  StringList policies;
  std::string workload;
  std::optional<std::string> trace;
  double request_rate;
  int64_t max_concurrency;
  double duration_secs, warm_up_secs;
  int64_t seeds;
  bool streamed;
  std::optional<std::string> output_file;

  int64_t groups, system_chars, question_chars;

  int64_t workers, kv_blocks, decode_slots;
  double prefill_base_ms, prefill_us_per_token, decode_ms, trace_decode_ms_per_token;
};

const OptionTable<BenchPolicyOptions>& option_table() {
  using O = BenchPolicyOptions;
  constexpr std::string_view kHere = "cli/bench_policy";
  static const OptionTable<O> table({
      {.name = "policies",
       .field = &O::policies,
       .value = StringList{},
       .metavar = "NAME",
       .read_by = kHere,
       .group = "Run",
       .help = "Policies to compare, oracle among them: the choice of somebody who sees the workers' caches and "
               "queues. None "
               "given = all."},
      {.name = "request-rate",
       .field = &O::request_rate,
       .value = 400.0,
       .range = {0.001, 1e6},
       .read_by = kHere,
       .group = "Run",
       .help = "Requests per second, by a Poisson process."},
      {.name = "max-concurrency",
       .field = &O::max_concurrency,
       .value = int64_t{0},
       .range = {0, 1e6},
       .read_by = kHere,
       .group = "Run",
       .help = "So many requests are always in flight, whatever --request-rate says; 0 = off."},
      {.name = "duration-secs",
       .field = &O::duration_secs,
       .value = 30.0,
       .range = {0.1, 1e7},
       .read_by = kHere,
       .group = "Run",
       .help = "Simulated seconds that are measured."},
      {.name = "warm-up-secs",
       .field = &O::warm_up_secs,
       .value = 2.0,
       .range = {0, 1e7},
       .read_by = kHere,
       .group = "Run",
       .help = "Simulated seconds before them."},
      {.name = "seeds",
       .field = &O::seeds,
       .value = int64_t{3},
       .range = {1, 1000},
       .read_by = kHere,
       .group = "Run",
       .help = "Runs with seeds 1, 2, ...; the medians are printed."},
      {.name = "streamed",
       .field = &O::streamed,
       .value = false,
       .read_by = kHere,
       .group = "Run",
       .help = "Answers are streamed, so that the gateway sees their first tokens."},
      {.name = "output-file",
       .field = &O::output_file,
       .value = std::optional<std::string>(),
       .metavar = "FILE",
       .read_by = kHere,
       .group = "Run",
       .help = "Append one JSON line for each policy and seed."},
      {.name = "workload",
       .field = &O::workload,
       .value = std::string("uniform"),
       .choices = {"uniform", "hot"},
       .read_by = kHere,
       .group = "Workload",
       .help = "Groups of requests that begin alike: all in turn, or half of the requests from one of them."},
      {.name = "trace",
       .field = &O::trace,
       .value = std::optional<std::string>(),
       .metavar = "FILE",
       .read_by = kHere,
       .group = "Workload",
       .help =
           "Replay JSON lines instead: timestamp in ms, text or hash_ids with input_length (as Mooncake's traces), and "
           "output_length if known."},
      {.name = "groups",
       .field = &O::groups,
       .value = int64_t{64},
       .range = {1, 1e6},
       .read_by = kHere,
       .group = "Workload",
       .help = "Groups."},
      {.name = "system-chars",
       .field = &O::system_chars,
       .value = int64_t{8192},
       .range = {0, 1e8},
       .read_by = kHere,
       .group = "Workload",
       .help = "Characters that the prompts of a group share."},
      {.name = "question-chars",
       .field = &O::question_chars,
       .value = int64_t{512},
       .range = {1, 1e8},
       .read_by = kHere,
       .group = "Workload",
       .help = "Characters of a prompt that never repeat."},
      {.name = "workers",
       .field = &O::workers,
       .value = int64_t{4},
       .range = {1, 10000},
       .read_by = kHere,
       .group = "Workers",
       .help = "Workers."},
      {.name = "kv-blocks",
       .field = &O::kv_blocks,
       .value = int64_t{3277},
       .range = {1, 1e9},
       .read_by = kHere,
       .group = "Workers",
       .help = "Blocks of 64 characters (16 tokens) that the prefix cache of a worker holds, least recently used out "
               "first."},
      {.name = "decode-slots",
       .field = &O::decode_slots,
       .value = int64_t{64},
       .range = {1, 1e6},
       .read_by = kHere,
       .group = "Workers",
       .help = "Requests that decode at once."},
      {.name = "prefill-base-ms",
       .field = &O::prefill_base_ms,
       .value = 1.0,
       .range = {0, 1e6},
       .read_by = kHere,
       .group = "Workers",
       .help = "Milliseconds of every prefill ..."},
      {.name = "prefill-us-per-token",
       .field = &O::prefill_us_per_token,
       .value = 20.0,
       .range = {0, 1e6},
       .read_by = kHere,
       .group = "Workers",
       .help = "... and microseconds of each token that is not cached."},
      {.name = "decode-ms",
       .field = &O::decode_ms,
       .value = 100.0,
       .range = {0, 1e7},
       .read_by = kHere,
       .group = "Workers",
       .help = "Milliseconds of decoding."},
      {.name = "trace-decode-ms-per-token",
       .field = &O::trace_decode_ms_per_token,
       .value = 5.0,
       .range = {0, 1e6},
       .read_by = kHere,
       .group = "Workers",
       .help = "Milliseconds of each token of an output_length."},
  });
  return table;
}

Duration milliseconds(double ms) { return from_seconds(ms / 1000); }

SimulationRules rules_of(const BenchPolicyOptions& options) {
  SimulationRules rules{.workers = options.workers,
                        .decode = milliseconds(options.decode_ms),
                        .concurrency = options.max_concurrency,
                        .warm_up = from_seconds(options.warm_up_secs),
                        .duration = from_seconds(options.duration_secs),
                        .streamed = options.streamed};
  rules.worker.kv_blocks = options.kv_blocks;
  rules.worker.decode_slots = options.decode_slots;
  rules.worker.prefill_base = milliseconds(options.prefill_base_ms);
  rules.worker.prefill_per_token = milliseconds(options.prefill_us_per_token / 1000);
  return rules;
}

Result<std::unique_ptr<gateway::Workload>> workload_of(const BenchPolicyOptions& options, uint64_t seed) {
  if (options.trace) return gateway::read_trace(*options.trace, milliseconds(options.trace_decode_ms_per_token));
  return gateway::make_groups({.groups = options.groups,
                               .system_chars = options.system_chars,
                               .question_chars = options.question_chars,
                               .hot = options.workload == "hot",
                               .rate = options.max_concurrency > 0 ? 0 : options.request_rate,
                               .seed = seed});
}

nlohmann::ordered_json json_of(const SimulationResult& result, uint64_t seed) {
  return {{"policy", result.policy},
          {"seed", seed},
          {"requests", result.requests},
          {"requests_per_s", result.requests_per_s},
          {"hit_rate", result.hit_rate},
          {"predicted_hit_rate", result.predicted_hit_rate},
          {"latency_p50_s", result.latency_p50},
          {"latency_p99_s", result.latency_p99},
          {"ttft_p50_s", result.ttft_p50},
          {"ttft_p99_s", result.ttft_p99},
          {"imbalance", result.imbalance}};
}

void print_row(const std::string& policy, const std::vector<SimulationResult>& results) {
  const auto median = [&](auto field) {
    std::vector<double> values;
    for (const SimulationResult& result : results) values.push_back(result.*field);
    std::ranges::sort(values);
    return values[values.size() / 2];
  };
  using R = SimulationResult;
  fmt::print("{:<20} {:>9.1f} {:>7.1f} {:>9.1f} {:>9.1f} {:>9.1f} {:>9.1f} {:>9.1f} {:>9.2f}\n", policy,
             median(&R::requests_per_s), 100 * median(&R::hit_rate), 100 * median(&R::predicted_hit_rate),
             1000 * median(&R::latency_p50), 1000 * median(&R::latency_p99), 1000 * median(&R::ttft_p50),
             1000 * median(&R::ttft_p99), median(&R::imbalance));
  std::fflush(stdout);
}

}  // namespace

OptionView bench_policy_options() { return view_of(option_table()); }

int run_bench_policy(const Arguments& arguments) {
  // What follows "--" is for the policies, as the gateway takes it.
  const auto split = std::ranges::find(arguments, "--");
  const auto options = option_table().parse({arguments.begin(), split});
  if (!options.ok()) return fail(options.error());
  const auto flags =
      gateway::gateway_option_table().parse({split == arguments.end() ? split : split + 1, arguments.end()});
  if (!flags.ok()) return fail(flags.error());

  std::vector<std::string> names = options->policies;
  if (names.empty()) {
    names.emplace_back(gateway::kOracle);
    for (const auto& row : gateway::policies()) names.emplace_back(row.name);
  }
  for (const std::string& name : names) {
    if (name != gateway::kOracle && gateway::find_policy(name) == nullptr) {
      return fail({ErrorCode::kBadOption, fmt::format("--policies: {} is no policy", name)});
    }
  }
  std::ofstream file;
  if (options->output_file) {
    file.open(*options->output_file, std::ios::app);
    if (!file)
      return fail({ErrorCode::kBadOption, fmt::format("--output-file: cannot write to {}", *options->output_file)});
  }

  fmt::print("{:<20} {:>9} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n", "policy", "req/s", "hit %", "believed",
             "p50 ms", "p99 ms", "ttft p50", "ttft p99", "max/mean");
  SimulationRules rules = rules_of(*options);
  for (const std::string& name : names) {
    std::vector<SimulationResult> results;
    for (int64_t seed = 1; seed <= options->seeds; ++seed) {
      rules.seed = static_cast<uint64_t>(seed);
      auto workload = workload_of(*options, rules.seed);
      if (!workload.ok()) return fail(workload.error());
      results.push_back(gateway::simulate(rules, name, *flags, **workload));
      if (file.is_open()) file << json_of(results.back(), rules.seed).dump() << '\n';
    }
    print_row(name, results);
  }
  if (file.is_open() && !file.flush()) {
    return fail({ErrorCode::kInternal, fmt::format("--output-file: cannot write to {}", *options->output_file)});
  }
  return 0;
}

}  // namespace sluice::cli
