#include "models/runner.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/check.h"
#include "models/batch_split.h"
#include "models/config.h"
#include "models/config_difference.h"
#include "models/dtypes.h"
#include "models/family.h"
#include "models/gguf_names.h"
#include "models/layers/decoder.h"
#include "models/layers/layer_communicator.h"
#include "models/rank_shape.h"
#include "models/rebalancer.h"
#include "models/sharding.h"
#include "tensor/block_scaled.h"
#include "tensor/dtype.h"
#include "tensor/dummy.h"
#include "tensor/safetensors.h"

namespace sluice::models {
namespace {

namespace fs = std::filesystem;

using Json = nlohmann::json;

// Of a tensor that somebody looks at; nothing else is done meanwhile.
constexpr int64_t kMostValues = int64_t{1} << 20;

Result<Json> read_json(const fs::path& path) {
  std::ifstream file(path);
  if (!file) return Error{ErrorCode::kNotFound, fmt::format("{}: cannot be read", path.string())};
  Json json = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return Error{ErrorCode::kProtocol, fmt::format("{}: not JSON", path.string())};
  return json;
}

struct Checkpoint {
  ModelConfig config;
  std::unique_ptr<tensor::TensorSource> source;
};

Result<Checkpoint> open_checkpoint(const RunnerOptions& options) {
  const std::string& path = options.model_path;
  Checkpoint checkpoint;
  SLUICE_TRY(checkpoint.config, load_config(path, options.config_override));
  if (options.dummy_weights) {
    checkpoint.source = dummy_weights(checkpoint.config);
    return checkpoint;
  }
  if (path.ends_with(".gguf")) {
    SLUICE_TRY(auto file, tensor::GgufFile::open(path));
    checkpoint.source = gguf_source(std::move(file));
    return checkpoint;
  }
  SLUICE_TRY(checkpoint.source, tensor::open_safetensors(path));
  if (checkpoint.config.fp8) checkpoint.source = tensor::block_scaled(std::move(checkpoint.source), 128, 128);
  // A decoder by itself embeds texts, and may have no head: nobody looks at what the embedding makes of them.
  if (!checkpoint.config.tie_embeddings && checkpoint.source->has("embed_tokens.weight") &&
      !checkpoint.source->has("lm_head.weight")) {
    if (!options.embeds_only) {
      return Error{
          ErrorCode::kInvalidArgument,
          fmt::format("{}: without lm_head.weight it generates nothing; with --is-embedding it embeds texts", path)};
    }
    checkpoint.config.tie_embeddings = true;
  }
  return checkpoint;
}

Result<void> check_memory(const WeightStore& weights, size_t limit) {
  if (limit == 0 || weights.own_bytes() <= limit) return {};
  constexpr double kMiB = 1 << 20;
  return Error{ErrorCode::kExhausted,
               fmt::format("this rank's weights take {:.0f} MiB, and its share of the host's memory is {:.0f} MiB",
                           static_cast<double>(weights.own_bytes()) / kMiB, static_cast<double>(limit) / kMiB)};
}

std::string_view name_of(kernels::DType dtype) {
  if (dtype == kernels::DType::kF8E4M3) return "fp8_e4m3";
  return dtype == kernels::DType::kBf16 ? "bf16" : "f32";
}

// A model's files as they stand. To be taken before they are opened: those that are replaced meanwhile are others.
std::string files_now(const std::string& path) {
  std::vector<std::string> files{path};
  if (!path.ends_with(".gguf")) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(path, ignored)) {
      const auto name = entry.path().filename().string();
      if (name.ends_with(".safetensors") || name == "config.json") files.push_back(entry.path().string());
    }
    std::sort(files.begin(), files.end());
  }
  std::string text;
  for (const auto& file : files) {
    struct stat status {};
    if (::stat(file.c_str(), &status) != 0) std::memset(&status, 0, sizeof(status));
    text +=
        fmt::format("|{}|{}|{}|{}|{}", file, static_cast<uint64_t>(status.st_ino), static_cast<int64_t>(status.st_size),
                    static_cast<int64_t>(status.st_mtim.tv_sec), static_cast<int64_t>(status.st_mtim.tv_nsec));
  }
  return text;
}

// What the packed weights depend on: the files, the arithmetic, and whose part they are.
uint64_t weights_key(const std::string& files, const RunnerOptions& options, const WeightStore& weights) {
  const parallel::Layout& layout = weights.layout();
  const moe::ExpertPlacement& experts = options.expert_placement;
  const std::string text =
      fmt::format("{}{}|{}|{}|{}/{}/{}/{}/{}{}{}|{}/{}/{}/{}{}", tensor::to_string(weights.dtype()), weights.rounded(),
                  options.dummy_weights, options.config_override, layout.tp_rank, layout.tp_size, layout.dp_size,
                  layout.ep_size, static_cast<int>(layout.a2a), layout.dense_data_parallel, layout.dp_lm_head,
                  experts.redundant, experts.location, experts.algorithm, experts.nodes, files);
  return XXH64(text.data(), text.size(), 0);
}

class DecoderRunner final : public Runner {
 public:
  static Result<std::unique_ptr<Runner>> load(const RunnerOptions& options,
                                              const std::function<void(double, std::string_view)>& progress) {
    const std::string files = files_now(options.model_path);
    SLUICE_TRY(Checkpoint checkpoint, open_checkpoint(options));
    SLUICE_TRY(const Arithmetic arithmetic, arithmetic_of(options.dtype));
    SLUICE_TRY(const kernels::DType kv_dtype, kv_dtype_of(options.kv_cache_dtype, arithmetic.dtype));
    SLUICE_TRY(auto backend, kernels::make_backend(options.device, options.threads));
    if (options.kernel_times != nullptr) {
      backend = kernels::time_kernels(std::move(backend), *options.kernel_times);
    }
    if (!backend->multiplies(arithmetic.dtype)) {
      return Error{ErrorCode::kBadOption,
                   fmt::format("--dtype {}: this machine has no matrix products in it; use float32", options.dtype)};
    }
    SLUICE_TRY(const FamilyRow* family, find_family(checkpoint.config.architectures[0]));
    const parallel::Layout layout = options.groups == nullptr ? parallel::Layout{} : options.groups->layout;
    SLUICE_TRY(auto map, check_sharding(checkpoint.config, layout, options.expert_placement));

    std::unique_ptr<DecoderRunner> runner(new DecoderRunner(options, std::move(backend), checkpoint.config, arithmetic,
                                                            *checkpoint.source, std::move(map)));
    runner->decoder_ = family->make(checkpoint.config, runner->weights_);
    runner->decoder_->kv().store_as(kv_dtype);
    if (options.overlap != nullptr) runner->decoder_->overlap(*options.overlap);
    if (options.rebalance) runner->make_rebalancer();
    runner->loaded_key_ = weights_key(files, options, runner->weights_);
    SLUICE_TRY_VOID(runner->weights_.find_common());
    if (auto filled = runner->fill(options, *checkpoint.source, progress); !filled.ok()) {
      // From here on ranks wait for each other's part.
      if (options.groups != nullptr && options.groups->all != nullptr) {
        options.groups->all->abort(filled.error().message);
      }
      return filled.error();
    }
    runner->fill_info(options);
    return std::unique_ptr<Runner>(std::move(runner));
  }

  ~DecoderRunner() override {
    if (device_table_ != nullptr && !backend_->host_visible()) backend_->release(device_table_, table_bytes());
    if (staged_ != nullptr) backend_->release(staged_, staged_bytes_);
  }

  const ModelInfo& info() const override { return info_; }

  Result<void> allocate_kv(const KvPlan& plan) override {
    SLUICE_TRY_VOID(decoder_->kv().allocate(plan.slots));
    SLUICE_TRY_VOID(decoder_->states().allocate(plan.table_rows + plan.kept_states));
    table_width_ = plan.table_width;
    table_.assign(static_cast<size_t>(plan.table_rows) * static_cast<size_t>(plan.table_width), 0);
    device_table_ = table_.data();
    if (!backend_->host_visible()) {
      SLUICE_TRY(void* table, backend_->allocate(table_bytes()));
      device_table_ = static_cast<int32_t*>(table);
    }
    return {};
  }

  std::span<int32_t> slot_table() override { return table_; }

  Result<std::span<const float>> forward(const StepBatch& batch) override {
    ++steps_;
    if (rebalancer_) SLUICE_TRY_VOID(rebalancer_->before_step(context_, steps_));
    auto logits = compute(batch);
    if (!logits.ok()) return logits;
    if (recorder_ && recorder_->recording()) record(batch);
    if (rebalancer_) rebalancer_->after_step(context_, batch.extend);
    return logits;
  }

  moe::RebalanceCounts rebalance_counts() const override {
    return rebalancer_ ? rebalancer_->counts() : moe::RebalanceCounts{};
  }
  uint64_t expert_places() const override { return first_places_ + (rebalancer_ ? rebalancer_->moved() : 0); }
  moe::RankTokens take_rank_tokens() override {
    return rebalancer_ ? rebalancer_->take_rank_tokens() : moe::RankTokens{};
  }

  Result<std::string> record_experts(std::string_view command) override {
    if (decoder_->routing().layers() == 0) return Runner::record_experts(command);
    if (!recorder_) {
      return Error{ErrorCode::kUnimplemented,
                   "experts are recorded with --expert-distribution-recorder-mode stat, per_pass or per_token"};
    }
    if (command == "start") {
      recorder_->start(own_loads());
    } else if (command == "stop") {
      recorder_->stop();
    } else if (command == "dump") {
      return recorder_->take().dump();
    } else {
      return Error{ErrorCode::kInvalidArgument, fmt::format("'{}' is no command of a recorder", command)};
    }
    return std::string();
  }

  std::vector<float> hidden(int64_t row) const override {
    const auto width = static_cast<size_t>(config_.hidden_size);
    const auto first = static_cast<size_t>(first_normed_ + row) * width;
    std::vector<float> out(width);
    if (weights_.dtype() == kernels::DType::kF32) {
      backend_->copy_to_host(context_, out.data(), static_cast<const float*>(decoder_->normed()) + first,
                             width * sizeof(float));
      backend_->synchronize(context_);
      return label_weights_.empty() ? out : label_scores(out);
    }
    std::vector<uint16_t> halves(width);
    backend_->copy_to_host(context_, halves.data(), static_cast<const uint16_t*>(decoder_->normed()) + first,
                           width * sizeof(uint16_t));
    backend_->synchronize(context_);
    for (size_t i = 0; i < width; ++i) out[i] = tensor::bf16_to_float(halves[i]);
    return label_weights_.empty() ? out : label_scores(out);
  }

  Result<void> reload(const std::string& model_path, const Progress& progress) override {
    RunnerOptions other = weights_from_;
    other.model_path = model_path;
    other.dummy_weights = false;
    const std::string files = files_now(model_path);
    SLUICE_TRY(const Checkpoint checkpoint, open_checkpoint(other));
    if (const auto what = difference(config_, checkpoint.config); !what.empty()) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("{} does not hold other weights of this model: {}", model_path, what)};
    }
    auto labels = read_label_weights(*checkpoint.source);
    if (!labels.ok()) return Error{ErrorCode::kInvalidArgument, labels.error().message};
    const uint64_t key = weights_key(files, other, weights_);
    if (auto filled = refill(*checkpoint.source, other, key, progress); !filled.ok()) {
      const auto back = [&]() -> Result<void> {
        const uint64_t old_key = weights_key(files_now(weights_from_.model_path), weights_from_, weights_);
        SLUICE_TRY(const Checkpoint old, open_checkpoint(weights_from_));
        SLUICE_TRY_VOID(refill(*old.source, weights_from_, old_key, progress));
        loaded_key_ = old_key;
        return {};
      }();
      if (!back.ok()) {
        return Error{ErrorCode::kInternal, fmt::format("{}; nor can the weights that were there be read again: {}",
                                                       filled.error().message, back.error().message)};
      }
      return Error{ErrorCode::kInvalidArgument, filled.error().message};
    }
    label_weights_ = std::move(*labels);
    weights_from_ = std::move(other);
    loaded_key_ = key;
    return {};
  }
  Result<WeightValues> read_weight(std::string_view name, int64_t rows) const override {
    if (weights_key(files_now(weights_from_.model_path), weights_from_, weights_) != loaded_key_) {
      return Error{ErrorCode::kUnavailable,
                   fmt::format("{}: the files have changed since their weights were loaded", weights_from_.model_path)};
    }
    SLUICE_TRY(const Checkpoint checkpoint, open_checkpoint(weights_from_));
    SLUICE_TRY(auto stored, checkpoint.source->find_weight(name));
    if (stored.shape.empty()) stored.shape = {1};
    WeightValues out{.shape = stored.shape, .values = {}};
    out.shape[0] = std::min(out.shape[0], rows);
    if (const int64_t count = out.shape[0] * stored.row_elements(); count > kMostValues) {
      return Error{ErrorCode::kInvalidArgument, fmt::format("{}: {} rows hold {} values, of which {} at most are shown",
                                                            name, out.shape[0], count, kMostValues)};
    }
    out.values.resize(static_cast<size_t>(out.shape[0] * stored.row_elements()));
    stored.read_rows(0, out.shape[0], out.values.data());
    return out;
  }
  // A step whose routing is kept is one batch where the members of attention groups divide its tokens, which would be
  // those of each half.
  bool can_split() const override {
    if (!decoder_->splits()) return false;
    const bool kept = decoder_->routing().layers() > 0 && decoder_->routing().chosen({}) != nullptr;
    return !kept || weights_.layout().attention_tp_size() == 1;
  }
  void ask_between_layers(std::function<bool()> goes_on) override {
    SLUICE_CHECK(weights_.layout().tp_size == 1, "the other ranks of an instance would wait for this one");
    decoder_->ask_between_layers(std::move(goes_on));
  }
  void copy_state(int32_t from, int32_t to) override { decoder_->states().copy(context_, from, to); }

  std::vector<std::vector<int64_t>> expert_loads() const override {
    const RoutingRecord& routing = decoder_->routing();
    std::vector<std::vector<int64_t>> loads;
    for (int64_t layer = 0; layer < routing.layers(); ++layer) {
      loads.push_back(to_host(routing.loads({layer}), routing.experts()));
    }
    return loads;
  }

  void force_routing(const Routing& routing) override { decoder_->routing().force(context_, routing.experts); }

  Routing last_routing() const override {
    const RoutingRecord& record = decoder_->routing();
    Routing routing{.layers = record.layers(), .top_k = record.top_k()};
    for (int64_t layer = 0; config_.moe && layer < config_.num_layers; ++layer) {
      if (config_.moe->sparse[static_cast<size_t>(layer)]) routing.numbers.push_back(layer);
    }
    for (int64_t layer = 0; layer < routing.layers && record.chosen({layer}) != nullptr; ++layer) {
      const auto experts = to_host(record.chosen({layer}) + last_first_ * routing.top_k, last_tokens_ * routing.top_k);
      const auto margins = to_host(record.margins({layer}) + last_first_, last_tokens_);
      routing.experts.insert(routing.experts.end(), experts.begin(), experts.end());
      routing.margins.insert(routing.margins.end(), margins.begin(), margins.end());
    }
    return routing;
  }

 private:
  DecoderRunner(const RunnerOptions& options, std::unique_ptr<kernels::Backend> backend, ModelConfig config,
                const Arithmetic& arithmetic, const tensor::TensorSource& source, std::optional<moe::ExpertMap> map)
      : weights_from_(options),
        max_tokens_(options.max_step_tokens),
        max_seqs_(options.max_step_seqs),
        config_(std::move(config)),
        expert_map_(std::move(map)),
        backend_(std::move(backend)),
        stream_(backend_->make_stream()),
        context_{backend_.get(), stream_.get()},
        weights_(*backend_, arithmetic.dtype, &source, options.groups, expert_map_ ? &*expert_map_ : nullptr,
                 options.deepep, arithmetic.rounded) {
    if (!expert_map_) return;
    for (const auto& places : expert_map_->location) {
      first_places_ = XXH64(places.data(), places.size() * sizeof(int32_t), first_places_);
    }
  }

  // Of load(), what follows WeightStore::find_common().
  Result<void> fill(const RunnerOptions& options, const tensor::TensorSource& source, const Progress& progress) {
    SLUICE_TRY_VOID(check_memory(weights_, options.memory_bytes));
    SLUICE_TRY_VOID(weights_.materialise(
        source, context_, {.fd = options.shared_weights_fd, .key = loaded_key_, .threads = options.threads}, progress));
    const auto& recorder = options.expert_recorder;
    const bool each_token = recorder && recorder->mode == moe::RecordMode::kPerToken;
    SLUICE_TRY_VOID(make_buffers(options.record_routing || each_token));
    if (recorder && config_.moe) make_recorder(*recorder);
    if (rebalancer_) SLUICE_TRY_VOID(rebalancer_->begin(context_));
    SLUICE_TRY(label_weights_, read_label_weights(source));
    return {};
  }

  Result<std::span<const float>> compute(const StepBatch& batch) {
    size_t used = 0;
    ForwardBatch staged = stage(batch, used);
    std::optional<HalfBatches> halves;
    if (!batch.first_half.empty() && can_split()) halves = stage_halves(batch, staged, used);
    backend_->copy_to_device(context_, staged_, host_staged_.data(), used * sizeof(int32_t));
    const parallel::Layout& layout = weights_.layout();
    const bool own_tokens = layout.a2a != parallel::MoeAllToAll::kNone;
    last_first_ = 0;
    first_normed_ = 0;
    if (layout.dp_attention() && !layout.dp_lm_head) {
      const auto rows = gathered_rows(batch.group_logits, batch.padded_rows);
      first_normed_ = rows_of_group(rows, layout.attention_dp().rank).first;
    }
    if (layout.dp_attention() && !own_tokens) {
      const auto rows = gathered_rows(batch.group_tokens, batch.padded_rows);
      last_first_ = rows_of_group(rows, layout.attention_dp().rank).first;
    }
    last_tokens_ = own_tokens ? parallel::part_of(staged.n_tokens, layout.attention_tp()).count : staged.n_tokens;
    SLUICE_TRY(const Logits logits, decoder_->forward(context_, staged, halves ? &*halves : nullptr));
    if (logits.widths.empty()) {
      backend_->synchronize(context_);
      return std::span<const float>();
    }
    const size_t count = batch.logit_rows.size() * static_cast<size_t>(config_.vocab_size);
    const float* values = logits.values;
    if (!backend_->host_visible()) {
      host_logits_.resize(static_cast<size_t>(logits.rows * config_.vocab_size));
      backend_->copy_to_host(context_, host_logits_.data(), values, host_logits_.size() * sizeof(float));
      values = host_logits_.data();
    }
    backend_->synchronize(context_);
    if (logits.widths.size() == 1) return std::span<const float>(values, count);
    return joined(logits, values, staged.n_logits);
  }

  // Tokens that each of this rank's experts got since the start, layer by layer.
  std::vector<int64_t> own_loads() const {
    const RoutingRecord& routing = decoder_->routing();
    const parallel::Slice own = parallel::part_of(routing.experts(), weights_.layout().experts());
    std::vector<int64_t> loads;
    for (int64_t layer = 0; layer < routing.layers(); ++layer) {
      const auto of_layer = to_host(routing.loads({layer}) + own.first, own.count);
      loads.insert(loads.end(), of_layer.begin(), of_layer.end());
    }
    return loads;
  }

  void record(const StepBatch& batch) {
    if (recorder_->mode() != moe::RecordMode::kPerToken) return recorder_->add(steps_, own_loads(), {});
    const Routing routing = last_routing();
    // Of the group's tokens those whose experts this rank has chosen.
    parallel::Slice tokens{0, std::ssize(batch.token_ids)};
    if (weights_.layout().a2a != parallel::MoeAllToAll::kNone) {
      tokens = parallel::part_of(tokens.count, weights_.layout().attention_tp());
    }
    const auto first = static_cast<size_t>(tokens.first), count = static_cast<size_t>(tokens.count);
    recorder_->add(steps_, own_loads(),
                   {.ids = batch.token_ids.subspan(first, count),
                    .positions = batch.positions.subspan(first, count),
                    .experts = routing.experts,
                    .top_k = routing.top_k});
  }

  void make_rebalancer() {
    const Rebalancer::Model model{.weights = weights_,
                                  .decoder = *decoder_,
                                  .map = *expert_map_,
                                  .placement = weights_from_.expert_placement,
                                  .sizes = {.layers = config_.num_layers,
                                            .experts = config_.moe->experts,
                                            .groups = config_.moe->groups,
                                            .ranks = weights_.layout().ep_size}};
    const auto on_moved = [this](size_t layer, std::vector<int32_t> own) {
      if (recorder_) recorder_->relocate(layer, std::move(own));
    };
    rebalancer_ = std::make_unique<Rebalancer>(*weights_from_.rebalance, model, on_moved);
  }

  void make_recorder(const moe::ExpertRecorder::Options& options) {
    const parallel::Layout& layout = weights_.layout();
    const RoutingRecord& routing = decoder_->routing();
    moe::ExpertRecorder::Experts experts{
        .tp_size = layout.tp_size, .model_layers = config_.num_layers, .logical = config_.moe->experts};
    const parallel::Slice own = parallel::part_of(routing.experts(), layout.experts());
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      if (!config_.moe->sparse[static_cast<size_t>(layer)]) continue;
      experts.layers.push_back(layer);
      std::vector<int32_t>& numbers = experts.own.emplace_back(static_cast<size_t>(own.count));
      std::iota(numbers.begin(), numbers.end(), static_cast<int32_t>(own.first));
      if (!expert_map_) continue;
      for (int32_t& number : numbers)
        number = expert_map_->location[static_cast<size_t>(layer)][static_cast<size_t>(number)];
    }
    experts.move = rebalancer_ != nullptr;
    experts.reports = layout.expert_tp().rank == 0;
    recorder_.emplace(options, std::move(experts));
  }

  // A classifier's head, whole on every rank: it is small, and used once per request. Empty for other models.
  Result<std::vector<float>> read_label_weights(const tensor::TensorSource& source) const {
    std::vector<float> weights;
    if (config_.labels.empty()) return weights;
    const auto labels = std::ssize(config_.labels);
    SLUICE_TRY(const auto stored, source.find_shaped("score.weight", {labels, config_.hidden_size}));
    weights.resize(static_cast<size_t>(labels * config_.hidden_size));
    stored.read_rows(0, labels, weights.data());
    return weights;
  }
  std::vector<float> label_scores(const std::vector<float>& hidden) const {
    std::vector<float> scores(config_.labels.size());
    for (size_t i = 0; i < scores.size(); ++i) {
      scores[i] = std::inner_product(hidden.begin(), hidden.end(),
                                     label_weights_.begin() + static_cast<std::ptrdiff_t>(i * hidden.size()), 0.0f);
    }
    return scores;
  }

  // `rows` whole logits, of pieces that lie at `pieces` in host memory.
  std::span<const float> joined(const Logits& logits, const float* pieces, int64_t rows) {
    joined_logits_.resize(static_cast<size_t>(rows * config_.vocab_size));
    int64_t first = 0;
    for (const int64_t width : logits.widths) {
      for (int64_t row = 0; row < rows; ++row) {
        std::copy_n(pieces + row * width, width, joined_logits_.data() + row * config_.vocab_size + first);
      }
      pieces += logits.rows * width;
      first += width;
    }
    return joined_logits_;
  }

  Result<void> refill(const tensor::TensorSource& source, const RunnerOptions& from, uint64_t key,
                      const Progress& progress) {
    return weights_.refill(source, context_, {.fd = from.shared_weights_fd, .key = key, .threads = from.threads},
                           progress);
  }

  template <class T>
  std::vector<T> to_host(const T* device, int64_t count) const {
    std::vector<T> values(static_cast<size_t>(count));
    backend_->copy_to_host(context_, values.data(), device, values.size() * sizeof(T));
    backend_->synchronize(context_);
    return values;
  }

  StepShape step_shape() const {
    return {
        .max_tokens = max_tokens_, .max_seqs = max_seqs_, .deepep = weights_.deepep(), .in_halves = decoder_->splits()};
  }

  size_t table_bytes() const { return table_.size() * sizeof(int32_t); }

  Result<void> make_buffers(bool record_routing) {
    SLUICE_TRY_VOID(decoder_->allocate(context_, max_tokens_));
    // A router may get the tokens of all attention groups.
    SLUICE_TRY_VOID(decoder_->routing().allocate(context_, max_tokens_ * weights_.layout().dp_size, record_routing));
    staged_bytes_ = static_cast<size_t>(staged_integers(step_shape(), weights_.layout())) * sizeof(int32_t);
    SLUICE_TRY(void* memory, backend_->allocate(staged_bytes_));
    staged_ = static_cast<int32_t*>(memory);
    host_staged_.resize(staged_bytes_ / sizeof(int32_t));
    return {};
  }

  void fill_info(const RunnerOptions& options) {
    info_.model_type = config_.model_type;
    info_.architectures = config_.architectures;
    info_.vocab_size = config_.vocab_size;
    info_.num_layers = config_.num_layers;
    info_.hidden_size = config_.hidden_size;
    info_.num_labels = std::ssize(config_.labels);
    info_.context_length = options.context_length.value_or(config_.max_position);
    info_.positions = config_.max_position;
    info_.eos_token_ids = config_.eos_token_ids;
    info_.bos_token_id = config_.bos_token_id;
    info_.dtype = name_of(weights_.dtype());
    info_.rounds_inputs = weights_.rounds_inputs();
    info_.kv_dtype = name_of(decoder_->kv().dtype());
    info_.kv_bytes_per_token = decoder_->kv().bytes_per_token();
    info_.state_bytes_per_sequence = decoder_->states().bytes_per_sequence();
    info_.weight_bytes = weights_.bytes();
    info_.own_weight_bytes = weights_.own_bytes();
    info_.buffer_bytes = static_cast<size_t>(
        step_buffers(*decoder_, config_, weights_.layout(), step_shape(), backend_->host_visible()).bytes);
    info_.temperature = config_.temperature;
    info_.top_p = config_.top_p;
    info_.min_p = config_.min_p;
    info_.repetition_penalty = config_.repetition_penalty;
    info_.top_k = config_.top_k;
  }

  const int32_t* put_words(std::span<const int32_t> values, size_t& used) {
    std::copy(values.begin(), values.end(), host_staged_.begin() + static_cast<std::ptrdiff_t>(used));
    const int32_t* at = staged_ + used;
    used += values.size();
    return at;
  }

  HalfBatches stage_halves(const StepBatch& batch, const ForwardBatch& whole, size_t& used) {
    const auto group = static_cast<size_t>(weights_.layout().attention_dp().rank);
    const auto shapes = halves_of(batch.query_start, batch.seq_lens, batch.first_half[group]);
    HalfBatches halves{.in_order = shapes[0].end_sequence() > shapes[1].first_sequence && shapes[1].tokens > 0};
    for (size_t h = 0; h < shapes.size(); ++h) {
      const HalfShape& shape = shapes[h];
      ForwardBatch& half = halves.half[h] = whole;
      half.n_logits = 0;
      half.n_tokens = shape.tokens;
      half.n_seqs = std::ssize(shape.seq_lens);
      half.token_ids += shape.first_token;
      half.positions += shape.first_token;
      half.kv_slots += shape.first_token;
      half.table_rows += shape.first_sequence;
      half.host_query_start = host_staged_.data() + used;
      half.query_start = put_words(shape.query_start, used);
      half.host_seq_lens = host_staged_.data() + used;
      half.seq_lens = put_words(shape.seq_lens, used);
      half_tokens_[h].assign(batch.group_tokens.begin(), batch.group_tokens.end());
      for (size_t g = 0; g < half_tokens_[h].size(); ++g) {
        half_tokens_[h][g] = h == 0 ? batch.first_half[g] : batch.group_tokens[g] - batch.first_half[g];
      }
      half.group_tokens = half_tokens_[h];
    }
    return halves;
  }

  // Puts the step's integers one after another, to be taken to the device in one copy.
  ForwardBatch stage(const StepBatch& batch, size_t& used) {
    SLUICE_CHECK(static_cast<int64_t>(batch.token_ids.size()) <= max_tokens_ &&
                     static_cast<int64_t>(batch.seq_lens.size()) <= max_seqs_ &&
                     batch.logit_rows.size() <= batch.token_ids.size(),
                 "a step of {} tokens in {} sequences is larger than the {} and {} that it was planned for",
                 batch.token_ids.size(), batch.seq_lens.size(), max_tokens_, max_seqs_);
    const auto put = [&](std::span<const int32_t> values) { return put_words(values, used); };
    ForwardBatch staged;
    staged.n_tokens = static_cast<int64_t>(batch.token_ids.size());
    staged.n_seqs = static_cast<int64_t>(batch.seq_lens.size());
    staged.n_logits = static_cast<int64_t>(batch.logit_rows.size());
    staged.token_ids = put(batch.token_ids);
    staged.positions = put(batch.positions);
    staged.kv_slots = put(batch.kv_slots);
    staged.logit_rows = put(batch.logit_rows);
    staged.query_start = put(batch.query_start);
    staged.seq_lens = put(batch.seq_lens);
    staged.host_token_ids = batch.token_ids.data();
    staged.embeds = batch.embeds;
    staged.host_query_start = batch.query_start.data();
    staged.host_seq_lens = batch.seq_lens.data();
    staged.table_rows = put(batch.table_rows);
    staged.slot_table = device_table_;
    staged.table_width = table_width_;
    staged.group_tokens = batch.group_tokens;
    staged.group_logits = batch.group_logits;
    if (batch.padded_rows > 0) {
      SLUICE_CHECK(batch.padded_rows <= max_tokens_ && batch.first_half.empty() &&
                       batch.padded_rows >= std::ranges::max(batch.group_tokens),
                   "groups cannot be filled up to {} rows", batch.padded_rows);
      staged.padded_rows = batch.padded_rows;
      const std::vector<int32_t> rows(batch.group_tokens.begin(), batch.group_tokens.end());
      staged.padded_groups = put(rows);
    }
    staged.extend = batch.extend;
    if (!backend_->host_visible()) {
      for (size_t i = 0; i < batch.seq_lens.size(); ++i) {
        const int64_t row = batch.table_rows[i] * table_width_;
        backend_->copy_to_device(context_, device_table_ + row, table_.data() + row,
                                 static_cast<size_t>(batch.seq_lens[i]) * sizeof(int32_t));
      }
    }
    return staged;
  }

  RunnerOptions weights_from_;
  uint64_t loaded_key_ = 0;  // of their files
  const int64_t max_tokens_;
  const int64_t max_seqs_;
  const ModelConfig config_;
  std::optional<moe::ExpertMap> expert_map_;
  uint64_t first_places_ = 0;  // a hash of the map before experts move
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<kernels::Stream> stream_;
  const kernels::Context context_;
  WeightStore weights_;
  std::unique_ptr<Decoder> decoder_;
  std::vector<float> label_weights_;  // [labels, hidden] of a classifier
  ModelInfo info_;
  std::optional<moe::ExpertRecorder> recorder_;
  // Null: experts stay.
  std::unique_ptr<Rebalancer> rebalancer_;
  int64_t steps_ = 0;  // that all ranks of the instance made together
  std::vector<int32_t> table_;
  int32_t* device_table_ = nullptr;
  int64_t table_width_ = 0;
  // Of the last step: this group's tokens, or this rank's part of them, among those that routers got.
  int64_t first_normed_ = 0;  // row of the last step's logits that is our first
  int64_t last_first_ = 0;
  int64_t last_tokens_ = 0;
  std::vector<int32_t> host_staged_;
  int32_t* staged_ = nullptr;
  size_t staged_bytes_ = 0;
  std::array<std::vector<int64_t>, 2> half_tokens_;  // of each attention group
  std::vector<float> host_logits_;
  std::vector<float> joined_logits_;
};

}  // namespace

Result<ModelConfig> load_config(const std::string& path, const std::string& override_json) {
  if (path.ends_with(".gguf")) {
    if (!override_json.empty()) {
      return Error{ErrorCode::kBadOption, "--json-model-override-args: a GGUF file has no config.json to override"};
    }
    SLUICE_TRY(const auto file, tensor::GgufFile::open(path));
    return config_from_gguf(*file);
  }
  const fs::path file = path.ends_with(".json") ? fs::path(path) : fs::path(path) / "config.json";
  SLUICE_TRY(Json config, read_json(file));
  if (!override_json.empty()) {
    const Json by = Json::parse(override_json, nullptr, /*allow_exceptions=*/false);
    if (!by.is_object()) {
      return Error{ErrorCode::kBadOption,
                   fmt::format("--json-model-override-args: '{}' is no JSON object", override_json)};
    }
    config.merge_patch(by);
  }
  Json generation;
  std::error_code ignored;
  if (const fs::path beside = file.parent_path() / "generation_config.json"; fs::exists(beside, ignored)) {
    SLUICE_TRY(generation, read_json(beside));
  }
  return config_from_json(config, generation);
}

Result<std::unique_ptr<Runner>> load_runner(const RunnerOptions& options,
                                            const std::function<void(double, std::string_view)>& progress) {
  return DecoderRunner::load(options, progress);
}

}  // namespace sluice::models
