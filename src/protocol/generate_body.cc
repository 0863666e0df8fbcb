#include "protocol/generate_body.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

namespace sluice::protocol {
namespace {

using nlohmann::ordered_json;

// One prompt of "input_embeds": a row of numbers for each token.
std::vector<std::vector<float>> read_embeds(Fields& fields, const ordered_json& rows) {
  std::vector<std::vector<float>> out;
  const auto wrong = [&] {
    fields.fail("input_embeds must be a list of at least one row of numbers, all of one length, or a list of such");
    return std::vector<std::vector<float>>();
  };
  if (!rows.is_array() || rows.empty()) return wrong();
  out.reserve(rows.size());
  for (const auto& row : rows) {
    if (!row.is_array() || row.empty() || row.size() != rows.front().size()) return wrong();
    std::vector<float>& values = out.emplace_back();
    values.reserve(row.size());
    for (const auto& value : row) {
      const double number = value.is_number() ? value.get<double>() : std::numeric_limits<double>::infinity();
      if (!(std::abs(number) <= std::numeric_limits<float>::max())) return wrong();
      values.push_back(static_cast<float>(number));
    }
  }
  return out;
}

// "text", "input_ids" and "input_embeds": a value or a list of them.
void read_prompts(Fields& fields, GenerateBody& out) {
  const auto* text = fields.find("text");
  const auto* ids = fields.find("input_ids");
  const auto* embeds = fields.find("input_embeds");
  if ((text != nullptr) + (ids != nullptr) + (embeds != nullptr) != 1) {
    fields.fail("exactly one of text, input_ids and input_embeds must be given");
    return;
  }
  std::vector<Prompt> prompts;
  if (embeds != nullptr) {
    const auto begins_with_list = [](const ordered_json& list) {
      return list.is_array() && !list.empty() && list.front().is_array();
    };
    out.batch = begins_with_list(*embeds) && begins_with_list(embeds->front());
    if (!out.batch) prompts.push_back({.text = "", .ids = std::nullopt, .embeds = read_embeds(fields, *embeds)});
    for (size_t i = 0; out.batch && i < embeds->size() && fields.ok(); ++i) {
      prompts.push_back({.text = "", .ids = std::nullopt, .embeds = read_embeds(fields, (*embeds)[i])});
    }
  } else if (text != nullptr) {
    out.batch = text->is_array();
    for (auto& line : fields.texts("text")) prompts.push_back({.text = std::move(line), .ids = std::nullopt});
  } else if (out.batch = ids->is_array() && !ids->empty() && ids->front().is_array(); out.batch) {
    for (const auto& list : *ids) {
      const auto one = ordered_json{{"input_ids", list}};
      Fields member(one);
      if (!list.is_array()) member.fail("input_ids must be a list of token ids, or a list of such lists");
      prompts.push_back({.text = "", .ids = member.token_ids("input_ids")});
      if (!member.ok()) return fields.fail(member.error());
    }
  } else {
    prompts.push_back({.text = "", .ids = fields.token_ids("input_ids")});
  }
  if (fields.ok() && prompts.empty()) fields.fail("the list of prompts is empty");
  if (prompts.size() > kMaxBatch) fields.fail(fmt::format("a batch holds at most {} prompts", kMaxBatch));
  for (const auto& prompt : prompts) {
    if (prompt.ids && prompt.ids->empty() && fields.ok()) fields.fail("input_ids must not be empty");
  }
  if (!fields.ok()) return;
  for (auto& prompt : prompts) {
    out.items.emplace_back();
    out.items.back().prompt = std::move(prompt);
  }
}

// Gives each item its own member of a list, or all the same value. `assign(item, value, fields)` reads one.
template <class Assign>
void spread(Fields& fields, GenerateBody& body, std::string_view name, bool list_is_value, const Assign& assign) {
  const auto* value = fields.find(name);
  if (value == nullptr || !fields.ok()) return;
  const bool per_item =
      body.batch && value->is_array() &&
      (!list_is_value || (!value->empty() && (value->front().is_array() || value->front().is_null())));
  if (per_item && value->size() != body.items.size()) {
    return fields.fail(
        fmt::format("{} must have one entry per prompt ({}), got {}", name, body.items.size(), value->size()));
  }
  for (size_t i = 0; i < body.items.size() && fields.ok(); ++i) {
    const auto one = ordered_json{{std::string(name), per_item ? (*value)[i] : *value}};
    Fields member(one);
    assign(body.items[i], member);
    if (!member.ok()) fields.fail(member.error());
  }
}

void read_sampling(Fields& fields, GenerateBody& body) {
  const auto* value = fields.find("sampling_params");
  const auto defaults = parse_sampling_params(ordered_json::object());
  for (auto& item : body.items) item.sampling = *defaults;
  if (value == nullptr || !fields.ok()) return;
  if (value->is_array() && !body.batch) return fields.fail("sampling_params must be an object: the prompt is no list");
  if (!value->is_array()) {
    auto shared = parse_sampling_params(*value);
    if (!shared.ok()) return fields.fail(shared.error());
    check_copies(fields, copied_bytes(*shared) * body.items.size() * static_cast<size_t>(shared->n));
    if (!fields.ok()) return;
    for (auto& item : body.items) item.sampling = *shared;
    return;
  }
  if (value->size() != body.items.size()) {
    return fields.fail(
        fmt::format("sampling_params must have one entry per prompt ({}), got {}", body.items.size(), value->size()));
  }
  size_t copied = 0;
  for (size_t i = 0; i < body.items.size(); ++i) {
    if ((*value)[i].is_null()) continue;
    auto own = parse_sampling_params((*value)[i]);
    if (!own.ok()) return fields.fail(own.error());
    check_copies(fields, copied += copied_bytes(*own) * static_cast<size_t>(own->n));
    if (!fields.ok()) return;
    body.items[i].sampling = std::move(*own);
    if (body.items[i].sampling.n != body.items[0].sampling.n) {
      return fields.fail("sampling_params.n must be the same for every prompt of a batch");
    }
  }
}

void read_rids(Fields& fields, GenerateBody& body) {
  const auto* rid = fields.find("rid");
  if (rid == nullptr || !fields.ok()) return;
  if (rid->is_array()) {
    spread(fields, body, "rid", /*list_is_value=*/false,
           [](GenerateItem& item, Fields& member) { item.rid = member.text("rid"); });
    if (!body.batch) fields.fail("rid must be a string: the prompt is no list");
  } else {
    body.rid = fields.text("rid");
  }
  if (body.rid.size() > kMaxRidBytes) fields.fail(fmt::format("rid must have at most {} bytes", kMaxRidBytes));
  for (const auto& item : body.items) {
    if (item.rid.size() > kMaxRidBytes) fields.fail(fmt::format("rid must have at most {} bytes", kMaxRidBytes));
  }
}

}  // namespace

Result<GenerateBody> parse_generate_body(std::string_view text, GenerateForm* form) {
  SLUICE_TRY(const auto json, parse_object(text));
  if (form != nullptr) {
    const auto stream = json.find("stream");
    *form = {.object = true, .stream = stream != json.end() && stream->is_boolean() && stream->get<bool>()};
  }
  Fields fields(json);
  GenerateBody out;
  refuse_out_of_scope(fields);
  read_prompts(fields, out);
  read_sampling(fields, out);
  read_rids(fields, out);
  out.stream = fields.boolean("stream", false);
  out.return_text_in_logprobs = fields.boolean("return_text_in_logprobs", false);
  out.log_metrics = fields.boolean("log_metrics", true);
  fields.boolean("no_logs", false);  // requests are not logged
  const auto routing = read_routing(fields);
  out.dp_rank = routing.dp_rank;
  out.priority = routing.priority;
  out.routing_key = routing.routing_key;
  out.background = routing.background;
  out.labels = routing.labels;
  spread(fields, out, "extra_key", false,
         [](GenerateItem& item, Fields& member) { item.extra_key = member.text("extra_key", "", kMaxKeyBytes); });
  const std::string salt = fields.text("cache_salt", "", kMaxKeyBytes);
  for (auto& item : out.items) item.extra_key.insert(0, salt);
  spread(fields, out, "return_hidden_states", false, [](GenerateItem& item, Fields& member) {
    item.insides.hidden_states = member.boolean("return_hidden_states", false);
  });
  const bool routed_experts = fields.boolean("return_routed_experts", false);
  for (auto& item : out.items) item.insides.routed_experts = routed_experts;
  spread(fields, out, "return_logprob", false,
         [](GenerateItem& item, Fields& member) { item.return_logprob = member.boolean("return_logprob", false); });
  spread(fields, out, "logprob_start_len", false, [](GenerateItem& item, Fields& member) {
    item.logprob_start_len = member.integer("logprob_start_len", -1, {.min = -1, .max = INT32_MAX});
  });
  spread(fields, out, "top_logprobs_num", false, [](GenerateItem& item, Fields& member) {
    item.top_logprobs_num = member.integer("top_logprobs_num", 0, {.min = 0, .max = kMaxTopLogprobs});
  });
  spread(fields, out, "token_ids_logprob", true, [](GenerateItem& item, Fields& member) {
    item.token_ids_logprob = member.token_ids("token_ids_logprob", kMaxTopLogprobs);
  });
  if (!fields.ok()) return fields.error();
  return out;
}

Routing read_routing(Fields& fields) {
  Routing out;
  if (const auto* rid = fields.find("rid"); rid != nullptr && rid->is_string()) out.rid = fields.text("rid");
  if (out.rid.size() > kMaxRidBytes) fields.fail(fmt::format("rid must have at most {} bytes", kMaxRidBytes));
  // Whether the rank exists is the controller's question, which knows how many there are.
  out.dp_rank = fields.integer("routed_dp_rank");
  const auto older = fields.integer("data_parallel_rank");
  if (!out.dp_rank) out.dp_rank = older;
  if (const auto* key = fields.find("extra_key"); key != nullptr && key->is_string()) {
    out.extra_key = fields.text("extra_key", "", kMaxKeyBytes);
  }
  out.extra_key = fields.text("cache_salt", "", kMaxKeyBytes) + out.extra_key;
  out.priority = fields.integer("priority");
  out.routing_key = fields.text("routing_key", "", kMaxKeyBytes);
  out.background = fields.boolean("background", false);
  if (out.background && fields.boolean("stream", false)) {
    fields.fail("background is for whole answers: a stream ends with its connection");
  }
  if (const auto* given = fields.find("custom_labels")) {
    auto labels = read_labels(*given, "custom_labels");
    if (labels.ok())
      out.labels = std::move(*labels);
    else
      fields.fail(std::move(labels).error());
  }
  return out;
}

Result<Labels> read_labels(const ordered_json& object, std::string_view name) {
  const Error wrong{ErrorCode::kInvalidArgument,
                    fmt::format("{} must be an object of at most {} strings, names and values of at most {} bytes each",
                                name, kMaxLabels, kMaxLabelBytes)};
  if (!object.is_object() || object.size() > kMaxLabels) return wrong;
  Labels out;
  for (const auto& [label, value] : object.items()) {
    if (!value.is_string() || label.size() > kMaxLabelBytes) return wrong;
    const auto& text = value.get_ref<const std::string&>();
    if (text.size() > kMaxLabelBytes) return wrong;
    out[label] = text;
  }
  return out;
}

Insides read_insides(Fields& fields) {
  return {.hidden_states = fields.boolean("return_hidden_states", false),
          .routed_experts = fields.boolean("return_routed_experts", false)};
}

void refuse_out_of_scope(Fields& fields) {
  constexpr std::string_view kPd = "prefill/decode disaggregation is outside the scope of this engine";
  constexpr std::string_view kMedia = "images, video and audio are outside the scope of this engine";
  for (const auto* name : {"bootstrap_host", "bootstrap_port", "bootstrap_room", "disagg_prefill_dp_rank"}) {
    fields.refuse(name, kPd);
  }
  for (const auto* name : {"image_data", "video_data", "audio_data"}) fields.refuse(name, kMedia);
  fields.refuse("lora_path", "LoRA adapters are outside the scope of this engine");
  fields.refuse("session_params", "server-side conversation state is outside the scope of this engine");
  fields.refuse("custom_logit_processor", "logit processors are Python code, which this engine does not run");
}

}  // namespace sluice::protocol
