#include "models/minimax_text_01.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "models/config_fields.h"
#include "models/layers/attention.h"
#include "models/layers/moe.h"
#include "models/layers/ops.h"

namespace sluice::models {
namespace {

constexpr MoeNames kNames{.router = "block_sparse_moe.gate.weight",
                          .experts = "block_sparse_moe.experts.",
                          .gate = "w1",
                          .up = "w3",
                          .down = "w2"};

// e^-rate is what a state keeps from token to token: rate 2^(-8h / heads) of head h = 1 .. heads, less in later layers.
std::vector<float> decay_rates(const ModelConfig& config, int64_t layer) {
  const double depth =
      config.num_layers > 1 ? static_cast<double>(layer) / static_cast<double>(config.num_layers - 1) : 0;
  std::vector<float> rates;
  for (int64_t h = 1; h <= config.num_heads; ++h) {
    const double slope = std::pow(2.0, -8.0 * static_cast<double>(h) / static_cast<double>(config.num_heads));
    rates.push_back(static_cast<float>(slope * (1 - depth + 1e-5)));
  }
  return rates;
}

// out = W_o (sigmoid(W_g x) * RMSNorm(lightning(silu(W_qkv x)))), with one norm over all heads.
class LightningAttention final : public Block {
 public:
  LightningAttention(const ModelConfig& config, int64_t layer, WeightStore& weights, Decoder& decoder)
      : Block(Residual(fmt::format("model.layers.{}.input_layernorm.weight", layer), config,
                       config.lightning->lightning, weights),
              Spread::kAttention),
        own_(parallel::part_of(config.num_heads, weights.layout().attention_tp())),
        heads_(own_.count),
        all_heads_(config.num_heads),
        dim_(config.head_dim),
        epsilon_(config.rms_norm_eps),
        weights_(weights) {
    const std::string prefix = fmt::format("model.layers.{}.self_attn.", layer);
    const int64_t hidden = config.hidden_size, width = heads_ * dim_, all = all_heads_ * dim_;
    const parallel::Slice rows{own_.first * dim_, width};
    qkv_ = weights.linear({part(prefix + "qkv_proj.weight", 3 * all, {3 * rows.first, 3 * width})}, hidden);
    gate_ = weights.linear({part(prefix + "output_gate.weight", all, rows)}, hidden);
    norm_ = weights.vector({part(prefix + "norm.weight", all, rows)});
    o_ = weights.linear({{prefix + "out_proj.weight", hidden}}, width, {.first = rows.first, .of = all});
    const std::vector<float> rates = decay_rates(config, layer);
    rates_ = weights.constant(fmt::format("{}rates", prefix), {rates.begin() + own_.first, rates.begin() + own_.end()});
    state_ = decoder.states().declare(width * dim_);
    Scratch& scratch = decoder.scratch();
    qkv_slot_ = scratch.declare("qkv", 3 * width * 4);
    mixed_slot_ = scratch.declare("lightning_mixed", width * 4);
    gate_slot_ = scratch.declare("lightning_gate", width * 4);
    attended_slot_ = scratch.declare("attended", width * static_cast<int64_t>(tensor::block_bytes(weights.dtype())));
    squares_slot_ = scratch.declare("squares", 4);
  }

  Result<void> run(const kernels::Context& context, const Step& step, const void* x, int64_t n,
                   float* out) const override {
    const kernels::Backend& backend = *context.backend;
    const ForwardBatch& batch = step.batch;
    const int64_t width = heads_ * dim_;
    auto* qkv = step.scratch.at<float>(qkv_slot_);      // [n, heads, 3, dim]
    auto* mixed = step.scratch.at<float>(mixed_slot_);  // [n, heads, dim]
    auto* gate = step.scratch.at<float>(gate_slot_);    // [n, heads * dim]
    auto* attended = step.scratch.at<void>(attended_slot_);

    product(context, weights_, qkv_, x, qkv, n);
    product(context, weights_, gate_, x, gate, n);
    backend.lightning_attention(context, {.qkv = qkv,
                                          .rates = weights_.address(rates_),
                                          .table_rows = batch.table_rows,
                                          .query_start = batch.query_start,
                                          .seq_lens = batch.seq_lens,
                                          .states = step.states.at(state_),
                                          .out = mixed,
                                          .n_seqs = batch.n_seqs,
                                          .n_heads = heads_,
                                          .head_dim = dim_});
    const float* squares = nullptr;
    if (heads_ < all_heads_) {
      auto* sums = step.scratch.at<float>(squares_slot_);
      backend.square_sum(context, {.in = mixed, .out = sums, .n = n, .width = width, .in_stride = width});
      SLUICE_TRY_VOID(step.groups->attention_tp->all_reduce(context, parallel::Element::kF32, sums, sums, n));
      squares = sums;
    }
    backend.rms_norm(context, {.in = mixed,
                               .weight = weights_.address(norm_),
                               .out = mixed,
                               .n = n,
                               .width = width,
                               .in_stride = width,
                               .out_stride = width,
                               .epsilon = static_cast<float>(epsilon_),
                               .square_sums = squares,
                               .whole_width = all_heads_ * dim_});
    backend.sigmoid_mul(
        context, {.gate = gate, .in = mixed, .out = attended, .out_dtype = weights_.dtype(), .n = n, .width = width});
    product(context, weights_, o_, attended, out, n, nullptr, /*accumulate=*/true);
    return {};
  }

 private:
  const parallel::Slice own_;  // heads of this rank
  const int64_t heads_;
  const int64_t all_heads_;
  const int64_t dim_;  // of a head
  const double epsilon_;
  const WeightStore& weights_;
  LinearWeight qkv_;             // [heads * 3 * dim, hidden]
  LinearWeight gate_;            // [heads * dim, hidden]
  VectorWeight norm_;            // [heads * dim]
  LinearWeight o_;               // [hidden, heads * dim]
  VectorWeight rates_;           // [heads]
  StateCache::State state_;      // [heads, dim, dim]
  Scratch::Slot qkv_slot_;       // [n, heads, 3, dim]
  Scratch::Slot mixed_slot_;     // [n, heads * dim]
  Scratch::Slot gate_slot_;      // [n, heads * dim]
  Scratch::Slot attended_slot_;  // [n, heads * dim] of dtype
  Scratch::Slot squares_slot_;   // [n]
};

// Which layers are lightning attention; empty with an error in `fields` otherwise.
Result<std::vector<bool>> read_layers(const nlohmann::json& json, int64_t num_layers) {
  std::vector<bool> lightning;
  const char* field = present(json, "layer_types") ? "layer_types" : "attn_type_list";
  if (!present(json, field) || !json[field].is_array()) return unsupported(field, "is not a list");
  for (const nlohmann::json& type : json[field]) {
    const bool is_lightning = type == "linear_attention" || type == 0;
    if (!is_lightning && type != "full_attention" && type != 1) {
      return unsupported(
          field, fmt::format("{} is not supported; linear_attention (0) and full_attention (1) are", type.dump()));
    }
    lightning.push_back(is_lightning);
  }
  if (std::ssize(lightning) != num_layers) {
    return unsupported(field, fmt::format("has {} entries for {} layers", lightning.size(), num_layers));
  }
  return lightning;
}

}  // namespace

Result<void> read_minimax_text_01(const nlohmann::json& json, ModelConfig& config) {
  Fields fields(json);
  LightningConfig lightning;
  SLUICE_TRY(lightning.layers, read_layers(json, config.num_layers));
  // The port's name, or that of the published checkpoint.
  const auto scale = [&](const std::string& port, const std::string& published) -> ResidualScale {
    const auto read = [&](const std::string& which) {
      const std::string name = port + "_" + which + "_factor";
      return present(json, name.c_str()) ? fields.real(name.c_str(), 1)
                                         : fields.real(("layernorm_" + published + "_" + which).c_str(), 1);
    };
    return {read("alpha"), read("beta")};
  };
  lightning.lightning = scale("linear_attn", "linear_attention");
  lightning.softmax = scale("full_attn", "full_attention");
  lightning.ffn = scale("mlp", "mlp");
  MoeConfig moe;
  moe.experts = fields.whole("num_local_experts", 1);
  moe.top_k = fields.whole("num_experts_per_tok", 1);
  moe.expert_width = config.intermediate_size;
  moe.renormalise = true;
  moe.sparse.assign(static_cast<size_t>(config.num_layers), true);
  config.rotary_dim = fields.whole("rotary_dim", 2, config.rotary_dim);
  const int64_t shared_width = fields.whole("shared_intermediate_size", 0, 0);
  const bool post_norm = fields.flag("postnorm", present(json, "layer_types"));
  if (fields.error()) return *fields.error();
  if (!post_norm) return unsupported("postnorm", "only true is supported");
  if (shared_width != 0) return unsupported("shared_intermediate_size", "shared experts are not supported here");
  SLUICE_TRY_VOID(
      refuse_present(json, {"sliding_window", "attn_window_size"}, "sliding-window attention is not supported"));
  for (const ResidualScale& scales : {lightning.lightning, lightning.softmax, lightning.ffn}) {
    if (!(std::isfinite(scales.alpha) && std::isfinite(scales.beta) && scales.alpha > 0 && scales.beta > 0)) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("config.json: residual factors {} and {} are not positive", scales.alpha, scales.beta)};
    }
  }
  config.lightning = std::move(lightning);
  config.moe = std::move(moe);
  return {};
}

std::unique_ptr<Decoder> make_minimax_text_01(const ModelConfig& config, WeightStore& weights) {
  auto decoder = std::make_unique<Decoder>(config, weights);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (config.lightning->layers[static_cast<size_t>(layer)]) {
      decoder->add(std::make_unique<LightningAttention>(config, layer, weights, *decoder));
    } else {
      decoder->add(std::make_unique<GroupedQueryAttention>(config, layer, weights, decoder->scratch(), decoder->kv()));
    }
    decoder->add(make_ffn(config, layer, kNames, weights, *decoder));
  }
  return decoder;
}

}  // namespace sluice::models
