#include "engine/explain/predict.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace sluice::engine {
namespace {

// Operations of one query head for one position, in all layers with softmax attention.
double operations_per_position(const models::ModelConfig& config, bool decodes) {
  double layers = static_cast<double>(config.num_layers);
  if (config.lightning) layers -= static_cast<double>(std::ranges::count(config.lightning->layers, true));
  double values = 2 * static_cast<double>(config.head_dim);
  if (config.mla) {
    // Decoding has the up-projections absorbed.
    values = static_cast<double>(decodes ? 2 * config.mla->kv_lora_rank + config.rotary_dim
                                         : config.head_dim + config.mla->v_head_dim);
  }
  return 2 * layers * values;
}

class Roofline {
 public:
  explicit Roofline(const Hardware& rank) : rank_(rank) {}
  double seconds(double bytes, double operations) const {
    return std::max(bytes / rank_.bandwidth, operations / rank_.flops);
  }
  // A product with all values of a part, of so many tokens.
  double seconds(const models::WeightPart& part, double tokens) const {
    return seconds(static_cast<double>(part.bytes), 2 * static_cast<double>(part.values) * tokens);
  }

 private:
  const Hardware& rank_;
};

double expert_seconds(const Divided& model, const Roofline& roofline, double tokens) {
  if (!model.config.moe) return 0;
  const models::MoeConfig& moe = *model.config.moe;
  // Copies of an expert share its tokens.
  const double chosen = static_cast<double>(moe.top_k) / static_cast<double>(model.physical);
  // Those that get a token are read, once.
  const double read = 1 - std::pow(1 - chosen, tokens);
  const models::WeightPart& part = model.shape.experts_weights;
  return roofline.seconds(static_cast<double>(part.bytes) * read,
                          2 * static_cast<double>(part.values) * chosen * tokens);
}

// Whole tokens of each group, the busiest first.
std::vector<int64_t> of_groups(const Divided& model, double busiest, double even) {
  const int64_t most = std::llround(std::ceil(busiest));
  std::vector<int64_t> counts(static_cast<size_t>(model.layout.dp_size));
  int64_t left = std::llround(std::ceil(busiest * even * static_cast<double>(model.layout.dp_size) - 1e-6));
  for (int64_t& count : counts) left -= count = std::min(most, left);
  return counts;
}

struct WireSeconds {
  double layers = 0;
  double head = 0;  // and the ranks' rows before the step
};

WireSeconds wire_seconds(const Divided& model, const Hardware& rank, const GroupWork& work, bool decodes) {
  if (model.layout.tp_size == 1) return {};
  const auto tokens = of_groups(model, work.tokens, work.even), logits = of_groups(model, work.logits, work.even);
  const auto all = static_cast<double>(std::accumulate(tokens.begin(), tokens.end(), int64_t{0}));
  const auto rows = rows_to_experts(model, all, !decodes);
  const models::WireBytes wire = wire_bytes(model.config, model.layout, model.dtype, {tokens, logits}, rows, rank.sums);
  const auto seconds = [&](int64_t calls, double bytes) {
    const double arrives = bytes / static_cast<double>(model.layout.tp_size);
    return static_cast<double>(calls) * rank.link_latency + arrives / rank.link_bandwidth;
  };
  return {seconds(wire.calls - wire.head_calls, wire.total() - wire.head), seconds(wire.head_calls + 1, wire.head)};
}

// A step in one batch, or a half of one; `wire` is of its layers.
StepSeconds one_batch(const Divided& model, const Hardware& rank, const GroupWork& work, bool decodes) {
  const parallel::Layout& layout = model.layout;
  const models::RankShape& shape = model.shape;
  const Roofline roofline(rank);
  const double groups = work.even * static_cast<double>(layout.dp_size);  // as busy as the busiest
  const double all = work.tokens * groups;
  const bool own_tokens = layout.a2a != parallel::MoeAllToAll::kNone;  // in layers with experts
  const double cached = work.sequences * (work.context + work.tokens / std::max(work.sequences, 1e-9));
  const double seen = work.tokens * (work.context + work.tokens / std::max(work.sequences, 1e-9) / 2);

  StepSeconds step;
  step.attention = roofline.seconds(shape.attention, work.tokens);
  step.kv =
      roofline.seconds(cached * static_cast<double>(shape.kv_bytes_per_token) +
                           work.sequences * static_cast<double>(2 * shape.state_bytes_per_sequence),
                       seen * static_cast<double>(shape.heads.count) * operations_per_position(model.config, decodes));
  step.dense = roofline.seconds(shape.dense, layout.dense_data_parallel ? work.tokens : all) +
               roofline.seconds(shape.shared, own_tokens ? work.tokens : all);
  step.experts = expert_seconds(model, roofline, all);
  const bool own_logits = layout.dp_lm_head || !layout.dp_attention();
  step.head = roofline.seconds(shape.output, work.logits * (own_logits ? 1 : groups));
  step.wire = wire_seconds(model, rank, work, decodes).layers;
  return step;
}

}  // namespace

models::RowsToExperts rows_to_experts(const Divided& model, double tokens, bool extend) {
  models::RowsToExperts rows{.fp8 = model.fp8_dispatch, .physical = model.physical};
  if (!model.config.moe || model.layout.a2a == parallel::MoeAllToAll::kNone) return rows;
  const bool fits = tokens <= static_cast<double>(model.slab_tokens * model.layout.tp_size);
  rows.low_latency =
      model.mode == moe::DeepEpMode::kLowLatency || (model.mode == moe::DeepEpMode::kAuto && !extend && fits);
  const auto layers = static_cast<double>(std::ranges::count(model.config.moe->sparse, true));
  rows.remote = layers * tokens * (rows.low_latency ? model.reach.remote_experts : model.reach.remote_ranks);
  return rows;
}

StepSeconds step_seconds(const Divided& model, const Hardware& rank, const GroupWork& work) {
  const bool decodes = work.tokens <= work.sequences;
  StepSeconds step = one_batch(model, rank, work, decodes);
  if (model.two_batches && work.tokens >= 2) {
    GroupWork half = work;
    half.tokens /= 2;
    half.sequences = std::max(1.0, half.sequences / 2);
    const double head = step.head;
    step = one_batch(model, rank, half, decodes);
    for (double* part : {&step.attention, &step.kv, &step.dense, &step.experts, &step.wire}) *part *= 2;
    const double computing = step.attention + step.kv + step.dense + step.experts;
    const auto parts = static_cast<double>(2 * model.config.num_layers);
    step.hidden = std::min(computing, step.wire) * (1 - 1 / parts);
    step.head = head;
  }
  step.wire += wire_seconds(model, rank, work, decodes).head;
  return step;
}

Prediction predict(const Divided& model, const Hardware& rank, const MemoryPlan& memory, int64_t instances,
                   int64_t chunk, const Workload& workload, int64_t concurrency) {
  const int64_t groups = instances * model.layout.dp_size;
  const int64_t length = workload.input_tokens + workload.output_tokens;
  const int64_t fit = std::max<int64_t>(1, std::min(memory.max_total_tokens / length, memory.max_running_requests));
  Prediction prediction{.concurrency = concurrency, .running = std::min(concurrency, groups * fit)};
  // The busiest group has the rest of the division; the others wait for it.
  const auto busiest = static_cast<double>((prediction.running + groups - 1) / groups);
  const auto of_instance = static_cast<double>((prediction.running + instances - 1) / instances);
  const double even = of_instance / (busiest * static_cast<double>(model.layout.dp_size));
  const GroupWork decoding{
      .tokens = busiest,
      .sequences = busiest,
      .context = static_cast<double>(workload.input_tokens) + static_cast<double>(workload.output_tokens) / 2,
      .logits = busiest,
      .even = even};
  prediction.decode = step_seconds(model, rank, decoding);
  if (model.two_batches) {
    Divided unsplit = model;
    unsplit.two_batches = false;
    prediction.decode_unsplit = step_seconds(unsplit, rank, decoding).total();
  }
  const auto input = static_cast<double>(workload.input_tokens), output = static_cast<double>(workload.output_tokens);
  const double in_a_step = std::min(static_cast<double>(chunk), busiest * input);
  double prefill = 0;
  if (in_a_step > 0) {
    const double sequences = std::max(1.0, in_a_step / input);
    prefill = busiest * input / in_a_step *
              step_seconds(model, rank,
                           {.tokens = in_a_step,
                            .sequences = sequences,
                            .context = sequences > 1 ? 0 : (input - in_a_step) / 2,
                            .logits = sequences,
                            .even = even})
                  .total();
  }
  prediction.decode_tokens_per_s = static_cast<double>(prediction.running) / prediction.decode.total();
  const double wave = prefill + output * prediction.decode.total();
  prediction.output_tokens_per_s = static_cast<double>(prediction.running) * output / wave;
  return prediction;
}

}  // namespace sluice::engine
