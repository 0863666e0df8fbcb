#include "engine/explain/explain.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/deterministic.h"
#include "engine/expert_options.h"
#include "engine/layout_options.h"
#include "engine/routed_experts.h"
#include "models/dtypes.h"
#include "models/gguf_names.h"
#include "models/layers/attention.h"
#include "models/locate.h"
#include "models/sharding.h"

namespace sluice::engine {
namespace {

using parallel::Layout;
using parallel::MoeAllToAll;

// Ranks of a host that have the same weights map one copy of them (engine/front.cc).
bool shares_weights(const LayoutFacts& facts, const Hardware& hardware) {
  return hardware.divisible && facts.layout.tp_size == 1 && facts.instances > 1;
}

// Ranks among which a machine is divided.
int64_t ranks_of_machine(const LayoutFacts& facts) {
  return std::max<int64_t>(1, host_workers() * facts.instances * facts.layout.tp_size / facts.options.nnodes);
}

void plan_pool(const DescribedModel& model, const Hardware& hardware, LayoutFacts& facts) {
  models::ModelInfo info;
  info.context_length = model.context_length;
  info.kv_bytes_per_token = static_cast<size_t>(facts.rank.kv_bytes_per_token);
  info.state_bytes_per_sequence = static_cast<size_t>(facts.rank.state_bytes_per_sequence);
  info.weight_bytes = static_cast<size_t>(facts.rank.weight_bytes());
  info.own_weight_bytes = static_cast<size_t>(facts.own_weight_bytes);
  info.buffer_bytes = static_cast<size_t>(buffer_bytes(facts, hardware));
  EngineOptions options = facts.options;
  facts.memory_fraction = options.mem_fraction_static.value_or(hardware.memory_fraction);
  options.mem_fraction_static = facts.memory_fraction;
  if (model.config.moe && options.enable_return_routed_experts) {
    const models::MoeConfig& moe = *model.config.moe;
    info.kv_bytes_per_token += static_cast<size_t>(
        RoutedExperts::bytes_per_token({.layers = std::ranges::count(moe.sparse, true), .top_k = moe.top_k}));
  }
  const int64_t ranks = ranks_of_machine(facts);
  const auto plan = plan_memory(options, info,
                                {.limit_bytes = hardware.of(ranks).memory_bytes * ranks,
                                 .host_ranks = ranks,
                                 .shared_weights = shares_weights(facts, hardware),
                                 .slot_tables = facts.layout.attention_tp_size() > 1 ? 2 : 1});
  if (!plan.ok()) {
    facts.why_not = plan.error().message;
    return;
  }
  facts.memory = *plan;
  facts.unique_tokens = plan->max_total_tokens * facts.instances * facts.layout.dp_size;
}

// The largest step of the server's ranks (Rank::load in engine/rank.cc).
models::StepShape step_shape(const EngineOptions& options) {
  const StepLimits limits = plan_steps(options);
  return {.max_tokens = limits.max_step_tokens,
          .max_seqs = limits.max_running_requests,
          .deepep = deepep_of(options),
          .in_halves = options.tp_size > 1 && options.enable_two_batch_overlap,
          .records_routing =
              options.enable_return_routed_experts || options.expert_distribution_recorder_mode == "per_token"};
}

Divided divided(const DescribedModel& model, const LayoutFacts& facts) {
  const int64_t experts = model.config.moe ? model.config.moe->experts : 0;
  return {.config = model.config,
          .layout = facts.layout,
          .dtype = model.dtype,
          .shape = facts.rank,
          .fp8_dispatch = model.fp8_dispatch,
          .mode = deepep_of(facts.options).mode,
          .slab_tokens = deepep_of(facts.options).capacity,
          .physical = facts.map ? facts.map->physical : experts,
          .reach = facts.reach,
          .two_batches = facts.options.enable_two_batch_overlap};
}

TokenWire wire_of_token(const Divided& model, models::SumRule sums) {
  const auto groups = static_cast<double>(model.layout.dp_size);
  const std::vector<int64_t> ones(static_cast<size_t>(model.layout.dp_size), 1);
  TokenWire wire;
  wire.of_step = wire_bytes(model.config, model.layout, model.dtype, {ones, ones},
                            rows_to_experts(model, groups, /*extend=*/false), sums);
  wire.per_token = wire.of_step.total() / groups;
  return wire;
}

// Key heads that a rank has; the latent counts as one.
int64_t key_heads_of(const models::ModelConfig& config, const Layout& layout) {
  return config.mla ? 1 : models::key_heads(config, layout).count;
}

struct Choice {
  int64_t dp, ep;
  MoeAllToAll a2a;
  bool all_by_tokens = false;  // dense FFNs and the head too
};

// What can be done with one instance of `tp` ranks.
std::vector<Choice> choices_of(const models::ModelConfig& config, int64_t tp) {
  std::vector<Choice> choices;
  for (int64_t dp = 1; dp <= tp; ++dp) {
    if (tp % dp != 0) continue;
    choices.push_back({dp, 1, MoeAllToAll::kNone});
    if (!config.moe || tp == 1) continue;
    choices.push_back({dp, tp, MoeAllToAll::kNone});
    choices.push_back({dp, tp, MoeAllToAll::kDeepEp});
    if (dp == tp) choices.push_back({dp, tp, MoeAllToAll::kDeepEp, /*all_by_tokens=*/true});
  }
  return choices;
}

EngineOptions with(EngineOptions options, const Choice& choice, int64_t tp, int64_t instances) {
  options.tp_size = tp;
  options.enable_dp_attention = choice.dp > 1;
  options.dp_size = choice.dp > 1 ? choice.dp : instances;
  options.ep_size = choice.ep;
  options.moe_a2a_backend = choice.a2a == MoeAllToAll::kDeepEp ? "deepep" : "none";
  options.moe_dense_tp_size = choice.all_by_tokens ? std::optional<int64_t>(1) : std::nullopt;
  options.enable_dp_lm_head = choice.all_by_tokens;
  if (choice.a2a == MoeAllToAll::kNone) {
    options.deepep_mode = "auto";
    options.deepep_num_max_dispatch_tokens_per_rank.reset();
    options.deepep_dispatch_dtype = "auto";
    options.enable_single_batch_overlap = options.enable_two_batch_overlap = false;
  }
  if (choice.ep == 1 && choice.a2a == MoeAllToAll::kNone) {  // nobody has an expert whole
    options.ep_num_redundant_experts = 0;
    options.init_expert_location = "trivial";
    options.enable_eplb = false;
    options.eplb_algorithm.reset();
    options.ep_dispatch_algorithm.reset();
  }
  return options;
}

}  // namespace

Result<DescribedModel> describe_model(const EngineOptions& options, bool here) {
  DescribedModel model;
  SLUICE_TRY(model.fp8_dispatch, sends_fp8(options));
  const std::string dtype = settled_dtype(options);
  // Other machines are taken to have bfloat16.
  SLUICE_TRY(const auto arithmetic, models::arithmetic_of(dtype == "auto" && !here ? "bfloat16" : dtype));
  model.dtype = arithmetic.dtype;
  model.rounded = arithmetic.rounded;
  SLUICE_TRY(model.kv_dtype, models::kv_dtype_of(options.kv_cache_dtype, model.dtype));
  std::string path = options.model_path;
  if (!path.ends_with(".json")) {
    SLUICE_TRY(path, models::locate_model(path));
  }
  SLUICE_TRY(model.config, models::load_config(path, options.json_model_override_args.value_or("")));
  model.context_length = options.context_length.value_or(model.config.max_position);
  if (!path.ends_with(".gguf")) {
    model.source = models::dummy_weights(model.config);
    return model;
  }
  SLUICE_TRY(auto file, tensor::GgufFile::open(path));
  model.source = models::gguf_source(std::move(file));
  return model;
}

Result<LayoutFacts> examine_layout(const DescribedModel& model, const EngineOptions& options, const Hardware& hardware,
                                   const Workload& workload, const std::vector<int64_t>& concurrency) {
  LayoutFacts facts{.options = options};
  if (!facts.options.chunked_prefill_size && hardware.default_chunk > 0) {
    facts.options.chunked_prefill_size = hardware.default_chunk;
  }
  facts.notes = adjust_layout(facts.options);
  SLUICE_TRY_VOID(parallel::check_layout(layout_of(facts.options, 0)));
  SLUICE_TRY(const auto of_experts, adjust_experts(facts.options));
  facts.notes.insert(facts.notes.end(), of_experts.begin(), of_experts.end());
  SLUICE_TRY(const auto of_deterministic, settle_deterministic(facts.options));
  facts.notes.insert(facts.notes.end(), of_deterministic.begin(), of_deterministic.end());
  facts.layout = layout_of(facts.options, 0);
  facts.instances = instance_count(facts.options);
  SLUICE_TRY(facts.map, models::check_sharding(model.config, facts.layout, expert_placement_of(facts.options)));
  const moe::ExpertMap* map = facts.map ? &*facts.map : nullptr;
  SLUICE_TRY(const auto needs, models::needs_of_rank(model.config, facts.layout, model.dtype, *model.source,
                                                     step_shape(facts.options), model.kv_dtype, model.rounded, map));
  facts.rank = needs.shape;
  facts.buffers = needs.buffers;
  if (model.config.moe && facts.layout.a2a != MoeAllToAll::kNone) {
    facts.reach = models::expected_reach(*model.config.moe, facts.layout.tp_size, map);
  }
  facts.own_weight_bytes = facts.rank.weight_bytes();
  // Without DP attention next to nothing is alike.
  if (hardware.divisible && facts.layout.dp_attention()) {
    SLUICE_TRY(facts.own_weight_bytes,
               models::own_weight_bytes(model.config, facts.layout, model.dtype, *model.source, model.rounded, map));
  }
  facts.kv_copies = key_heads_of(model.config, facts.layout) * facts.layout.attention_tp_size() /
                    (model.config.mla ? 1 : model.config.num_kv_heads);
  plan_pool(model, hardware, facts);
  const Divided parts = divided(model, facts);
  facts.wire = wire_of_token(parts, hardware.sums);
  if (!facts.memory || !hardware.has_rates()) return facts;
  const int64_t length = workload.input_tokens + workload.output_tokens;
  if (length > facts.memory->max_total_tokens) {
    facts.why_not =
        fmt::format("a request of {} tokens is longer than the KV cache of {}", length, facts.memory->max_total_tokens);
    facts.notes.push_back(facts.why_not);
    return facts;
  }
  const Hardware rank = hardware.of(ranks_of_machine(facts));
  for (const int64_t at_once : concurrency) {
    facts.predictions.push_back(
        predict(parts, rank, *facts.memory, facts.instances, plan_steps(facts.options).chunk, workload, at_once));
  }
  return facts;
}

std::vector<LayoutFacts> weigh_layouts(const DescribedModel& model, const EngineOptions& options,
                                       const Hardware& hardware, const Workload& workload,
                                       const std::vector<int64_t>& concurrency, std::optional<int64_t> ranks) {
  std::vector<LayoutFacts> all;
  const int64_t devices = hardware.devices;
  for (int64_t tp = 1; tp <= std::max(devices, ranks.value_or(0)); ++tp) {
    if (ranks ? tp != *ranks : devices % tp != 0) continue;
    // A machine may be left to fewer ranks; devices are all used.
    const int64_t most = ranks ? 1 : devices / tp;
    for (int64_t instances = hardware.divisible ? 1 : most; instances <= most; ++instances) {
      if (most % instances != 0) continue;
      for (const Choice& choice : choices_of(model.config, tp)) {
        if (hardware.divisible && choice.dp > 1 && instances > 1) continue;
        auto facts = examine_layout(model, with(options, choice, tp, instances), hardware, workload, concurrency);
        if (!facts.ok() || !facts->memory || !facts->why_not.empty()) continue;
        if (choice.dp > 1 && instances > 1) {  // so many servers, as if they were one
          facts->instances = instances;
          facts->unique_tokens *= instances;
          const Divided parts = divided(model, *facts);
          for (Prediction& prediction : facts->predictions) {
            prediction = predict(parts, hardware, *facts->memory, instances, plan_steps(facts->options).chunk, workload,
                                 prediction.concurrency);
          }
        }
        all.push_back(std::move(*facts));
      }
    }
  }
  // The first of equals has the fewest ranks in a group.
  std::ranges::stable_sort(all, std::greater(), [](const LayoutFacts& facts) {
    return facts.predictions.empty() ? 0.0 : facts.predictions.back().output_tokens_per_s;
  });
  return all;
}

int64_t buffer_bytes(const LayoutFacts& facts, const Hardware& hardware) {
  return facts.buffers.bytes - (hardware.divisible ? 0 : facts.buffers.host_bytes);
}

std::string layout_flags(const LayoutFacts& facts) {
  const EngineOptions& options = facts.options;
  std::string flags = fmt::format("--tp-size {}", options.tp_size);
  if (options.dp_size > 1) flags += fmt::format(" --dp-size {}", options.dp_size);
  if (options.enable_dp_attention) flags += " --enable-dp-attention";
  if (options.ep_size > 1) flags += fmt::format(" --ep-size {}", options.ep_size);
  if (options.moe_a2a_backend != "none") flags += fmt::format(" --moe-a2a-backend {}", options.moe_a2a_backend);
  if (options.moe_dense_tp_size) flags += fmt::format(" --moe-dense-tp-size {}", *options.moe_dense_tp_size);
  if (options.enable_dp_lm_head) flags += " --enable-dp-lm-head";
  if (options.ep_num_redundant_experts > 0) {
    flags += fmt::format(" --ep-num-redundant-experts {}", options.ep_num_redundant_experts);
  }
  if (options.moe_a2a_backend != "none" && options.deepep_mode != "auto") {
    flags += fmt::format(" --deepep-mode {}", options.deepep_mode);
  }
  if (options.enable_single_batch_overlap) flags += " --enable-single-batch-overlap";
  if (options.enable_two_batch_overlap) flags += " --enable-two-batch-overlap";
  if (options.enable_dp_attention && facts.instances > 1) flags += fmt::format(", {} servers", facts.instances);
  return flags;
}

double dp_attention_gain(const models::ModelConfig& config, const parallel::Layout& layout) {
  const auto with_groups = static_cast<double>(key_heads_of(config, layout));
  const auto without = static_cast<double>(key_heads_of(config, {.tp_size = layout.tp_size}));
  return static_cast<double>(layout.dp_size) * without / with_groups;
}

}  // namespace sluice::engine
