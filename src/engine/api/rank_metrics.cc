#include "engine/api/rank_metrics.h"

#include <algorithm>
#include <initializer_list>
#include <span>
#include <utility>
#include <vector>

#include "engine/api/step_metrics.h"

namespace sluice::engine {
namespace {

using obs::Kind;

double ratio(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}
double number(int64_t value) { return static_cast<double>(value); }

struct GaugeRow {
  std::string_view name, help;
  double (*value)(const LoadSnapshot&);
};
const GaugeRow kGauges[] = {
    {"sglang:num_running_reqs", "Requests that run.", [](const LoadSnapshot& l) { return number(l.num_running_reqs); }},
    {"sglang:num_queue_reqs", "Requests that wait.", [](const LoadSnapshot& l) { return number(l.num_waiting_reqs); }},
    {"sglang:num_used_tokens", "KV slots in use that are not evictable cache.",
     [](const LoadSnapshot& l) { return number(l.num_used_tokens); }},
    {"sglang:token_usage", "Used KV slots as a share of the pool.", token_usage},
    {"sglang:max_total_num_tokens", "KV slots of the pool.",
     [](const LoadSnapshot& l) { return number(l.max_total_num_tokens); }},
    {"sglang:kv_used_tokens", "KV slots in use that are not evictable cache.",
     [](const LoadSnapshot& l) { return number(l.num_used_tokens); }},
    {"sglang:kv_evictable_tokens", "KV slots that hold evictable cache.",
     [](const LoadSnapshot& l) { return number(l.num_cached_tokens); }},
    {"sglang:kv_available_tokens", "KV slots that hold nothing.",
     [](const LoadSnapshot& l) {
       return number(std::max<int64_t>(0, l.max_total_num_tokens - l.num_used_tokens - l.num_cached_tokens));
     }},
    {"sglang:gen_throughput", "Output tokens per second over the last seconds.",
     [](const LoadSnapshot& l) { return l.gen_throughput; }},
    {"sglang:cache_hit_rate", "Cached share of the prompt tokens of the last prefill batch.",
     [](const LoadSnapshot& l) { return l.cache_hit_rate; }},
    {"sglang:utilization", "Running slots or KV pool in use, whichever is fuller; 0 to 1.", rank_utilization},
    {"sglang:full_token_usage", "Used KV slots as a share of the pool.", token_usage},
    {"sglang:num_grammar_queue_reqs", "Requests that wait for their grammar.",
     [](const LoadSnapshot& l) { return number(l.num_grammar_reqs); }},
    {"sglang:num_retracted_reqs", "Requests that wait after they gave up their KV slots.",
     [](const LoadSnapshot& l) { return number(l.num_retracted_reqs); }},
    {"sglang:num_paused_reqs", "Requests that a pause holds.",
     [](const LoadSnapshot& l) { return number(l.num_paused_reqs); }},
    {"sglang:decode_sum_seq_lens", "Lengths of all sequences that decode, together.",
     [](const LoadSnapshot& l) { return number(l.decode_sum_seq_lens); }},
    {"sglang:new_token_ratio", "Share of their remaining output that running requests are expected to need.",
     [](const LoadSnapshot& l) { return l.new_token_ratio; }},
    {"sglang:num_unique_running_routing_keys", "Different routing keys of the requests that run.",
     [](const LoadSnapshot& l) { return number(l.routing_keys.unique_running); }},
};

// What a rank said when it was ready.
struct FactRow {
  std::string_view name, help;
  double (*value)(const RankReady&);
};
constexpr double kGiB = 1024.0 * 1024 * 1024;
const FactRow kFacts[] = {
    {"sglang:engine_startup_time", "Seconds from the start of the rank until it was ready.",
     [](const RankReady& r) { return r.startup_seconds; }},
    {"sglang:engine_load_weights_time", "Seconds that loading the weights took.",
     [](const RankReady& r) { return r.load_seconds; }},
    {"sglang:startup_time_seconds", "Seconds from the start of the rank until it was ready.",
     [](const RankReady& r) { return r.startup_seconds; }},
    {"sglang:weight_load_duration_seconds", "Seconds that loading the weights took.",
     [](const RankReady& r) { return r.load_seconds; }},
    {"sglang:weight_memory_usage_gb", "Memory of the weights in GiB.",
     [](const RankReady& r) { return static_cast<double>(r.weight_bytes) / kGiB; }},
    {"sglang:kv_cache_memory_usage_gb", "Memory of the KV cache in GiB.",
     [](const RankReady& r) { return static_cast<double>(r.kv_bytes) / kGiB; }},
    {"sglang:context_len", "Longest sequence.", [](const RankReady& r) { return number(r.context_length); }},
};
constexpr std::string_view kCacheConfig = "sglang:cache_config_info";

// Keys by their number of requests: a gauge for each range, not cumulative, as the runtime has it.
struct KeyRow {
  std::string_view name, help;
  const int64_t* (*counts)(const LoadSnapshot&);
};
const KeyRow kKeys[] = {
    {"sglang:routing_key_running_req_count",
     "Routing keys by the number of their requests that run (gt < number <= le).",
     [](const LoadSnapshot& l) -> const int64_t* { return l.routing_keys.running; }},
    {"sglang:routing_key_all_req_count",
     "Routing keys by the number of their requests that run or wait (gt < number <= le).",
     [](const LoadSnapshot& l) -> const int64_t* { return l.routing_keys.all; }},
};

struct CounterRow {
  std::string_view name, help, label, label_value;  // one label more than the rank's, or empty
  double (*value)(const LoadSnapshot&);
};
double count(uint64_t value) { return static_cast<double>(value); }
constexpr std::string_view kRealtime = "sglang:realtime_tokens_total";
constexpr std::string_view kRealtimeHelp = "Tokens as they are processed, by kind of work.";
constexpr std::string_view kGpu = "sglang:gpu_execution_seconds_total",
                           kForward = "sglang:forward_execution_seconds_total";
constexpr std::string_view kForwardHelp = "Time of forward passes, by what they compute.";
constexpr std::string_view kEplbLayers = "sluice:eplb_layers_total";
constexpr std::string_view kEplbLayersHelp = "Layers by what became of their experts when loads were looked at.";
const CounterRow kCounters[] = {
    {"sglang:num_retracted_requests_total", "Requests that gave up their KV slots because the pool was full.", "", "",
     [](const LoadSnapshot& l) { return count(l.retracted_total); }},
    {"sglang:num_retracted_input_tokens_total", "Prompt tokens of those.", "", "",
     [](const LoadSnapshot& l) { return count(l.retracted_input_tokens_total); }},
    {"sglang:num_retracted_output_tokens_total", "Tokens that those had generated.", "", "",
     [](const LoadSnapshot& l) { return count(l.retracted_output_tokens_total); }},
    {"sglang:evicted_tokens_total", "Tokens evicted from the prefix cache.", "", "",
     [](const LoadSnapshot& l) { return count(l.evicted_tokens_total); }},
    {kRealtime, kRealtimeHelp, "mode", "prefill_compute",
     [](const LoadSnapshot& l) {
       return count(l.prompt_tokens_total - std::min(l.prompt_tokens_total, l.cached_tokens_total));
     }},
    {kRealtime, kRealtimeHelp, "mode", "prefill_cache",
     [](const LoadSnapshot& l) { return count(l.cached_tokens_total); }},
    {kRealtime, kRealtimeHelp, "mode", "decode",
     [](const LoadSnapshot& l) { return count(l.generation_tokens_total); }},
    {kGpu, kForwardHelp, "category", "extend", [](const LoadSnapshot& l) { return l.forward_seconds[0]; }},
    {kGpu, kForwardHelp, "category", "decode", [](const LoadSnapshot& l) { return l.forward_seconds[1]; }},
    {kGpu, kForwardHelp, "category", "mixed", [](const LoadSnapshot& l) { return l.forward_seconds[2]; }},
    {kForward, kForwardHelp, "category", "extend", [](const LoadSnapshot& l) { return l.forward_seconds[0]; }},
    {kForward, kForwardHelp, "category", "decode", [](const LoadSnapshot& l) { return l.forward_seconds[1]; }},
    {kForward, kForwardHelp, "category", "mixed", [](const LoadSnapshot& l) { return l.forward_seconds[2]; }},
    {"sglang:num_grammar_total", "Requests with a grammar.", "", "",
     [](const LoadSnapshot& l) { return count(l.grammars.requests); }},
    {"sglang:num_grammar_cache_hit_total", "Of those, with a grammar that was compiled already.", "", "",
     [](const LoadSnapshot& l) { return count(l.grammars.cache_hits); }},
    {"sglang:num_grammar_aborted_total", "Of those, that ended before they had their grammar.", "", "",
     [](const LoadSnapshot& l) { return count(l.grammars.aborted); }},
    {"sglang:num_grammar_timeout_total", "Grammars that took too long to compile.", "", "",
     [](const LoadSnapshot& l) { return count(l.grammars.timeouts); }},
    {kEplbLayers, kEplbLayersHelp, "outcome", "moved",
     [](const LoadSnapshot& l) { return count(l.rebalance.layers_moved); }},
    {kEplbLayers, kEplbLayersHelp, "outcome", "kept",
     [](const LoadSnapshot& l) { return count(l.rebalance.layers_kept); }},
    {kEplbLayers, kEplbLayersHelp, "outcome", "rolled_back",
     [](const LoadSnapshot& l) { return count(l.rebalance.layers_rolled_back); }},
    {"sluice:eplb_moved_bytes_total", "Weights of experts that went from rank to rank.", "", "",
     [](const LoadSnapshot& l) { return count(l.rebalance.moved_bytes); }},
    {"sluice:eplb_seconds_total", "Time between steps in which loads were added up and experts moved.", "", "",
     [](const LoadSnapshot& l) { return l.rebalance.seconds; }},
};

// What a rank has observed, in buckets.
struct Buckets {
  const uint64_t* counts;
  const double* sums;
};
struct HistogramRow {
  std::string_view name, help, label, label_value;  // as of counters
  std::span<const double> bounds;
  Buckets (*value)(const LoadSnapshot&);
  bool (*shown)(const RankMetricsOptions&) = [](const RankMetricsOptions&) { return true; };
};
constexpr std::string_view kBalancedness = "sglang:eplb_balancedness";
constexpr std::string_view kBalancednessHelp = "Of a step: mean tokens of a rank's experts, by the most of any rank.";
Buckets balancedness(const LoadSnapshot& load, moe::RebalanceCounts::Mode mode) {
  return {load.rebalance.steps[mode], load.rebalance.balancedness[mode]};
}
const HistogramRow kHistograms[] = {
    {kBalancedness, kBalancednessHelp, "forward_mode", "extend", moe::kBalancednessBounds,
     [](const LoadSnapshot& l) { return balancedness(l, moe::RebalanceCounts::kExtend); }},
    {kBalancedness, kBalancednessHelp, "forward_mode", "decode", moe::kBalancednessBounds,
     [](const LoadSnapshot& l) { return balancedness(l, moe::RebalanceCounts::kDecode); }},
    {"sglang:eviction_duration_seconds", "Of an eviction from the prefix cache.", "", "", kEvictionSeconds,
     [](const LoadSnapshot& l) {
       return Buckets{l.eviction_seconds.counts, l.eviction_seconds.sums};
     }},
    {"sglang:grammar_compilation_time_seconds", "Of compiling a grammar.", "", "", kGrammarSeconds,
     [](const LoadSnapshot& l) {
       return Buckets{l.grammars.compile_seconds.counts, l.grammars.compile_seconds.sums};
     }},
    {"sglang:grammar_schema_count", "JSON schemas of a grammar that was compiled.", "", "", kGrammarSchemas,
     [](const LoadSnapshot& l) {
       return Buckets{l.grammars.schemas.counts, l.grammars.schemas.sums};
     }},
    {"sglang:grammar_ebnf_size", "Bytes of a grammar in EBNF that was compiled.", "", "", kEbnfBytes,
     [](const LoadSnapshot& l) {
       return Buckets{l.grammars.ebnf_bytes.counts, l.grammars.ebnf_bytes.sums};
     }},
    {"sglang:grammar_tree_traversal_time_avg", "Seconds that finding a request's next tokens took on the mean.", "", "",
     kGrammarWalkSeconds,
     [](const LoadSnapshot& l) {
       return Buckets{l.grammar_walks.mean.counts, l.grammar_walks.mean.sums};
     }},
    {"sglang:grammar_tree_traversal_time_max", "Seconds that finding a request's next tokens took at most.", "", "",
     kGrammarWalkSeconds,
     [](const LoadSnapshot& l) {
       return Buckets{l.grammar_walks.longest.counts, l.grammar_walks.longest.sums};
     }},
    {"sglang:prefill_delayer_wait_forward_passes", "Steps that a prompt was held back for.", "", "", kDelayPasses,
     [](const LoadSnapshot& l) {
       return Buckets{l.prefill_delays.passes.counts, l.prefill_delays.passes.sums};
     },
     [](const RankMetricsOptions& o) { return o.prefill_delayer; }},
    {"sglang:prefill_delayer_wait_seconds", "Seconds that a prompt was held back for.", "", "", kDelaySeconds,
     [](const LoadSnapshot& l) {
       return Buckets{l.prefill_delays.seconds.counts, l.prefill_delays.seconds.sums};
     },
     [](const RankMetricsOptions& o) { return o.prefill_delayer; }},
};
constexpr size_t kMostBuckets = [] {
  size_t most = 0;
  for (const size_t bounds : {std::size(kEvictionSeconds), std::size(kGrammarSeconds), std::size(kGrammarSchemas),
                              std::size(kEbnfBytes), std::size(kGrammarWalkSeconds), std::size(kDelayPasses),
                              std::size(kDelaySeconds), std::size(moe::kBalancednessBounds)}) {
    most = std::max(most, bounds + 1);
  }
  return most;
}();
constexpr std::string_view kRankTokens = "sglang:eplb_gpu_physical_count";
constexpr std::string_view kStateUsage = "sglang:mamba_usage";
constexpr std::string_view kHitRate = "sluice:cache_hit_rate";

}  // namespace

double token_usage(const LoadSnapshot& load) { return ratio(load.num_used_tokens, load.max_total_num_tokens); }

double rank_utilization(const LoadSnapshot& load) {
  return std::min(1.0, std::max(token_usage(load), ratio(load.num_running_reqs, load.max_running_requests)));
}

RankLabels::RankLabels(std::string model_name, size_t ranks, std::optional<std::string> own_dp_rank,
                       const parallel::Layout& layout)
    : model_name_(std::move(model_name)), ranks_(ranks), own_dp_rank_(std::move(own_dp_rank)), layout_(layout) {}

std::vector<std::string_view> RankLabels::names() const {
  std::vector<std::string_view> names = {"model_name", "engine_type", "tp_rank", "pp_rank", "moe_ep_rank"};
  if (ranks_ > 1 || own_dp_rank_) names.push_back("dp_rank");
  return names;
}

obs::LabelValues RankLabels::of(size_t rank) const {
  parallel::Layout leader = layout_;
  leader.tp_rank = layout_.dp_attention() ? static_cast<int64_t>(rank) * layout_.attention_tp_size() : 0;
  obs::LabelValues out = {model_name_, "unified", std::to_string(leader.tp_rank), "0",
                          std::to_string(leader.experts().rank)};
  if (ranks_ > 1) {
    out.push_back(std::to_string(rank));
  } else if (own_dp_rank_) {
    out.push_back(*own_dp_rank_);
  }
  return out;
}

class RankMetrics::Impl {
 public:
  Impl(obs::Metrics& metrics, Backend& backend, RankLabels labels, const RankMetricsOptions& options)
      : metrics_(metrics),
        backend_(backend),
        labels_(std::move(labels)),
        options_(options),
        steps_(metrics, labels_, options),
        last_(labels_.ranks()) {
    declare();
    refresh_ = metrics_.before_render([this] { refresh(); });
  }

 private:
  void declare() {
    std::vector<obs::Family> families;
    const auto add = [&](std::string_view name, std::string_view help, Kind kind,
                         std::initializer_list<std::string_view> more = {}) {
      if (!families.empty() && families.back().name == name) return;
      families.push_back({.name = name, .help = help, .kind = kind, .labels = labels_.names()});
      for (const auto label : more) families.back().labels.push_back(label);
    };
    for (const auto& row : kGauges) add(row.name, row.help, Kind::kGauge);
    for (const auto& row : kFacts) add(row.name, row.help, Kind::kGauge);
    for (const auto& row : kKeys) add(row.name, row.help, Kind::kGauge, {"gt", "le"});
    for (const auto& row : kCounters) {
      if (row.label.empty()) {
        add(row.name, row.help, Kind::kCounter);
      } else {
        add(row.name, row.help, Kind::kCounter, {row.label});
      }
    }
    for (const auto& row : kHistograms) {
      if (!row.shown(options_)) continue;
      if (row.label.empty()) {
        add(row.name, row.help, Kind::kHistogram);
      } else {
        add(row.name, row.help, Kind::kHistogram, {row.label});
      }
      families.back().buckets.assign(row.bounds.begin(), row.bounds.end());
    }
    if (options_.expert_ranks > 0) {
      add(kRankTokens, "Tokens that the experts of a layer got, by the rank that has them.", Kind::kHistogram,
          {"layer"});
      for (int64_t rank = 0; rank < options_.expert_ranks; ++rank) families.back().buckets.push_back(number(rank));
    }
    if (options_.states) add(kStateUsage, "Used share of the rows for states of sequences.", Kind::kGauge);
    add(kCacheConfig, "The KV pool's pages; always 1.", Kind::kGauge, {"page_size", "num_pages"});
    add("sglang:page_size", "Tokens of a page of the KV pool.", Kind::kGauge);
    add("sglang:num_pages", "Pages of the KV pool.", Kind::kGauge);
    add(kHitRate, "Cached share of all prompt tokens so far.", Kind::kGauge);
    add("sluice:rank_ready", "1: the rank serves.", Kind::kGauge);
    add("sluice:rank_restarts_total", "Starts of the rank after the first.", Kind::kCounter);
    metrics_.declare(families);
  }

  // Only one thread renders at a time.
  void refresh() {
    metrics_.clear(kCacheConfig);
    const auto ranks = backend_.ranks();
    for (size_t i = 0; i < std::min(ranks.size(), last_.size()); ++i) {
      const auto with = labels_.of(i);
      // A rank that is down runs nothing, whatever it said last.
      const LoadSnapshot now = ranks[i].ready ? ranks[i].load : LoadSnapshot{};
      for (const auto& row : kGauges) metrics_.gauge(row.name, with).set(row.value(now));
      for (const auto& row : kKeys) show_keys(row.name, with, row.counts(now));
      if (options_.states) metrics_.gauge(kStateUsage, with).set(ratio(now.num_used_states, now.max_total_states));
      metrics_.gauge("sluice:rank_ready", with).set(ranks[i].ready ? 1 : 0);
      show_facts(with, ranks[i].info);
      count_up(i, with, ranks[i]);
    }
  }

  static obs::LabelValues plus(obs::LabelValues labels, std::initializer_list<std::string> more) {
    labels.insert(labels.end(), more);
    return labels;
  }

  void show_keys(std::string_view name, const obs::LabelValues& with, const int64_t* counts) {
    constexpr size_t kBounds = std::size(kRequestsPerKey);
    for (size_t b = 0; b <= kBounds; ++b) {
      const std::string above = b == 0 ? "0" : std::to_string(kRequestsPerKey[b - 1]);
      const std::string up_to = b == kBounds ? "+Inf" : std::to_string(kRequestsPerKey[b]);
      metrics_.gauge(name, plus(with, {above, up_to})).set(number(counts[b]));
    }
  }

  void show_facts(const obs::LabelValues& with, const RankReady& info) {
    for (const auto& row : kFacts) metrics_.gauge(row.name, with).set(row.value(info));
    const int64_t pages = info.max_total_num_tokens / options_.page_size;
    metrics_.gauge("sglang:page_size", with).set(number(options_.page_size));
    metrics_.gauge("sglang:num_pages", with).set(number(pages));
    metrics_.gauge(kCacheConfig, plus(with, {std::to_string(options_.page_size), std::to_string(pages)})).set(1);
  }

  // A rank that restarts counts from zero again; what it says then comes on top.
  void count_up(size_t i, const obs::LabelValues& with, const RankState& rank) {
    Last& last = last_[i];
    // A new life counts from 0, though it may have come further than the one before it by now.
    if (static_cast<uint64_t>(rank.restarts) != last.restarts) {
      last.begin_anew();
      steps_.begin_anew(i);
    }
    const auto grown = [](auto now, auto& before) {
      const auto by = now >= before ? now - before : now;
      before = now;
      return by;
    };
    for (size_t c = 0; c < std::size(kCounters); ++c) {
      const auto& row = kCounters[c];
      auto labels = row.label.empty() ? with : plus(with, {std::string(row.label_value)});
      metrics_.counter(row.name, std::move(labels)).add(grown(row.value(rank.load), last.counters[c]));
    }
    for (size_t h = 0; h < std::size(kHistograms); ++h) {
      const auto& row = kHistograms[h];
      if (!row.shown(options_)) continue;
      auto histogram =
          metrics_.histogram(row.name, row.label.empty() ? with : plus(with, {std::string(row.label_value)}));
      const Buckets now = row.value(rank.load);
      for (size_t b = 0; b <= row.bounds.size(); ++b) {
        const uint64_t times = grown(now.counts[b], last.buckets[h][b].first);
        const double sum = grown(now.sums[b], last.buckets[h][b].second);
        if (times > 0) histogram.observe(sum / static_cast<double>(times), times);
      }
    }
    last.all_prompt_tokens += grown(rank.load.prompt_tokens_total, last.prompt_tokens);
    last.all_cached_tokens += grown(rank.load.cached_tokens_total, last.cached_tokens);
    const auto cached = static_cast<int64_t>(last.all_cached_tokens);
    metrics_.gauge(kHitRate, with).set(ratio(cached, static_cast<int64_t>(last.all_prompt_tokens)));
    if (options_.expert_ranks > 0) count_tokens(i, with, rank.expert_tokens);
    steps_.count_up(i, with, rank.load);
    metrics_.counter("sluice:rank_restarts_total", with)
        .add(static_cast<double>(grown(static_cast<uint64_t>(rank.restarts), last.restarts)));
  }

  // A bucket of each rank, so that a histogram is a row of a heat map.
  void count_tokens(size_t i, const obs::LabelValues& with, const moe::RankTokens& now) {
    std::vector<int64_t>& before = last_[i].expert_tokens;
    before.resize(now.tokens.size());
    for (size_t at = 0; at < now.tokens.size(); ++at) {
      const auto ranks = static_cast<size_t>(now.ranks);
      const auto times = static_cast<uint64_t>(now.tokens[at] - std::exchange(before[at], now.tokens[at]));
      if (times == 0) continue;
      metrics_.histogram(kRankTokens, plus(with, {std::to_string(now.layers[at / ranks])}))
          .observe(static_cast<double>(at % ranks), times);
    }
  }

  struct Last {
    std::vector<int64_t> expert_tokens;
    double counters[std::size(kCounters)] = {};
    std::pair<uint64_t, double> buckets[std::size(kHistograms)][kMostBuckets] = {};
    uint64_t restarts = 0;
    // As the rank says, and of all its lives.
    uint64_t prompt_tokens = 0, cached_tokens = 0;
    uint64_t all_prompt_tokens = 0, all_cached_tokens = 0;

    void begin_anew() {
      std::ranges::fill(counters, 0);
      for (auto& histogram : buckets) std::ranges::fill(histogram, std::pair<uint64_t, double>());
      prompt_tokens = cached_tokens = 0;
    }
  };

  obs::Metrics& metrics_;
  Backend& backend_;
  const RankLabels labels_;
  const RankMetricsOptions options_;
  StepMetrics steps_;
  std::vector<Last> last_;  // [ranks]
  std::shared_ptr<void> refresh_;
};

RankMetrics::RankMetrics(obs::Metrics& metrics, Backend& backend, RankLabels labels, const RankMetricsOptions& options)
    : impl_(std::make_unique<Impl>(metrics, backend, std::move(labels), options)) {}
RankMetrics::~RankMetrics() = default;

}  // namespace sluice::engine
