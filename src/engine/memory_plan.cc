#include "engine/memory_plan.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <optional>
#include <sstream>

namespace sluice::engine {
namespace {

constexpr double kDefaultFraction = 0.5;
constexpr int64_t kDefaultRunning = 256;
constexpr int64_t kDefaultChunk = 512;
// What a rank takes beside all that it declares once everything is used: libraries' pages that were not touched before,
// kernels' own memory, requests: 0 to 10 MiB as measured (docs/results/memory.md), with two threads.
constexpr int64_t kInUseBytes = 6 << 20;
// A pool below this cannot serve anything: see Scheduler::max_req_input_len().
constexpr int64_t kSmallestPool = 32;

std::optional<std::string> first_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  if (!std::getline(in, line)) return std::nullopt;
  return line;
}

}  // namespace

StepLimits plan_steps(const EngineOptions& options) {
  StepLimits limits;
  limits.max_running_requests = options.max_running_requests.value_or(kDefaultRunning);
  const int64_t chunk = options.chunked_prefill_size.value_or(std::max(kDefaultChunk, options.page_size));
  // Uncut prompts still end somewhere: the buffers of a step have a size.
  limits.chunk = chunk > 0 ? chunk : options.max_prefill_tokens;
  limits.max_step_tokens = options.enable_mixed_chunk ? limits.chunk + limits.max_running_requests
                                                      : std::max(limits.chunk, limits.max_running_requests);
  return limits;
}

Result<MemoryPlan> plan_memory(const EngineOptions& options, const models::ModelInfo& model, const MemoryFacts& facts) {
  const double fraction = options.mem_fraction_static.value_or(kDefaultFraction);
  const auto ranks = static_cast<double>(std::max<int64_t>(1, facts.host_ranks));
  const double share = static_cast<double>(facts.limit_bytes) / ranks;
  const size_t own_weights = model.own_weight_bytes > 0 ? model.own_weight_bytes : model.weight_bytes;
  const double weights = static_cast<double>(own_weights) / (facts.shared_weights ? ranks : 1);
  const auto per_token = static_cast<double>(std::max<size_t>(1, model.kv_bytes_per_token));
  const StepLimits limits = plan_steps(options);

  double room = fraction * share - weights;
  // Of what there is for sequences, half may go to states that they keep whatever their length; a third of those to
  // states of prefixes, or more where the running requests need no more.
  const auto per_sequence = static_cast<double>(model.state_bytes_per_sequence);
  int64_t running = limits.max_running_requests;
  int64_t kept_states = 0;
  if (per_sequence > 0) {
    const auto rows = std::max<int64_t>(1, static_cast<int64_t>(room / 2 / per_sequence));
    running = std::min(running, options.disable_radix_cache ? rows : rows - rows / 3);
    if (!options.disable_radix_cache) kept_states = std::min(rows - running, 2 * running);
    room -= per_sequence * static_cast<double>(running + kept_states);
  }
  // More than every running request at its longest is of no use but as cache, which memory alone should not decide.
  // One of them has the longest prompt beside the page that the scheduler keeps back.
  const int64_t page = options.page_size;
  const int64_t longest = (model.context_length + page - 1) / page * page;
  const double useful = std::max(static_cast<double>(longest) * static_cast<double>(running),
                                 static_cast<double>(std::max({longest + page, kSmallestPool, 2 * page})));
  int64_t tokens = static_cast<int64_t>(std::min({std::floor(room / per_token), useful, 2e9}));
  if (options.max_total_tokens) tokens = std::min(tokens, *options.max_total_tokens);
  tokens -= tokens % options.page_size;
  if (tokens < std::max(kSmallestPool, 2 * options.page_size)) {
    constexpr double kMiB = 1 << 20;
    return Error{
        ErrorCode::kExhausted,
        fmt::format("no room for a KV cache: {:.0f} MiB of memory divided among {} ranks, times {} "
                    "(--mem-fraction-static), less {:.0f} MiB of weights{} leaves room for {} tokens of {} bytes",
                    static_cast<double>(facts.limit_bytes) / kMiB, facts.host_ranks, fraction, weights / kMiB,
                    per_sequence > 0 ? fmt::format(" and {:.0f} MiB of states of {} requests",
                                                   per_sequence * static_cast<double>(running) / kMiB, running)
                                     : "",
                    std::max<int64_t>(0, tokens), model.kv_bytes_per_token)};
  }
  MemoryPlan plan;
  plan.max_total_tokens = tokens;
  plan.max_running_requests = std::max<int64_t>(1, std::min(running, tokens / 2));
  plan.max_req_len = std::min(model.context_length - 1, tokens - 1);
  plan.kv_bytes = static_cast<int64_t>(static_cast<double>(tokens + options.page_size) * per_token);
  plan.kept_states = kept_states;
  plan.state_bytes = static_cast<int64_t>(per_sequence) * (plan.max_running_requests + kept_states);
  plan.weight_bytes = static_cast<int64_t>(weights);
  plan.buffer_bytes = static_cast<int64_t>(model.buffer_bytes);
  plan.table_bytes =
      facts.slot_tables * plan.max_running_requests * plan.max_req_len * static_cast<int64_t>(sizeof(int32_t));
  plan.program_bytes = facts.program_bytes > 0 ? facts.program_bytes + kInUseBytes : 0;
  const auto own = static_cast<double>(plan.total_bytes());
  if (own > share) {
    constexpr double kMiB = 1 << 20;
    const auto mib = [](int64_t bytes) { return static_cast<double>(bytes) / kMiB; };
    const bool has_slab = options.moe_a2a_backend == "deepep" && options.deepep_mode != "normal";
    return Error{
        ErrorCode::kExhausted,
        fmt::format(
            "this rank would take {:.0f} MiB in the end, of {:.0f} MiB that it may: {:.0f} of weights, {:.0f} of "
            "KV cache, {:.0f} of states, {:.0f} of buffers (--chunked-prefill-size{}), {:.0f} of slot tables "
            "(--max-running-requests, --context-length) and {:.0f} of the program; lower "
            "--mem-fraction-static or one of those",
            own / kMiB, share / kMiB, weights / kMiB, mib(plan.kv_bytes), mib(plan.state_bytes), mib(plan.buffer_bytes),
            has_slab ? ", --deepep-mode, --deepep-num-max-dispatch-tokens-per-rank" : "", mib(plan.table_bytes),
            mib(plan.program_bytes))};
  }
  // A frame to the front is a copy, and the front may be of the same machine: a quarter of what is left.
  plan.answer_bytes = std::clamp(static_cast<int64_t>((share - own) / 4), kLeastAnswerBytes, kMostAnswerBytes);
  return plan;
}

int64_t resident_bytes() {
  const auto line = first_line("/proc/self/statm");  // pages: all, resident, ...
  if (!line) return 0;
  std::istringstream words(*line);
  int64_t all = 0, resident = 0;
  words >> all >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

}  // namespace sluice::engine
