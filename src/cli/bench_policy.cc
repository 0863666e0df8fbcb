// `sluice bench policy`: policies side by side in virtual time (gateway/simulator), and a running gateway beside them.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/bench_replay.h"
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
  int64_t seeds, first_seed;
  bool streamed;
  std::optional<std::string> output_file;
  std::optional<std::string> url;
  std::string backend, model;

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
               "queues. None given = all, or none with --url."},
      {.name = "url",
       .field = &O::url,
       .value = std::optional<std::string>(),
       .metavar = "URL",
       .read_by = kHere,
       .group = "Run",
       .help =
           "Send the same requests, in real time, to this gateway before workers of sluice bench worker "
           "--cache-simulation with the settings under Workers; the row is called sockets, and each policy named by "
           "--policies gets a row of how far the sockets are from it, in per cent."},
      {.name = "backend",
       .field = &O::backend,
       .value = std::string("sglang"),
       .read_by = kHere,
       .group = "Run",
       .help = "Endpoint of --url, as in sluice bench: sglang is /generate, sglang-oai and vllm are /v1/completions, "
               "sglang-oai-chat and vllm-chat are /v1/chat/completions."},
      {.name = "model",
       .field = &O::model,
       .value = std::string("sim-model"),
       .read_by = kHere,
       .group = "Run",
       .help = "Model that requests to --url name."},
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
       .help =
           "Runs with seeds one after another; the medians are printed. Over sockets the caches are flushed between "
           "them."},
      {.name = "first-seed",
       .field = &O::first_seed,
       .value = int64_t{1},
       .range = {0, 1e9},
       .read_by = kHere,
       .group = "Run",
       .help = "The first of the seeds."},
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

// NaN, which stands for what was not seen, is written as null.
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

// The columns of the table and how they are shown.
struct Column {
  std::string_view title;
  double SimulationResult::*field;
  double scale;
  int width, digits;
};
constexpr Column kColumns[] = {
    {"req/s", &SimulationResult::requests_per_s, 1, 9, 1},
    {"hit %", &SimulationResult::hit_rate, 100, 7, 1},
    {"believed", &SimulationResult::predicted_hit_rate, 100, 9, 1},
    {"p50 ms", &SimulationResult::latency_p50, 1000, 9, 1},
    {"p99 ms", &SimulationResult::latency_p99, 1000, 9, 1},
    {"ttft p50", &SimulationResult::ttft_p50, 1000, 9, 1},
    {"ttft p99", &SimulationResult::ttft_p99, 1000, 9, 1},
    {"max/mean", &SimulationResult::imbalance, 1, 9, 2},
};

// NaN if one is.
double median(const std::vector<SimulationResult>& results, double SimulationResult::*field) {
  std::vector<double> values;
  for (const SimulationResult& result : results) {
    if (std::isnan(result.*field)) return result.*field;
    values.push_back(result.*field);
  }
  std::ranges::sort(values);
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

template <class Show>
void print_line(std::string_view name, Show show) {
  std::string line = fmt::format("{:<20}", name);
  for (const Column& column : kColumns) line += fmt::format(" {:>{}}", show(column), column.width);
  fmt::print("{}\n", line);
  std::fflush(stdout);
}

void print_titles() {
  print_line("policy", [](const Column& column) { return std::string(column.title); });
}

void print_row(const std::string& name, const std::vector<SimulationResult>& results) {
  print_line(name, [&](const Column& column) {
    const double value = column.scale * median(results, column.field);
    return std::isnan(value) ? "n/a" : fmt::format("{:.{}f}", value, column.digits);
  });
}

// How far the sockets are from a simulated policy, in per cent of it.
void print_difference(const std::string& policy, const std::vector<SimulationResult>& simulated,
                      const std::vector<SimulationResult>& sockets) {
  print_line(fmt::format("% from {}", policy), [&](const Column& column) {
    const double from = median(simulated, column.field), to = median(sockets, column.field);
    return std::isnan(from) || std::isnan(to) || from == 0 ? "n/a" : fmt::format("{:+.1f}", 100 * (to - from) / from);
  });
}

class PolicyBench {
 public:
  PolicyBench(const BenchPolicyOptions& options, const gateway::GatewayOptions& flags)
      : options_(options), flags_(flags), rules_(rules_of(options)) {}

  Result<void> run(const std::vector<std::string>& policies) {
    if (options_.output_file) {
      file_.open(*options_.output_file, std::ios::app);
      if (!file_)
        return Error{ErrorCode::kBadOption, fmt::format("--output-file: cannot write to {}", *options_.output_file)};
    }
    print_titles();
    std::vector<std::vector<SimulationResult>> simulated;
    for (const std::string& policy : policies) {
      SLUICE_TRY(const auto results, each_seed([&](gateway::Workload& workload) -> Result<SimulationResult> {
                   return gateway::simulate(rules_, policy, flags_, workload);
                 }));
      print_row(policy, results);
      simulated.push_back(results);
    }
    if (options_.url) {
      SLUICE_TRY(const auto sockets, over_sockets());
      print_row("sockets", sockets);
      for (size_t i = 0; i < policies.size(); ++i) print_difference(policies[i], simulated[i], sockets);
    }
    if (file_.is_open() && !file_.flush()) {
      return Error{ErrorCode::kInternal, fmt::format("--output-file: cannot write to {}", *options_.output_file)};
    }
    return {};
  }

 private:
  template <class Run>
  Result<std::vector<SimulationResult>> each_seed(Run run) {
    std::vector<SimulationResult> results;
    for (int64_t i = 0; i < options_.seeds; ++i) {
      rules_.seed = static_cast<uint64_t>(options_.first_seed + i);
      SLUICE_TRY(const auto workload, workload_of(options_, rules_.seed));
      SLUICE_TRY(results.emplace_back(), run(*workload));
      if (file_.is_open()) file_ << json_of(results.back(), rules_.seed).dump() << '\n';
    }
    return results;
  }

  Result<std::vector<SimulationResult>> over_sockets() {
    auto url = net::parse_url(*options_.url);
    if (!url.ok()) return Error{ErrorCode::kBadOption, fmt::format("--url: {}", url.error().message)};
    const auto backend = bench::backend_named(options_.backend);
    if (!backend.ok()) return Error{ErrorCode::kBadOption, fmt::format("--backend: {}", backend.error().message)};
    const ReplayOptions replay_options{.url = *url, .api = backend->api, .model = options_.model};
    bool first = true;
    return each_seed([&](gateway::Workload& workload) -> Result<SimulationResult> {
      if (!std::exchange(first, false)) SLUICE_TRY_VOID(flush_caches(*url));
      SLUICE_TRY(const ReplayResult result, replay(replay_options, rules_, workload));
      if (result.failed > 0) {
        fmt::print(stderr, "{} requests failed, the first with: {}\n", result.failed, result.error);
      }
      if (result.figures.requests == 0) return Error{ErrorCode::kUnavailable, "no request succeeded"};
      return result.figures;
    });
  }

  const BenchPolicyOptions& options_;
  const gateway::GatewayOptions& flags_;
  SimulationRules rules_;
  std::ofstream file_;
};

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
  if (names.empty() && !options->url) {
    names.emplace_back(gateway::kOracle);
    for (const auto& row : gateway::policies()) names.emplace_back(row.name);
  }
  for (const std::string& name : names) {
    if (name != gateway::kOracle && gateway::find_policy(name) == nullptr) {
      return fail({ErrorCode::kBadOption, fmt::format("--policies: {} is no policy", name)});
    }
  }
  if (options->max_concurrency > 0 && options->decode_ms == 0 && options->prefill_base_ms == 0 &&
      options->prefill_us_per_token == 0) {
    return fail({ErrorCode::kBadOption,
                 "--max-concurrency: with --decode-ms, --prefill-base-ms and --prefill-us-per-token 0 no time passes"});
  }
  const auto ran = PolicyBench(*options, *flags).run(names);
  return ran.ok() ? 0 : fail(ran.error());
}

}  // namespace sluice::cli
