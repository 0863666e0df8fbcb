#include "models/rank_shape.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <string_view>

#include "base/check.h"
#include "models/family.h"
#include "models/layers/attention.h"
#include "models/layers/decoder.h"
#include "tensor/dummy.h"

namespace sluice::models {
namespace {

using kernels::Context;

// Takes declarations and runs nothing. Its memory is nowhere: what is put there is not kept, and nothing is read.
class CountingBackend final : public kernels::Backend {
 public:
  std::string_view name() const override { return "counting"; }
  std::unique_ptr<kernels::Stream> make_stream() const override { return nullptr; }
  Result<void*> allocate(size_t) const override { return static_cast<void*>(&nowhere_); }
  void release(void*, size_t) const override {}
  bool host_visible() const override { return true; }
  bool multiplies(kernels::DType) const override { return true; }
  // As the backends: blocks of int8 and int4 where products are in float32.
  bool keeps(const kernels::LinearShape& shape) const override {
    if (shape.stored == kernels::DType::kF8E4M3) return true;
    const auto block = static_cast<int64_t>(tensor::block_elements(shape.stored));
    return block > 1 && shape.in % block == 0 && (shape.dtype == kernels::DType::kF32 || shape.rounded);
  }
  bool fuses_gates(const kernels::LinearShape& shape) const override { return device().fuses_gates(shape); }
  int64_t padded_rows(int64_t n) const override { return device().padded_rows(n); }
  int64_t group_padding(int64_t groups) const override { return device().group_padding(groups); }
  size_t packed_bytes(const kernels::LinearShape& shape) const override {
    const auto values = static_cast<size_t>(shape.in * shape.out);
    if (shape.stored == kernels::DType::kF32) return values * tensor::block_bytes(shape.dtype);
    if (shape.stored != kernels::DType::kF8E4M3) return tensor::bytes_of(shape.stored, values);
    return values + static_cast<size_t>(4 * kernels::scales_per_row(shape.in) * kernels::scales_per_row(shape.out));
  }

  void copy_to_device(const Context&, void*, const void*, size_t) const override {}
  void copy_to_host(const Context&, void*, const void*, size_t) const override { never(); }
  void copy(const Context&, void*, const void*, size_t) const override { never(); }
  void clear(const Context&, void*, size_t) const override { never(); }
  void synchronize(const Context&) const override {}
  void pack(const kernels::LinearShape&, const kernels::RowReader&, void*) const override { never(); }
  void linear(const Context&, const kernels::LinearArgs&) const override { never(); }
  void gated_linear(const Context&, const kernels::GatedLinearArgs&) const override { never(); }
  void head_linear(const Context&, const kernels::HeadLinearArgs&) const override { never(); }
  void embed(const Context&, const kernels::EmbedArgs&) const override { never(); }
  void rms_norm(const Context&, const kernels::RmsNormArgs&) const override { never(); }
  void square_sum(const Context&, const kernels::SquareSumArgs&) const override { never(); }
  void rope_angles(const Context&, const kernels::RopeAnglesArgs&) const override { never(); }
  void rope(const Context&, const kernels::RopeArgs&) const override { never(); }
  void store_kv(const Context&, const kernels::StoreKvArgs&) const override { never(); }
  void attention(const Context&, const kernels::AttentionArgs&) const override { never(); }
  void latent_attention(const Context&, const kernels::LatentAttentionArgs&) const override { never(); }
  void expanded_attention(const Context&, const kernels::ExpandedAttentionArgs&) const override { never(); }
  void silu_mul(const Context&, const kernels::SiluMulArgs&) const override { never(); }
  void gather_rows(const Context&, const kernels::GatherRowsArgs&) const override { never(); }
  void route(const Context&, const kernels::RouteArgs&) const override { never(); }
  void sort_by_expert(const Context&, const kernels::SortByExpertArgs&) const override { never(); }
  void scatter_rows(const Context&, const kernels::ScatterRowsArgs&) const override { never(); }
  void pack_rows(const Context&, const kernels::PackRowsArgs&) const override { never(); }
  void unpack_rows(const Context&, const kernels::UnpackRowsArgs&) const override { never(); }
  void grouped_linear(const Context&, const kernels::GroupedLinearArgs&) const override { never(); }
  void gated_grouped_linear(const Context&, const kernels::GatedGroupedLinearArgs&) const override { never(); }
  void combine_rows(const Context&, const kernels::CombineRowsArgs&) const override { never(); }
  void lightning_attention(const Context&, const kernels::LightningAttentionArgs&) const override { never(); }
  void sigmoid_mul(const Context&, const kernels::SigmoidMulArgs&) const override { never(); }
  void scale(const Context&, const kernels::ScaleArgs&) const override { never(); }
  void choose_copies(const Context&, const kernels::ChooseCopiesArgs&) const override { never(); }

 private:
  static void never() { SLUICE_CHECK(false, "a device that only counts was asked to compute"); }
  // The one whose rows are padded alike, and which needs as much room for products of gates.
  static const kernels::Backend& device() {
    static const std::unique_ptr<kernels::Backend> cpu = kernels::make_backend("cpu", /*threads=*/1).value();
    return *cpu;
  }

  mutable std::max_align_t nowhere_{};
};

bool is_of_layer_with_experts(const ModelConfig& config, std::string_view name) {
  constexpr std::string_view kLayers = "model.layers.";
  if (!config.moe || !name.starts_with(kLayers)) return false;
  size_t layer = 0;
  const std::string_view number = name.substr(kLayers.size());
  std::from_chars(number.data(), number.data() + number.size(), layer);
  return layer < config.moe->sparse.size() && config.moe->sparse[layer];
}

WeightPart& part_of_name(const ModelConfig& config, RankShape& shape, std::string_view name, bool is_output) {
  if (is_output) return shape.output;
  if (name.starts_with("model.embed_tokens")) return shape.embedding;
  if (name.find(".self_attn.") != std::string_view::npos) return shape.attention;
  if (name.find(".experts.") != std::string_view::npos) return shape.experts_weights;
  return is_of_layer_with_experts(config, name) ? shape.shared : shape.dense;
}

// Of published FP8 checkpoints: embedding, head and routers are not in FP8, and vectors never are.
bool is_fp8_matrix(std::string_view name) {
  return name.ends_with("_proj.weight") || name.ends_with("_proj_with_mqa.weight") || name.ends_with(".w1.weight") ||
         name.ends_with(".w2.weight") || name.ends_with(".w3.weight");
}

// A rank's decoder and the weights that it has declared, none of which are read.
struct CountedRank {
  CountedRank(const FamilyRow& family, const ModelConfig& config, const parallel::Layout& layout, kernels::DType dtype,
              const tensor::TensorSource& source, const moe::DeepEpOptions& deepep, bool rounded,
              const moe::ExpertMap* map)
      : groups{.layout = layout, .all = nullptr, .attention_tp = nullptr, .attention_dp = nullptr},
        weights(backend, dtype, &source, layout.tp_size > 1 ? &groups : nullptr, map, deepep, rounded),
        decoder(family.make(config, weights)) {}

  const CountingBackend backend;
  const parallel::Groups groups;
  WeightStore weights;
  const std::unique_ptr<Decoder> decoder;
};

RankShape shape_of(const CountedRank& rank, const ModelConfig& config, const moe::ExpertMap* map) {
  const parallel::Layout& layout = rank.groups.layout;
  RankShape shape;
  shape.heads = parallel::part_of(config.num_heads, layout.attention_tp());
  if (!config.mla) shape.key_heads = key_heads(config, layout);
  shape.vocabulary = parallel::part_of(config.vocab_size, layout.attention_tp());
  shape.head = parallel::part_of(config.vocab_size, layout.head());
  if (!config.moe || std::ranges::count(config.moe->sparse, false) > 0) {
    shape.dense_columns = parallel::part_of(config.intermediate_size, layout.dense_ffn());
  }
  if (config.moe) {
    shape.experts = parallel::part_of(map == nullptr ? config.moe->experts : map->physical, layout.experts());
    shape.expert_columns = parallel::part_of(config.moe->expert_width, layout.expert_tp());
    shape.shared_columns = parallel::part_of(config.moe->shared_width, layout.shared_experts());
  }
  bool embedded = false;  // a tied head has the embedding's name, and comes after it
  for (const WeightStore::Declared& weight : rank.weights.declared()) {
    const bool table = weight.name.starts_with("model.embed_tokens");
    WeightPart& part = part_of_name(config, shape, weight.name, weight.name == "lm_head.weight" || (table && embedded));
    embedded = embedded || table;
    part.values += weight.values;
    part.bytes += static_cast<int64_t>(weight.bytes);
  }
  shape.kv_bytes_per_token = static_cast<int64_t>(rank.decoder->kv().bytes_per_token());
  shape.state_bytes_per_sequence = static_cast<int64_t>(rank.decoder->states().bytes_per_sequence());
  return shape;
}

}  // namespace

Result<RankShape> shape_of_rank(const ModelConfig& config, const parallel::Layout& layout, kernels::DType dtype,
                                const tensor::TensorSource& source, std::optional<kernels::DType> kv_dtype,
                                bool rounded, const moe::ExpertMap* map) {
  SLUICE_TRY(const FamilyRow* family, find_family(config.architectures[0]));
  const CountedRank rank(*family, config, layout, dtype, source, {}, rounded, map);
  if (kv_dtype) rank.decoder->kv().store_as(*kv_dtype);
  return shape_of(rank, config, map);
}

Result<RankNeeds> needs_of_rank(const ModelConfig& config, const parallel::Layout& layout, kernels::DType dtype,
                                const tensor::TensorSource& source, const StepShape& step,
                                std::optional<kernels::DType> kv_dtype, bool rounded, const moe::ExpertMap* map) {
  SLUICE_TRY(const FamilyRow* family, find_family(config.architectures[0]));
  const CountedRank rank(*family, config, layout, dtype, source, step.deepep, rounded, map);
  Decoder& decoder = *rank.decoder;
  if (kv_dtype) decoder.kv().store_as(*kv_dtype);
  if (step.in_halves) decoder.count_halves(2);
  const Context context{&rank.backend, nullptr};
  SLUICE_TRY_VOID(decoder.allocate(context, step.max_tokens));
  SLUICE_TRY_VOID(decoder.routing().allocate(context, step.max_tokens * layout.dp_size, step.records_routing));
  return RankNeeds{.shape = shape_of(rank, config, map),
                   .buffers = step_buffers(decoder, config, layout, step, rank.backend.host_visible())};
}

Result<int64_t> own_weight_bytes(const ModelConfig& config, const parallel::Layout& layout, kernels::DType dtype,
                                 const tensor::TensorSource& source, bool rounded, const moe::ExpertMap* map) {
  SLUICE_TRY(const FamilyRow* family, find_family(config.architectures[0]));
  std::vector<std::vector<WeightIdentity>> declared(static_cast<size_t>(layout.tp_size));
  parallel::Layout each = layout;
  for (each.tp_rank = 0; each.tp_rank < layout.tp_size; ++each.tp_rank) {
    const CountedRank rank(*family, config, each, dtype, source, {}, rounded, map);
    auto& identities = declared[static_cast<size_t>(each.tp_rank)];
    for (const auto& weight : rank.weights.declared()) identities.push_back(weight.identity);
  }
  const auto own = static_cast<size_t>(layout.tp_rank);
  return proportional_bytes(declared[own], find_common(declared, own));
}

int64_t staged_integers(const StepShape& step, const parallel::Layout& layout) {
  return 4 * step.max_tokens + 5 * step.max_seqs + 5 + (layout.dp_attention() ? layout.dp_size : 0);
}

StepBuffers step_buffers(const Decoder& decoder, const ModelConfig& config, const parallel::Layout& layout,
                         const StepShape& step, bool host_visible) {
  StepBuffers buffers{.bytes = static_cast<int64_t>(decoder.buffer_bytes()),
                      .dispatch_bytes = static_cast<int64_t>(decoder.dispatch_bytes())};
  const int64_t staged = staged_integers(step, layout) * static_cast<int64_t>(sizeof(int32_t));
  buffers.host_bytes = staged;
  if (layout.leads()) {
    // Logits of a step in which every row is asked for: put together from the parts of several ranks, and copied from a
    // device. What the device has of them is the decoder's.
    const int64_t copies = (layout.head().size > 1 ? 1 : 0) + (host_visible ? 0 : 1);
    buffers.host_bytes += copies * step.max_tokens * config.vocab_size * static_cast<int64_t>(sizeof(float));
  }
  buffers.bytes += staged + buffers.host_bytes;  // the former on the device
  return buffers;
}

std::unique_ptr<tensor::TensorSource> dummy_weights(const ModelConfig& config) {
  return tensor::dummy_source([fp8 = config.fp8](std::string_view name) { return fp8 && is_fp8_matrix(name); });
}

}  // namespace sluice::models
