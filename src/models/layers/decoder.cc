#include "models/layers/decoder.h"

#include <numeric>
#include <optional>

#include "base/check.h"
#include "base/pulse.h"
#include "models/layers/attention.h"
#include "models/layers/ffn.h"
#include "models/layers/layer_communicator.h"
#include "models/layers/ops.h"

namespace sluice::models {
namespace {

int64_t sum_of(std::span<const int64_t> counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

}  // namespace

Decoder::Decoder(const ModelConfig& config, WeightStore& weights)
    : config_(config),
      weights_(weights),
      scratch_(weights.backend()),
      second_scratch_(weights.backend()),
      kv_(weights.backend(), weights.dtype()),
      states_(weights.backend()),
      routing_(weights.backend()),
      groups_(weights.groups()) {
  const parallel::Layout& layout = weights.layout();
  const int64_t hidden = config.hidden_size, vocab = config.vocab_size;
  const parallel::Slice head = parallel::part_of(vocab, layout.head());
  vocabulary_ = parallel::part_of(vocab, layout.attention_tp());
  embedding_ = weights.table(part("model.embed_tokens.weight", vocab, vocabulary_), hidden);
  if (const moe::ExpertMap* map = weights.expert_map()) {
    copy_chooser_ = std::make_unique<moe::CopyChooser>(weights.backend(), *map, layout);
  }
  communicator_ = std::make_unique<LayerCommunicator>(config, weights, scratch_);
  final_norm_ = weights.vector({{"model.norm.weight", hidden}});
  head_ = weights.linear({part(config.tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight", vocab, head)},
                         hidden);
  inverse_frequencies_ = weights.constant("rope.inverse_frequencies", inverse_frequencies(config));

  // Input logprobs may ask for the logits of every row.
  const auto element = static_cast<int64_t>(tensor::block_bytes(weights.dtype()));
  const int64_t groups = layout.dp_lm_head ? 1 : layout.dp_size;  // whose logits this rank computes a part of
  // The rows of a part of them may be padded for a product.
  hidden_ = scratch_.declare("hidden", hidden * 4, 1, weights.backend().group_padding(1));
  cos_sin_ = scratch_.declare("cos_sin", 2 * inverse_frequencies_.size * 4);
  logit_hidden_ = scratch_.declare("logit_hidden", hidden * 4);
  logit_normed_ = scratch_.declare("logit_normed", hidden * element, groups);
  logits_ = scratch_.declare("logits", head.count * 4, groups);
  pieces_ = scratch_.declare("logit_pieces", layout.head().size > 1 && layout.leads() ? vocab * 4 : 0);
}

Decoder::~Decoder() = default;

const moe::Dispatcher& Decoder::dispatcher(const moe::Sizes& sizes) {
  if (!dispatchers_[0]) {
    dispatchers_[0] = moe::make_dispatcher(weights_.backend(), groups_, sizes, weights_.deepep());
    dispatch_sizes_ = sizes;
  }
  SLUICE_CHECK(dispatch_sizes_ == sizes, "layers with {} and with {} experts", dispatch_sizes_.experts, sizes.experts);
  return *dispatchers_[0];
}

void Decoder::overlap(parallel::Overlap& overlap) {
  if (!dispatchers_[0]) return;
  overlap_ = &overlap;
  halves_ = overlap.halves();
  for (size_t i = 0; i < halves_; ++i) {
    dispatchers_[i] = moe::make_dispatcher(weights_.backend(), &overlap.half(i), dispatch_sizes_, weights_.deepep());
  }
}

void Decoder::count_halves(size_t halves) {
  if (!dispatchers_[0]) return;
  halves_ = halves;
  for (size_t i = 1; i < halves_; ++i) {
    dispatchers_[i] = moe::make_dispatcher(weights_.backend(), groups_, dispatch_sizes_, weights_.deepep());
  }
}

Result<void> Decoder::allocate(const kernels::Context& context, int64_t max_tokens) {
  if (splits()) second_scratch_.declare_all_of(scratch_);
  SLUICE_TRY_VOID(scratch_.allocate(max_tokens));
  SLUICE_TRY_VOID(second_scratch_.allocate(max_tokens));
  if (copy_chooser_) SLUICE_TRY_VOID(copy_chooser_->allocate(context));
  for (const auto& dispatcher : dispatchers_) {
    if (dispatcher) SLUICE_TRY_VOID(dispatcher->allocate(max_tokens, max_tokens * weights_.layout().dp_size));
  }
  return {};
}

size_t Decoder::buffer_bytes() const {
  return scratch_.bytes() + second_scratch_.bytes() + routing_.bytes() + dispatch_bytes();
}

size_t Decoder::dispatch_bytes() const {
  size_t bytes = 0;
  for (const auto& dispatcher : dispatchers_) {
    if (dispatcher) bytes += dispatcher->bytes();
  }
  return bytes;
}

Result<Logits> Decoder::forward(const kernels::Context& context, const ForwardBatch& batch,
                                const HalfBatches* halves) const {
  std::optional<parallel::Turn> turn;
  if (overlap_ != nullptr) turn.emplace(overlap_->turns());
  auto* hidden = scratch_.at<float>(hidden_);
  auto* cos_sin = scratch_.at<float>(cos_sin_);
  SLUICE_TRY_VOID(embed(context, batch, hidden));
  context.backend->rope_angles(context, {.positions = batch.positions,
                                         .inverse_frequencies = weights_.address(inverse_frequencies_),
                                         .cos_sin = cos_sin,
                                         .n = batch.n_tokens,
                                         .half = inverse_frequencies_.size,
                                         .scale = static_cast<float>(config_.rope.angle_scale)});
  Step step{.batch = batch,
            .kv = kv_,
            .states = states_,
            .scratch = scratch_,
            .groups = groups_,
            .dispatcher = dispatchers_[0].get(),
            .overlap = overlap_,
            .cos_sin = cos_sin,
            .number = ++steps_};
  SLUICE_TRY_VOID(halves == nullptr ? layers(context, step, Order::kAny, hidden)
                                    : layers_in_halves(context, step, *halves, hidden));
  step.layer = -1;
  step.progress(parallel::Phase::kHead);
  return head(context, batch, hidden);
}

Result<void> Decoder::layers(const kernels::Context& context, Step step, Order order, float* hidden) const {
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const auto done = static_cast<int64_t>(i + 1);
    if (order == Order::kSecond) overlap_->turns().wait_for(done);
    step.layer = static_cast<int>(i / 2);
    Pulse::own().set({.phase = Pulse::Phase::kStep, .step = step.number, .layer = step.layer});
    if (goes_on_ && i % 2 == 0 && !goes_on_()) {
      return Error{ErrorCode::kCancelled, fmt::format("ended before layer {}", step.layer)};
    }
    SLUICE_TRY_VOID(communicator_->run(context, step, *blocks_[i], hidden));
    if (order == Order::kFirst) overlap_->turns().reach(done);
  }
  return {};
}

// The rows of the second half lie apart meanwhile: products write a few rows beyond those of the first.
Result<void> Decoder::layers_in_halves(const kernels::Context& context, const Step& whole, const HalfBatches& halves,
                                       float* hidden) const {
  const auto& [first, second] = halves.half;
  const Step one{.batch = first,
                 .kv = kv_,
                 .states = states_,
                 .scratch = scratch_,
                 .groups = &overlap_->half(0),
                 .dispatcher = dispatchers_[0].get(),
                 .cos_sin = whole.cos_sin,
                 .number = whole.number};
  const Step two{.batch = second,
                 .kv = kv_,
                 .states = states_,
                 .scratch = second_scratch_,
                 .groups = &overlap_->half(1),
                 .dispatcher = dispatchers_[1].get(),
                 .routed_before = parallel::part_of(first.n_tokens, weights_.layout().attention_tp()).count,
                 .cos_sin = whole.cos_sin + first.n_tokens * 2 * inverse_frequencies_.size,
                 .number = whole.number};
  float* const rest = hidden + first.n_tokens * config_.hidden_size;
  auto* apart = second_scratch_.at<float>(hidden_);
  const auto bytes = static_cast<size_t>(second.n_tokens * config_.hidden_size) * sizeof(float);
  context.backend->copy(context, apart, rest, bytes);

  SLUICE_TRY_VOID(
      overlap_->both([&] { return layers(context, one, halves.in_order ? Order::kFirst : Order::kAny, hidden); },
                     [&] { return layers(context, two, halves.in_order ? Order::kSecond : Order::kAny, apart); }));
  context.backend->copy(context, rest, apart, bytes);
  return {};
}

Result<void> Decoder::embed(const kernels::Context& context, const ForwardBatch& batch, float* hidden) const {
  context.backend->embed(context, {.table = weights_.address(embedding_),
                                   .dtype = embedding_.dtype,
                                   .first = vocabulary_.first,
                                   .rows = vocabulary_.count,
                                   .ids = batch.token_ids,
                                   .out = hidden,
                                   .n = batch.n_tokens,
                                   .width = config_.hidden_size});
  // An id of nobody's table is a row of zeros everywhere, to which one rank of a group adds what was given.
  const int64_t width = config_.hidden_size;
  auto embeds = batch.embeds;
  for (int64_t i = 0; !embeds.empty() && i < batch.n_tokens; ++i) {
    if (batch.host_token_ids[i] >= 0) continue;
    context.backend->copy_to_device(context, hidden + i * width, embeds.data(),
                                    static_cast<size_t>(width) * sizeof(float));
    embeds = embeds.subspan(static_cast<size_t>(width));
  }
  if (vocabulary_.count == config_.vocab_size) return {};
  return groups_->attention_tp->all_reduce(context, parallel::Element::kF32, hidden, hidden,
                                           batch.n_tokens * config_.hidden_size);
}

// Only the rows whose logits are wanted go through the head. A head that is divided among attention groups computes its
// part of the vocabulary for the rows of all of them.
Result<Logits> Decoder::head(const kernels::Context& context, const ForwardBatch& batch, const float* hidden) const {
  const parallel::Layout& layout = weights_.layout();
  const int64_t width = config_.hidden_size;
  auto* logit_hidden = scratch_.at<float>(logit_hidden_);
  auto* normed = scratch_.at<char>(logit_normed_);
  auto* logits = scratch_.at<float>(logits_);
  char* own = normed;
  int64_t rows = batch.n_logits;
  const bool gathered = layout.dp_attention() && !layout.dp_lm_head;
  std::vector<int64_t> counts = gathered_rows(batch.group_logits, batch.padded_rows);
  if (gathered) {
    const size_t row_bytes = static_cast<size_t>(width) * tensor::block_bytes(weights_.dtype());
    const parallel::Slice own_rows = rows_of_group(counts, layout.attention_dp().rank);
    own += static_cast<size_t>(own_rows.first) * row_bytes;
    rows = sum_of(counts);
    fill_up(context, own, row_bytes, batch.n_logits, own_rows.count);
  }
  context.backend->gather_rows(
      context, {.in = hidden, .rows = batch.logit_rows, .out = logit_hidden, .n = batch.n_logits, .width = width});
  rms_norm(context, weights_, final_norm_, logit_hidden, own, batch.n_logits, config_.rms_norm_eps);
  if (gathered) {
    for (int64_t& count : counts) count *= width;
    SLUICE_TRY_VOID(
        groups_->attention_dp->all_gather_v(context, parallel::element_of(weights_.dtype()), own, normed, counts));
  }
  product(context, weights_, head_, normed, logits, rows);
  if (layout.head().size == 1) return Logits{logits, rows, {config_.vocab_size}};
  return exchange_logits(context, batch, logits);
}

// Every leader gets the logits of its group's rows from each of the ranks among which the head is divided.
Result<Logits> Decoder::exchange_logits(const kernels::Context& context, const ForwardBatch& batch,
                                        const float* logits) const {
  const parallel::Layout& layout = weights_.layout();
  const parallel::Place place = layout.head();
  parallel::Communicator& group = layout.dp_lm_head ? *groups_->attention_tp : *groups_->all;
  std::vector<int64_t> send, receive;
  const bool gathered = layout.dp_attention() && !layout.dp_lm_head;
  const std::vector<int64_t> counts = gathered_rows(batch.group_logits, batch.padded_rows);
  const auto rows_of = [&](int64_t rank) {
    return gathered ? counts[static_cast<size_t>(rank / layout.attention_tp_size())] : batch.n_logits;
  };
  Logits pieces{scratch_.at<float>(pieces_), rows_of(layout.tp_rank), {}};
  for (int64_t rank = 0; rank < place.size; ++rank) {
    const bool leads = rank % layout.attention_tp_size() == 0;
    send.push_back(leads ? rows_of(rank) * head_.shape.out : 0);
    const int64_t width = parallel::part_of(config_.vocab_size, {rank, place.size}).count;
    receive.push_back(layout.leads() ? pieces.rows * width : 0);
    pieces.widths.push_back(width);
  }
  SLUICE_TRY_VOID(
      group.all_to_all_v(context, parallel::Element::kF32, logits, send, scratch_.at<float>(pieces_), receive));
  if (!layout.leads()) return Logits{};
  return pieces;
}

std::unique_ptr<Decoder> make_dense_decoder(const ModelConfig& config, WeightStore& weights) {
  auto decoder = std::make_unique<Decoder>(config, weights);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    decoder->add(std::make_unique<GroupedQueryAttention>(config, layer, weights, decoder->scratch(), decoder->kv()));
    decoder->add(std::make_unique<DenseFfn>(config, layer, weights, decoder->scratch()));
  }
  return decoder;
}

}  // namespace sluice::models
