#include "engine/explain/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "parallel/step_sync.h"

namespace sluice::engine {
namespace {

using Json = nlohmann::ordered_json;
using parallel::Layout;
using parallel::Slice;

constexpr double kGiB = 1 << 30;
constexpr size_t kMostLayouts = 16, kMostColumns = 5;  // that the text lists

double gib(int64_t bytes) { return static_cast<double>(bytes) / kGiB; }

std::string bytes_text(double bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 10'000 && unit + 1 < std::size(kUnits)) bytes /= 1024, ++unit;
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, kUnits[unit]);
}

// 1234567 -> "1,234,567".
std::string grouped(int64_t value) {
  std::string digits = std::to_string(value);
  for (int64_t at = std::ssize(digits) - 3; at > 0; at -= 3) digits.insert(static_cast<size_t>(at), ",");
  return digits;
}

std::string range(const Slice& slice) {
  if (slice.count == 0) return "-";
  return slice.count == 1 ? fmt::format("{}", slice.first) : fmt::format("{}-{}", slice.first, slice.end() - 1);
}

// Columns as wide as their widest cell; the first row is the heading.
std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows[0].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line = " ";
    for (size_t i = 0; i < row.size(); ++i) line += fmt::format(" {:<{}} ", row[i], widths[i]);
    out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return out;
}

std::string model_line(const Explanation& e) {
  const models::ModelConfig& config = e.model.config;
  std::string line = fmt::format("{}: {} layers, hidden size {}, vocabulary {}", config.architectures[0],
                                 config.num_layers, config.hidden_size, config.vocab_size);
  if (config.mla) {
    line += fmt::format("; latent attention, {} heads, {}+{} values cached per token and layer", config.num_heads,
                        config.mla->kv_lora_rank, config.rotary_dim);
  } else {
    line += fmt::format("; {} query and {} key heads of {}", config.num_heads, config.num_kv_heads, config.head_dim);
  }
  if (config.moe) {
    line += fmt::format("; {} experts, {} of each token, in {} layers", config.moe->experts, config.moe->top_k,
                        std::ranges::count(config.moe->sparse, true));
  }
  return line + fmt::format("; products in {}{}\n", e.model.dtype == kernels::DType::kBf16 ? "bf16" : "float32",
                            config.fp8 ? " of weights in FP8" : "");
}

// Copies of experts, and what they cost.
std::string copies_text(const LayoutFacts& facts, int64_t layers) {
  if (!facts.map) return "";
  const moe::ExpertMap& map = *facts.map;
  std::string out;
  if (map.physical > map.logical) {
    const double share = static_cast<double>(map.physical - map.logical) / static_cast<double>(map.physical);
    out = fmt::format(
        "  {} experts and {} copies in each of {} layers: the copies are {:.2f} GiB of rank 0's weights, and may be {} "
        "of one expert\n",
        map.logical, map.physical - map.logical, layers,
        gib(static_cast<int64_t>(static_cast<double>(facts.rank.experts_weights.bytes) * share)), map.most_copies());
  }
  if (map.moves) out += "  experts move between ranks while they serve, which these figures leave out\n";
  return out + "  copies help where some experts get more tokens than others; these figures are for equal ones\n";
}

// {0,1} {2,3}: ranks by what `group_of` says.
template <class F>
std::string groups_text(const Layout& layout, F group_of) {
  std::vector<std::vector<int64_t>> groups;
  for (int64_t rank = 0; rank < layout.tp_size; ++rank) {
    Layout own = layout;
    own.tp_rank = rank;
    const auto group = static_cast<size_t>(group_of(own));
    if (groups.size() <= group) groups.resize(group + 1);
    groups[group].push_back(rank);
  }
  std::string text;
  for (const auto& group : groups) text += fmt::format(" {{{}}}", fmt::join(group, ","));
  return text;
}

std::string ranks_text(const Explanation& e) {
  const Layout& layout = e.layout.layout;
  std::vector<std::vector<std::string>> rows{{"rank", "attention group", "query heads", "key heads", "vocabulary",
                                              "head", "experts", "their columns", "dense columns", "weights"}};
  for (size_t i = 0; i < e.ranks.size(); ++i) {
    Layout own = layout;
    own.tp_rank = static_cast<int64_t>(i);
    const models::RankShape& rank = e.ranks[i];
    rows.push_back({std::to_string(i), std::to_string(own.attention_dp().rank), range(rank.heads),
                    e.model.config.mla ? "latent" : range(rank.key_heads), range(rank.vocabulary), range(rank.head),
                    range(rank.experts), range(rank.expert_columns), range(rank.dense_columns),
                    fmt::format("{:.2f} GiB", gib(rank.weight_bytes()))});
  }
  std::string out = "Ranks of an instance\n" + table(rows);
  out += fmt::format("  attention TP:{}\n  attention DP:{}\n",
                     groups_text(layout, [](const Layout& l) { return l.attention_dp().rank; }),
                     groups_text(layout, [](const Layout& l) { return l.attention_tp().rank; }));
  if (e.model.config.moe) {
    out += fmt::format("  expert EP:{}\n  expert TP:{}\n",
                       groups_text(layout, [](const Layout& l) { return l.expert_tp().rank; }),
                       groups_text(layout, [](const Layout& l) { return l.experts().rank; }));
  }
  const models::RankShape& rank = e.layout.rank;
  out += fmt::format(
      "  weights of rank 0: attention {:.2f}, dense FFNs, shared experts and routers {:.2f}, experts {:.2f}, embedding "
      "{:.2f}, head {:.2f} GiB\n",
      gib(rank.attention.bytes), gib(rank.dense.bytes + rank.shared.bytes), gib(rank.experts_weights.bytes),
      gib(rank.embedding.bytes), gib(rank.output.bytes));
  const models::ModelConfig& config = e.model.config;
  return out + copies_text(e.layout, config.moe ? std::ranges::count(config.moe->sparse, true) : 0);
}

std::string memory_text(const Explanation& e) {
  const LayoutFacts& facts = e.layout;
  const int64_t ranks = facts.instances * facts.layout.tp_size;
  std::string out = fmt::format("\nMemory: {} ranks with {:.1f} GiB each, times {} for weights and KV\n", ranks,
                                gib(e.hardware.of(ranks).memory_bytes), facts.memory_fraction);
  out += fmt::format("  KV of a token: {} bytes on a rank, on {} of an instance's ranks {}\n",
                     grouped(facts.rank.kv_bytes_per_token), facts.layout.attention_tp_size(),
                     facts.kv_copies > 1 ? fmt::format("({} copies of everything)", facts.kv_copies)
                                         : std::string("(each value once)"));
  if (facts.rank.state_bytes_per_sequence > 0) {
    out += fmt::format("  states of a sequence: {} on a rank\n",
                       bytes_text(static_cast<double>(facts.rank.state_bytes_per_sequence)));
  }
  if (facts.own_weight_bytes < facts.rank.weight_bytes()) {
    out +=
        fmt::format("  {:.2f} of {:.2f} GiB of weights are counted for a rank: what ranks have alike is there once\n",
                    gib(facts.own_weight_bytes), gib(facts.rank.weight_bytes()));
  }
  if (!facts.memory) return out + fmt::format("  it does not fit: {}\n", facts.why_not);
  out +=
      fmt::format("  KV pool of a rank: {:.1f} GiB, {} tokens; unique tokens of all: {}\n", gib(facts.memory->kv_bytes),
                  grouped(facts.memory->max_total_tokens), grouped(facts.unique_tokens));
  out += fmt::format(
      "  buffers of a rank's largest step: {}{}\n", bytes_text(static_cast<double>(buffer_bytes(facts, e.hardware))),
      facts.buffers.dispatch_bytes == 0
          ? ""
          : fmt::format(", {} of them to send rows to experts with --deepep-mode {}",
                        bytes_text(static_cast<double>(facts.buffers.dispatch_bytes)), facts.options.deepep_mode));
  if (facts.layout.dp_attention()) {
    const double gain = dp_attention_gain(e.model.config, facts.layout);
    out += fmt::format(
        "  for the same memory of keys and values, {:.1f} times as many unique tokens as without DP "
        "attention{}\n",
        gain, gain <= 1 ? ": nothing is gained, and attention weights are replicated" : "");
  }
  return out;
}

std::string wire_text(const LayoutFacts& facts) {
  const models::WireBytes& wire = facts.wire.of_step;
  std::string out = fmt::format(
      "\nOn the wire, of a step that decodes one token in each of {} attention groups: {}, {} "
      "per token, {} collective calls\n",
      facts.layout.dp_size, bytes_text(wire.total()), bytes_text(facts.wire.per_token), wire.calls);
  out += fmt::format("  attention sums {}, gather {}, scatter {}, dispatch {}, combine {}, head {}\n",
                     bytes_text(wire.attention), bytes_text(wire.gather), bytes_text(wire.scatter),
                     bytes_text(wire.dispatch), bytes_text(wire.combine), bytes_text(wire.head));
  if (facts.reach.ranks > 0) {
    out += fmt::format(
        "  a token goes to {:.2f} ranks in a layer with experts, where all choices are as likely; {:.2f} are not its "
        "own, which have {:.2f} of its experts\n",
        facts.reach.ranks, facts.reach.remote_ranks, facts.reach.remote_experts);
  }
  if (facts.reach.ranks > 0 && facts.options.deepep_mode != "normal") {
    out += fmt::format("  with low_latency a row goes to each of its experts{}\n",
                       facts.options.deepep_mode == "auto" ? ", in steps without prompts that fit in the slab" : "");
  }
  return out;
}

std::string hardware_text(const Hardware& hardware) {
  return fmt::format("{}: {:.1f} GiB, {:.4g} GB/s, {:.4g} TFLOP/s{}, {:.4g} GB/s and {:.3g} us between ranks",
                     hardware.divisible ? hardware.name : fmt::format("{} x {}", hardware.devices, hardware.name),
                     gib(hardware.memory_bytes), hardware.bandwidth / 1e9, hardware.flops / 1e12,
                     hardware.divisible ? " for all ranks together" : " each", hardware.link_bandwidth / 1e9,
                     hardware.link_latency * 1e6);
}

std::string prediction_text(const Explanation& e) {
  const bool halves = e.layout.options.enable_two_batch_overlap;
  std::string out = fmt::format(
      "\nPredicted on {}\n{} prompt tokens, {} output tokens; {}\n", hardware_text(e.hardware), e.workload.input_tokens,
      e.workload.output_tokens,
      halves ? "steps of two tokens or more run in halves: max(C, W) + min(C, W) / 2L + head, of C computing both "
               "halves, W rows of both on their way, L layers"
             : "nothing overlaps");
  if (!e.layout.predictions.empty()) {
    std::vector<std::vector<std::string>> rows{{"at once", "running", "output tokens/s", "while decoding",
                                                "decode step", "attention", "KV", "dense", "experts", "head", "wire"}};
    if (halves) rows[0].insert(rows[0].end(), {"of it hidden", "in one batch"});
    for (const Prediction& p : e.layout.predictions) {
      const auto ms = [](double seconds) { return fmt::format("{:.2f} ms", seconds * 1e3); };
      const StepSeconds& s = p.decode;
      rows.push_back({std::to_string(p.concurrency), std::to_string(p.running),
                      fmt::format("{:.1f}", p.output_tokens_per_s), fmt::format("{:.1f}", p.decode_tokens_per_s),
                      ms(s.total()), ms(s.attention), ms(s.kv), ms(s.dense), ms(s.experts), ms(s.head), ms(s.wire)});
      if (halves) rows.back().insert(rows.back().end(), {ms(s.hidden), ms(p.decode_unsplit)});
    }
    out += table(rows);
  }
  if (e.weighed.empty()) return out + "No layout of these devices fits.\n";
  std::vector<std::vector<std::string>> rows{{"layout"}};
  rows[0].push_back("unique tokens");
  // Some of the concurrencies, the first and the last among them.
  const auto& predictions = e.weighed[0].predictions;
  std::vector<size_t> columns;
  for (size_t i = 0; i < kMostColumns; ++i) {
    const size_t column = (predictions.size() - 1) * i / (kMostColumns - 1);
    if (columns.empty() || columns.back() != column) columns.push_back(column);
  }
  for (const size_t column : columns) rows[0].push_back(fmt::format("at {}", predictions[column].concurrency));
  for (const LayoutFacts& facts : e.weighed) {
    if (rows.size() > kMostLayouts) break;
    rows.push_back({layout_flags(facts), grouped(facts.unique_tokens)});
    for (const size_t column : columns) {
      rows.back().push_back(fmt::format("{:.0f}", facts.predictions[column].output_tokens_per_s));
    }
  }
  out += fmt::format("\nLayouts by output tokens/s at {} at once ({} of {})\n", predictions.back().concurrency,
                     rows.size() - 1, e.weighed.size());
  return out + table(rows) + fmt::format("Best: {}\n", layout_flags(e.weighed[0]));
}

Json json_of(const Slice& slice) { return {{"first", slice.first}, {"count", slice.count}}; }

Json json_of(const models::RankShape& rank) {
  return {{"query_heads", json_of(rank.heads)},
          {"key_heads", json_of(rank.key_heads)},
          {"vocabulary", json_of(rank.vocabulary)},
          {"head", json_of(rank.head)},
          {"experts", json_of(rank.experts)},
          {"expert_columns", json_of(rank.expert_columns)},
          {"shared_columns", json_of(rank.shared_columns)},
          {"dense_columns", json_of(rank.dense_columns)},
          {"weight_bytes", rank.weight_bytes()},
          {"attention_bytes", rank.attention.bytes},
          {"dense_bytes", rank.dense.bytes + rank.shared.bytes},
          {"expert_bytes", rank.experts_weights.bytes},
          {"embedding_bytes", rank.embedding.bytes},
          {"head_bytes", rank.output.bytes},
          {"kv_bytes_per_token", rank.kv_bytes_per_token},
          {"state_bytes_per_sequence", rank.state_bytes_per_sequence}};
}

Json json_of(const Prediction& p) {
  return {{"concurrency", p.concurrency},
          {"running", p.running},
          {"output_tokens_per_s", p.output_tokens_per_s},
          {"decode_tokens_per_s", p.decode_tokens_per_s},
          {"decode_step_ms", p.decode.total() * 1e3},
          {"attention_ms", p.decode.attention * 1e3},
          {"kv_ms", p.decode.kv * 1e3},
          {"dense_ms", p.decode.dense * 1e3},
          {"experts_ms", p.decode.experts * 1e3},
          {"head_ms", p.decode.head * 1e3},
          {"wire_ms", p.decode.wire * 1e3},
          {"hidden_ms", p.decode.hidden * 1e3},
          {"decode_step_in_one_batch_ms", p.decode_unsplit > 0 ? p.decode_unsplit * 1e3 : p.decode.total() * 1e3}};
}

Json json_of(const LayoutFacts& facts, const models::ModelConfig& config) {
  const models::WireBytes& wire = facts.wire.of_step;
  Json out = {{"flags", layout_flags(facts)},
              {"tp_size", facts.layout.tp_size},
              {"dp_size", facts.layout.dp_size},
              {"ep_size", facts.layout.ep_size},
              {"attention_tp_size", facts.layout.attention_tp_size()},
              {"expert_tp_size", facts.layout.expert_tp_size()},
              {"instances", facts.instances},
              {"fits", facts.memory.has_value()},
              {"memory_fraction", facts.memory_fraction},
              {"kv_copies", facts.kv_copies},
              {"dp_attention_gain", dp_attention_gain(config, facts.layout)},
              {"unique_tokens", facts.unique_tokens}};
  if (facts.memory) {
    out["tokens_per_rank"] = facts.memory->max_total_tokens;
    out["kv_bytes"] = facts.memory->kv_bytes;
    out["buffer_bytes"] = facts.memory->buffer_bytes;
    out["dispatch_buffer_bytes"] = facts.buffers.dispatch_bytes;
    out["max_running_requests_per_group"] = facts.memory->max_running_requests;
  } else {
    out["why_not"] = facts.why_not;
  }
  out["wire_bytes_of_step"] = {{"attention", wire.attention}, {"gather", wire.gather},   {"scatter", wire.scatter},
                               {"dispatch", wire.dispatch},   {"combine", wire.combine}, {"head", wire.head},
                               {"total", wire.total()},       {"calls", wire.calls}};
  out["wire_bytes_per_token"] = facts.wire.per_token;
  out["step_row_bytes"] = sizeof(parallel::StepRow);
  out["ranks_of_token"] = facts.reach.ranks;
  out["remote_ranks_of_token"] = facts.reach.remote_ranks;
  out["remote_experts_of_token"] = facts.reach.remote_experts;
  out["copies_of_experts"] = facts.map ? facts.map->physical - facts.map->logical : 0;
  out["predictions"] = Json::array();
  for (const Prediction& p : facts.predictions) out["predictions"].push_back(json_of(p));
  return out;
}

}  // namespace

Result<Explanation> explain(const EngineOptions& options, const Hardware& hardware, const Workload& workload,
                            const std::vector<int64_t>& concurrency) {
  Explanation out{.hardware = hardware, .workload = workload};
  SLUICE_TRY(out.model, describe_model(options, hardware.divisible));
  if (workload.input_tokens + workload.output_tokens > out.model.context_length) {
    return Error{ErrorCode::kBadOption,
                 fmt::format("--input-len {} and --output-len {} are more than the context of {} tokens",
                             workload.input_tokens, workload.output_tokens, out.model.context_length)};
  }
  SLUICE_TRY(out.layout, examine_layout(out.model, options, hardware, workload, concurrency));
  Layout layout = out.layout.layout;
  out.ranks.push_back(out.layout.rank);
  for (++layout.tp_rank; layout.tp_rank < layout.tp_size; ++layout.tp_rank) {
    SLUICE_TRY(auto rank,
               models::shape_of_rank(out.model.config, layout, out.model.dtype, *out.model.source, out.model.kv_dtype,
                                     out.model.rounded, out.layout.map ? &*out.layout.map : nullptr));
    out.ranks.push_back(rank);
  }
  if (hardware.has_rates()) out.weighed = weigh_layouts(out.model, options, hardware, workload, concurrency);
  return out;
}

std::string to_text(const Explanation& e) {
  std::string out = model_line(e) + layout_flags(e.layout) + "\n";
  for (const std::string& note : e.layout.notes) out += fmt::format("  {}\n", note);
  out += "\n" + ranks_text(e) + memory_text(e);
  if (e.layout.layout.tp_size > 1) out += wire_text(e.layout);
  if (e.hardware.has_rates()) out += prediction_text(e);
  return out;
}

Json to_json(const Explanation& e) {
  const models::ModelConfig& config = e.model.config;
  Json out = {{"architecture", config.architectures[0]},
              {"dtype", e.model.dtype == kernels::DType::kBf16 ? "bfloat16" : "float32"},
              {"notes", e.layout.notes}};
  out["hardware"] = {{"name", e.hardware.name},
                     {"devices", e.hardware.devices},
                     {"memory_bytes", e.hardware.memory_bytes},
                     {"bandwidth", e.hardware.bandwidth},
                     {"flops", e.hardware.flops},
                     {"link_bandwidth", e.hardware.link_bandwidth},
                     {"link_latency", e.hardware.link_latency}};
  out["workload"] = {{"input_tokens", e.workload.input_tokens}, {"output_tokens", e.workload.output_tokens}};
  out["layout"] = json_of(e.layout, config);
  out["ranks"] = Json::array();
  for (size_t i = 0; i < e.ranks.size(); ++i) {
    Layout own = e.layout.layout;
    own.tp_rank = static_cast<int64_t>(i);
    Json rank = {{"rank", i},
                 {"attention_dp_rank", own.attention_dp().rank},
                 {"attention_tp_rank", own.attention_tp().rank},
                 {"expert_ep_rank", own.experts().rank},
                 {"expert_tp_rank", own.expert_tp().rank}};
    rank.update(json_of(e.ranks[i]));
    out["ranks"].push_back(std::move(rank));
  }
  out["layouts"] = Json::array();
  for (const LayoutFacts& facts : e.weighed) out["layouts"].push_back(json_of(facts, config));
  out["best"] = e.weighed.empty() ? Json() : Json(layout_flags(e.weighed[0]));
  return out;
}

}  // namespace sluice::engine
