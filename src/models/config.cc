#include "models/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numbers>

#include "models/config_fields.h"
#include "models/family.h"

namespace sluice::models {
namespace {

using Json = nlohmann::json;

void read_ids(const Json& object, const char* field, std::vector<int32_t>& ids) {
  if (!object.is_object() || !present(object, field)) return;
  const Json& value = object[field];
  if (value.is_number_integer()) ids.push_back(value.get<int32_t>());
  if (!value.is_array()) return;
  for (const Json& id : value) {
    if (id.is_number_integer()) ids.push_back(id.get<int32_t>());
  }
}

// What a classifier's scores are called: id2label, or as many as num_labels says, which is 2 where nothing is said.
Result<std::vector<std::string>> read_labels(const Json& config) {
  constexpr int64_t kMost = 1 << 16;
  Fields fields(config);
  const bool named = present(config, "id2label") && config["id2label"].is_object();
  const int64_t count = named ? static_cast<int64_t>(config["id2label"].size()) : fields.whole("num_labels", 1, 2);
  if (fields.error()) return *fields.error();
  if (count < 1 || count > kMost) {
    return Error{ErrorCode::kProtocol, fmt::format("config.json: {} labels are not within 1 and {}", count, kMost)};
  }
  std::vector<std::string> labels;
  for (int64_t i = 0; i < count; ++i) {
    labels.push_back(fmt::format("LABEL_{}", i));
    if (!named) continue;
    const Json label = config["id2label"].value(std::to_string(i), Json());
    if (!label.is_string()) {
      return Error{ErrorCode::kProtocol, fmt::format("config.json: id2label has no text for label {} of {}", i, count)};
    }
    labels.back() = label.get<std::string>();
  }
  return labels;
}

// Of what checkpoints are quantised with, FP8 in blocks is supported.
Result<void> read_quantization(const Json& quantization) {
  if (!quantization.is_object()) return unsupported("quantization_config", "is not an object");
  Fields fields(quantization);
  const std::string method = fields.text("quant_method", ""), format = fields.text("fmt", "e4m3");
  if (fields.error()) return *fields.error();
  if (method != "fp8") {
    return unsupported("quantization_config.quant_method",
                       fmt::format("'{}' is not supported; fp8 is, and GGUF files are", method));
  }
  if (format != "e4m3" && format != "float8_e4m3fn") {  // DeepSeek's name and MiniMax's
    return unsupported("quantization_config.fmt", fmt::format("'{}' is not supported; e4m3 is", format));
  }
  if (!present(quantization, "weight_block_size") || quantization["weight_block_size"] != Json{128, 128}) {
    return unsupported("quantization_config.weight_block_size", "other than [128, 128] is not supported");
  }
  return {};
}

// What YaRN scales the attention by, for a context that is `factor` times the original.
double yarn_scale(double factor, double mscale) { return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1; }

Result<void> read_yarn(const Json& scaling, double max_position, RopeConfig& rope) {
  Fields values(scaling);
  rope.scaling = RopeScaling::kYarn;
  rope.original_max_position = values.real("original_max_position_embeddings", max_position);
  rope.beta_fast = values.real("beta_fast", 32);
  rope.beta_slow = values.real("beta_slow", 1);
  const double mscale = values.real("mscale", 1), mscale_all_dim = values.real("mscale_all_dim", 0);
  rope.angle_scale =
      values.real("attention_factor", yarn_scale(rope.factor, mscale) / yarn_scale(rope.factor, mscale_all_dim));
  rope.score_scale = std::pow(yarn_scale(rope.factor, mscale_all_dim), 2);
  const bool truncate = values.flag("truncate", true);
  for (const char* field : {"attn_factor", "extrapolation_factor"}) {
    if (values.real(field, 1) == 1) continue;
    return unsupported(fmt::format("rope_scaling.{}", field), "other than 1 is not supported");
  }
  if (values.error()) return *values.error();
  if (!truncate) return unsupported("rope_scaling.truncate", "false is not supported");
  const struct {
    std::string_view field;
    bool good;
  } checks[] = {
      {"original_max_position_embeddings", rope.original_max_position >= 1},
      {"beta_slow", rope.beta_slow > 0},
      {"beta_fast", rope.beta_fast >= rope.beta_slow && rope.beta_fast <= 1e9},
      {"mscale or attention_factor", std::isfinite(rope.angle_scale) && rope.angle_scale > 0},
      {"mscale_all_dim", std::isfinite(rope.score_scale)},
  };
  for (const auto& check : checks) {
    if (!check.good) {
      return Error{ErrorCode::kProtocol, fmt::format("config.json: rope_scaling.{} is out of its range", check.field)};
    }
  }
  if (rope.theta <= 1) return unsupported("rope_theta", "YaRN needs one above 1");
  return {};
}

// The share of each head that is rotated, where it is not said in values; beside the other fields of the rotation, or
// in the newer form among them.
Result<int64_t> read_rotary_dim(const Json& config, int64_t head_dim) {
  double share = 1;
  for (const Json* object : {&config, present(config, "rope_parameters") ? &config["rope_parameters"] : nullptr}) {
    if (object == nullptr || !object->is_object()) continue;
    Fields fields(*object);
    share = fields.real("partial_rotary_factor", share);
    if (fields.error()) return *fields.error();
  }
  if (!(share > 0 && share <= 1)) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("config.json: partial_rotary_factor {} is not within 0 and 1", share)};
  }
  return static_cast<int64_t>(static_cast<double>(head_dim) * share);
}

Result<void> read_rope(const Json& config, double max_position, RopeConfig& rope) {
  // rope_parameters is the newer name; it holds rope_theta as well.
  const char* scaling_field = present(config, "rope_parameters") ? "rope_parameters" : "rope_scaling";
  Fields fields(config);
  rope.theta = fields.real("rope_theta", 10000);
  if (fields.error()) return *fields.error();
  if (!present(config, scaling_field)) return {};
  const Json& scaling = config[scaling_field];
  if (!scaling.is_object()) return unsupported(scaling_field, "is not an object");
  const char* kind_field = present(scaling, "rope_type") ? "rope_type" : "type";
  if (!present(scaling, kind_field) || !scaling[kind_field].is_string()) {
    return unsupported(scaling_field, "has no rope_type");
  }
  const auto& kind = scaling[kind_field].get_ref<const std::string&>();
  Fields values(scaling);
  rope.theta = values.real("rope_theta", rope.theta);
  rope.factor = values.real("factor", 1);
  if (values.error()) return *values.error();
  if (kind == "yarn") return read_yarn(scaling, max_position, rope);
  if (kind == "linear") {
    rope.scaling = RopeScaling::kLinear;
  } else if (kind == "llama3") {
    rope.scaling = RopeScaling::kLlama3;
    rope.low_freq_factor = values.real("low_freq_factor", 1);
    rope.high_freq_factor = values.real("high_freq_factor", 4);
    rope.original_max_position = values.real("original_max_position_embeddings", 8192);
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      return unsupported(scaling_field, "high_freq_factor is not above low_freq_factor");
    }
  } else if (kind != "default") {
    return unsupported(fmt::format("{}.rope_type", scaling_field),
                       fmt::format("'{}' is not supported; default, linear, llama3 and yarn are", kind));
  }
  if (values.error()) return *values.error();
  return {};
}

// Sizes far beyond any model, so that no product of them overflows and no loop over them lasts: a damaged file is told
// apart from a large model before anything is allocated.
Result<void> check_sizes(const ModelConfig& config) {
  const struct {
    std::string_view name;
    int64_t value;
    int64_t largest;
  } sizes[] = {
      {"vocabulary", config.vocab_size, 1 << 24},       {"hidden size", config.hidden_size, 1 << 17},
      {"layers", config.num_layers, 1 << 12},           {"query heads", config.num_heads, 1 << 12},
      {"key heads", config.num_kv_heads, 1 << 12},      {"head_dim", config.head_dim, 1 << 12},
      {"FFN width", config.intermediate_size, 1 << 20}, {"positions", config.max_position, (int64_t{1} << 31) - 1},
  };
  for (const auto& size : sizes) {
    if (size.value < 1 || size.value > size.largest) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("{}: {} is not within 1 and {}", size.name, size.value, size.largest)};
    }
  }
  const auto positive = [](double value) { return std::isfinite(value) && value > 0; };
  if (!positive(config.rope.theta)) {
    return Error{ErrorCode::kProtocol, fmt::format("rope theta {} is not positive", config.rope.theta)};
  }
  if (!positive(config.rope.factor)) {
    return Error{ErrorCode::kProtocol, fmt::format("rope scaling factor {} is not positive", config.rope.factor)};
  }
  if (!positive(config.rms_norm_eps) || config.rms_norm_eps >= 1) {
    return Error{ErrorCode::kProtocol, fmt::format("the norms' epsilon {} is not within 0 and 1", config.rms_norm_eps)};
  }
  return {};
}

Result<void> check_moe(const MoeConfig& moe) {
  const struct {
    std::string_view name;
    int64_t value;
    int64_t smallest;
    int64_t largest;
  } sizes[] = {
      {"experts", moe.experts, 1, 1 << 12},
      {"experts per token", moe.top_k, 1, moe.experts},
      {"expert FFN width", moe.expert_width, 1, 1 << 20},
      {"shared expert FFN width", moe.shared_width, 0, 1 << 20},
      {"expert groups", moe.groups, 1, moe.experts},
      {"kept expert groups", moe.kept_groups, 1, moe.groups},
  };
  for (const auto& size : sizes) {
    if (size.value < size.smallest || size.value > size.largest) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("{}: {} is not within {} and {}", size.name, size.value, size.smallest, size.largest)};
    }
  }
  if (moe.experts % moe.groups != 0) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("{} experts are not divided evenly by {} groups", moe.experts, moe.groups)};
  }
  if (moe.top_k > moe.experts / moe.groups * moe.kept_groups) {
    return Error{ErrorCode::kProtocol, fmt::format("{} experts per token of {} kept groups of {}", moe.top_k,
                                                   moe.kept_groups, moe.experts / moe.groups)};
  }
  if (!std::isfinite(moe.scale) || moe.scale <= 0) {
    return Error{ErrorCode::kProtocol, fmt::format("the experts' scaling factor {} is not positive", moe.scale)};
  }
  return {};
}

// What theta, the scaling and its bounds come to. The fastest pair turns by one a position, or by little more where the
// file has divisors; an angle beyond float32 would make everything that is computed no number.
Result<void> check_frequencies(const ModelConfig& config) {
  constexpr float kFastest = 1e6;
  if (!config.rope.divisors.empty() && static_cast<int64_t>(config.rope.divisors.size()) != config.rotary_dim / 2) {
    return Error{ErrorCode::kProtocol, fmt::format("{} divisors of rotary frequencies where a head has {}",
                                                   config.rope.divisors.size(), config.rotary_dim / 2)};
  }
  for (const float frequency : inverse_frequencies(config)) {
    if (frequency >= 0 && frequency <= kFastest) continue;
    return Error{ErrorCode::kProtocol,
                 fmt::format("rope theta {}, the scaling or its bounds give a rotary frequency of {}, which is not "
                             "within 0 and {}",
                             config.rope.theta, frequency, kFastest)};
  }
  return {};
}

Result<void> check_shape(const ModelConfig& config) {
  SLUICE_TRY_VOID(check_sizes(config));
  if (config.num_heads % config.num_kv_heads != 0) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("{} query heads cannot share {} key heads evenly", config.num_heads, config.num_kv_heads)};
  }
  if (config.rotary_dim % 2 != 0 || config.rotary_dim > config.head_dim) {
    return Error{ErrorCode::kUnimplemented,
                 fmt::format("rotary positions of {} of the {} values of a head", config.rotary_dim, config.head_dim)};
  }
  if (config.moe) SLUICE_TRY_VOID(check_moe(*config.moe));
  return check_frequencies(config);
}

}  // namespace

Result<ModelConfig> config_from_json(const Json& config, const Json& generation_config) {
  if (!config.is_object()) return Error{ErrorCode::kProtocol, "config.json is not an object"};
  if (!present(config, "architectures") || !config["architectures"].is_array() || config["architectures"].empty() ||
      !config["architectures"][0].is_string()) {
    return Error{ErrorCode::kProtocol, "config.json: architectures is missing"};
  }
  const auto architecture = config["architectures"][0].get<std::string>();
  SLUICE_TRY(const FamilyRow* family, find_family(architecture));

  ModelConfig result;
  result.architectures = {architecture};
  Fields fields(config);
  result.model_type = fields.text("model_type", family->gguf_architecture);
  result.vocab_size = fields.whole("vocab_size", 1);
  result.hidden_size = fields.whole("hidden_size", 1);
  result.num_layers = fields.whole("num_hidden_layers", 1);
  result.num_heads = fields.whole("num_attention_heads", 1);
  result.num_kv_heads = fields.whole("num_key_value_heads", 1, result.num_heads);
  result.intermediate_size = fields.whole("intermediate_size", 1);
  result.max_position = fields.whole("max_position_embeddings", 1, 2048);
  result.head_dim = fields.whole("head_dim", 1, std::max<int64_t>(1, result.hidden_size / result.num_heads));
  result.rms_norm_eps = fields.real("rms_norm_eps", 1e-6);
  result.tie_embeddings = fields.flag("tie_word_embeddings", false);
  if (is_classifier(architecture)) {
    SLUICE_TRY(result.labels, read_labels(config));
    result.tie_embeddings = true;  // there is no head for tokens; nobody looks at what the embedding makes of them
  }
  result.qkv_bias = fields.flag("attention_bias", family->default_qkv_bias);
  result.qk_norm = family->qk_norm;
  const bool mlp_bias = fields.flag("mlp_bias", false);
  const bool sliding_window = fields.flag("use_sliding_window", false);
  const std::string act = fields.text("hidden_act", "silu");
  if (fields.error()) return *fields.error();
  SLUICE_TRY(result.rotary_dim, read_rotary_dim(config, result.head_dim));
  if (mlp_bias) return unsupported("mlp_bias", "biases in the FFN are not supported");
  if (result.qkv_bias && !family->default_qkv_bias) {
    return unsupported("attention_bias", "a bias of the output projection is not supported");
  }
  if (!result.qkv_bias && family->default_qkv_bias) {
    return unsupported("attention_bias",
                       fmt::format("false is not supported; the layers of {} have biases", family->architecture));
  }
  if (sliding_window) return unsupported("use_sliding_window", "sliding-window attention is not supported");
  SLUICE_TRY_VOID(refuse_present(config, {"dual_chunk_attention_config"},
                                 "is not supported; --json-model-override-args '{\"dual_chunk_attention_config\": "
                                 "null}' serves the model with plain attention"));
  if (present(config, "quantization_config")) {
    SLUICE_TRY_VOID(read_quantization(config["quantization_config"]));
    result.fp8 = true;
  }
  if (act != "silu") {
    return unsupported("hidden_act", fmt::format("'{}' is not supported; silu is", act));
  }
  SLUICE_TRY_VOID(read_rope(config, static_cast<double>(result.max_position), result.rope));
  SLUICE_TRY_VOID(check_sizes(result));  // before lists by layer are made
  if (family->read != nullptr) SLUICE_TRY_VOID(family->read(config, result));
  SLUICE_TRY_VOID(check_shape(result));

  read_ids(generation_config, "eos_token_id", result.eos_token_ids);
  if (result.eos_token_ids.empty()) read_ids(config, "eos_token_id", result.eos_token_ids);
  std::vector<int32_t> bos;
  read_ids(config, "bos_token_id", bos);
  if (!bos.empty()) result.bos_token_id = bos[0];
  if (generation_config.is_object()) {
    const auto number = [&](const char* field) -> std::optional<double> {
      if (!present(generation_config, field) || !generation_config[field].is_number()) return std::nullopt;
      return generation_config[field].get<double>();
    };
    result.temperature = number("temperature");
    result.top_p = number("top_p");
    result.min_p = number("min_p");
    result.repetition_penalty = number("repetition_penalty");
    if (const auto top_k = number("top_k")) result.top_k = static_cast<int64_t>(std::clamp(*top_k, -1.0, 1e9));
    // "Greedy by default" is said by do_sample = false.
    if (present(generation_config, "do_sample") && generation_config["do_sample"] == false) result.temperature = 0.0;
  }
  return result;
}

namespace {

Result<void> read_gguf_divisors(const tensor::GgufFile& file, ModelConfig& config) {
  const auto found = file.tensors().find("rope_freqs.weight");
  if (found == file.tensors().end()) return {};
  std::vector<float>& divisors = config.rope.divisors;
  if (found->second.dtype != tensor::DType::kF32 || found->second.elements() != config.rotary_dim / 2) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("{}: rope_freqs.weight is not {} values in F32", file.path(), config.rotary_dim / 2)};
  }
  divisors.resize(static_cast<size_t>(config.rotary_dim / 2));
  std::memcpy(divisors.data(), found->second.data.data(), divisors.size() * sizeof(float));
  for (const float divisor : divisors) {
    if (std::isfinite(divisor) && divisor > 0) continue;
    return Error{ErrorCode::kProtocol, fmt::format("{}: rope_freqs.weight holds {}", file.path(), divisor)};
  }
  return {};
}

// Scaling by metadata, and the factors of single frequencies by a tensor.
Result<void> read_gguf_rope(const tensor::GgufFile& file, std::string_view architecture, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  const auto key = [&](std::string_view name) { return fmt::format("{}.rope.scaling.{}", architecture, name); };
  const auto real = [&](std::string_view name, double otherwise) {
    const auto* value = file.get<double>(key(name));
    return value == nullptr ? otherwise : *value;
  };
  SLUICE_TRY_VOID(read_gguf_divisors(file, config));
  const auto* kind = file.get<std::string>(key("type"));
  if (kind != nullptr && *kind == "none") return {};
  // Older files have the factor under another name and no type, which is linear then. 0 is none.
  const auto* older = file.get<double>(fmt::format("{}.rope.scale_linear", architecture));
  rope.factor = real("factor", older == nullptr ? 1 : *older);
  if (rope.factor == 0) rope.factor = 1;
  if (kind == nullptr || *kind == "linear") {
    if (rope.factor != 1) rope.scaling = RopeScaling::kLinear;
    return {};
  }
  if (*kind != "yarn") {
    return Error{ErrorCode::kUnimplemented,
                 fmt::format("{}: rope scaling '{}' is not supported; none, linear and yarn are", file.path(), *kind)};
  }
  const auto* original = file.get<int64_t>(key("original_context_length"));
  // The paper's attention factor, unless the family says otherwise.
  Json values = {{"original_max_position_embeddings", original == nullptr ? config.max_position : *original},
                 {"beta_fast", real("yarn_beta_fast", 32)},
                 {"beta_slow", real("yarn_beta_slow", 1)},
                 {"attention_factor", real("attn_factor", 1) * yarn_scale(rope.factor, 1)}};
  return read_yarn(values, static_cast<double>(config.max_position), rope);
}

// Tokens that end a text by what they are called, as in llama.cpp: the file names one of them, and a chat model ends
// its turns with another.
constexpr std::string_view kEndTexts[] = {"<|eot_id|>",    "<|eom_id|>",    "<|im_end|>",      "<|end|>",
                                          "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>"};

// Those that the metadata name come first, in the order of the ends of a text, a turn and a message.
std::vector<int32_t> end_tokens(const tensor::GgufFile& file, int64_t vocab_size) {
  constexpr int64_t kControl = 3, kUserDefined = 4;
  std::vector<int32_t> ids;
  const auto add = [&](int64_t id) {
    if (id < 0 || id >= vocab_size) return;  // nothing chooses it
    const auto token = static_cast<int32_t>(id);
    if (std::find(ids.begin(), ids.end(), token) == ids.end()) ids.push_back(token);
  };
  for (const char* end : {"eos", "eot", "eom"}) {
    if (const auto* id = file.get<int64_t>(fmt::format("tokenizer.ggml.{}_token_id", end))) add(*id);
  }
  const auto* texts = file.get<std::vector<std::string>>("tokenizer.ggml.tokens");
  const auto* types = file.get<std::vector<int64_t>>("tokenizer.ggml.token_type");
  for (size_t i = 0; texts != nullptr && i < texts->size(); ++i) {
    const std::string_view text = (*texts)[i];
    if (std::find(std::begin(kEndTexts), std::end(kEndTexts), text) == std::end(kEndTexts)) continue;
    const int64_t type = types == nullptr || i >= types->size() ? kControl : (*types)[i];
    if (type == kControl || type == kUserDefined) add(static_cast<int64_t>(i));
  }
  return ids;
}

}  // namespace

Result<ModelConfig> config_from_gguf(const tensor::GgufFile& file) {
  const auto* architecture = file.get<std::string>("general.architecture");
  if (architecture == nullptr) {
    return Error{ErrorCode::kProtocol, fmt::format("{}: general.architecture is missing", file.path())};
  }
  SLUICE_TRY(const FamilyRow* family, find_gguf_family(*architecture));
  ModelConfig config;
  config.model_type = *architecture;
  config.architectures = {std::string(family->architecture)};
  std::string missing;
  const auto whole = [&](std::string_view key, std::optional<int64_t> otherwise = std::nullopt) -> int64_t {
    const auto* value = file.get<int64_t>(fmt::format("{}.{}", *architecture, key));
    if (value != nullptr && *value > 0) return *value;
    if (!otherwise && missing.empty()) missing = key;
    return otherwise.value_or(1);
  };
  const auto real = [&](std::string_view key, double otherwise) {
    const auto* value = file.get<double>(fmt::format("{}.{}", *architecture, key));
    return value == nullptr ? otherwise : *value;
  };
  config.hidden_size = whole("embedding_length");
  config.num_layers = whole("block_count");
  config.num_heads = whole("attention.head_count");
  config.num_kv_heads = whole("attention.head_count_kv", config.num_heads);
  config.intermediate_size = whole("feed_forward_length");
  config.max_position = whole("context_length");
  config.head_dim = whole("attention.key_length", std::max<int64_t>(1, config.hidden_size / config.num_heads));
  config.rms_norm_eps = real("attention.layer_norm_rms_epsilon", 1e-5);
  config.rope.theta = real("rope.freq_base", 10000);
  if (!missing.empty()) {
    return Error{ErrorCode::kProtocol, fmt::format("{}: {}.{} is missing", file.path(), *architecture, missing)};
  }
  config.rotary_dim = whole("rope.dimension_count", config.head_dim);
  SLUICE_TRY_VOID(read_gguf_rope(file, *architecture, config));
  config.rope.interleaved = family->gguf_interleaved_rope;
  config.qk_norm = family->qk_norm;
  config.qkv_bias = file.tensors().contains("blk.0.attn_q.bias");
  if (!config.qkv_bias && family->default_qkv_bias) {
    return Error{ErrorCode::kUnimplemented,
                 fmt::format("{}: blk.0.attn_q.bias is missing; the layers of {} have biases", file.path(),
                             family->architecture)};
  }
  config.tie_embeddings = !file.tensors().contains("output.weight");
  const auto embedding = file.tensors().find("token_embd.weight");
  if (embedding == file.tensors().end()) {
    return Error{ErrorCode::kProtocol, fmt::format("{}: token_embd.weight is missing", file.path())};
  }
  config.vocab_size = embedding->second.shape[0];  // a reader gives no tensor without dimensions
  config.eos_token_ids = end_tokens(file, config.vocab_size);
  if (const auto* id = file.get<int64_t>("tokenizer.ggml.bos_token_id"))
    config.bos_token_id = static_cast<int32_t>(*id);
  SLUICE_TRY_VOID(check_sizes(config));
  if (family->read_gguf != nullptr) SLUICE_TRY_VOID(family->read_gguf(file, config));
  for (const char* tensor : {"attn_output.bias", "ffn_down.bias", "ffn_gate_inp.weight"}) {
    // A tensor that no layer asks for would change what the model says.
    if (config.moe || !file.tensors().contains(fmt::format("blk.0.{}", tensor))) continue;
    return Error{ErrorCode::kUnimplemented,
                 fmt::format("{}: {} of {} is not supported", file.path(), tensor, family->architecture)};
  }
  SLUICE_TRY_VOID(check_shape(config));
  return config;
}

namespace {

// The share of YaRN's stretching that the frequency of pair `i` gets: 0 for those that turn fast, 1 for slow ones.
double yarn_share(const RopeConfig& rope, double dim, double i) {
  const auto pair_that_turns = [&](double times) {
    return dim * std::log(rope.original_max_position / (times * 2 * std::numbers::pi)) / (2 * std::log(rope.theta));
  };
  const double low = std::clamp(std::floor(pair_that_turns(rope.beta_fast)), 0.0, dim - 1);
  const double high = std::clamp(std::ceil(pair_that_turns(rope.beta_slow)), 0.0, dim - 1);
  return std::clamp((i - low) / (low == high ? 0.001 : high - low), 0.0, 1.0);
}

}  // namespace

std::vector<float> inverse_frequencies(const ModelConfig& config) {
  const int64_t half = config.rotary_dim / 2;
  const RopeConfig& rope = config.rope;
  std::vector<float> result(static_cast<size_t>(half));
  for (int64_t i = 0; i < half; ++i) {
    double frequency = std::pow(rope.theta, -2.0 * static_cast<double>(i) / static_cast<double>(config.rotary_dim));
    if (rope.scaling == RopeScaling::kLinear) frequency /= rope.factor;
    if (rope.scaling == RopeScaling::kLlama3) {
      // Long wavelengths are stretched by the factor, short ones kept, those between blended.
      const double wavelength = 2 * std::numbers::pi / frequency;
      const double longest = rope.original_max_position / rope.low_freq_factor;
      const double shortest = rope.original_max_position / rope.high_freq_factor;
      if (wavelength > longest) {
        frequency /= rope.factor;
      } else if (wavelength >= shortest) {
        const double smooth = (rope.original_max_position / wavelength - rope.low_freq_factor) /
                              (rope.high_freq_factor - rope.low_freq_factor);
        frequency = (1 - smooth) * frequency / rope.factor + smooth * frequency;
      }
    }
    if (rope.scaling == RopeScaling::kYarn) {
      const double share = yarn_share(rope, 2.0 * static_cast<double>(half), static_cast<double>(i));
      frequency *= share / rope.factor + 1 - share;
    }
    if (!rope.divisors.empty()) frequency /= static_cast<double>(rope.divisors[static_cast<size_t>(i)]);
    result[static_cast<size_t>(i)] = static_cast<float>(frequency);
  }
  return result;
}

}  // namespace sluice::models
