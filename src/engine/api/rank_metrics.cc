#include "engine/api/rank_metrics.h"

#include <algorithm>
#include <utility>
#include <vector>

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
};

struct CounterRow {
  std::string_view name, help, mode;  // `mode`: value of that label, or empty
  uint64_t (*value)(const LoadSnapshot&);
};
constexpr std::string_view kRealtime = "sglang:realtime_tokens_total";
constexpr std::string_view kRealtimeHelp = "Tokens as they are processed, by kind of work.";
const CounterRow kCounters[] = {
    {"sglang:num_retracted_requests_total", "Requests that gave up their KV slots because the pool was full.", "",
     [](const LoadSnapshot& l) { return l.retracted_total; }},
    {"sglang:evicted_tokens_total", "Tokens evicted from the prefix cache.", "",
     [](const LoadSnapshot& l) { return l.evicted_tokens_total; }},
    {kRealtime, kRealtimeHelp, "prefill_compute",
     [](const LoadSnapshot& l) {
       return l.prompt_tokens_total - std::min(l.prompt_tokens_total, l.cached_tokens_total);
     }},
    {kRealtime, kRealtimeHelp, "prefill_cache", [](const LoadSnapshot& l) { return l.cached_tokens_total; }},
    {kRealtime, kRealtimeHelp, "decode", [](const LoadSnapshot& l) { return l.generation_tokens_total; }},
};

}  // namespace

double token_usage(const LoadSnapshot& load) { return ratio(load.num_used_tokens, load.max_total_num_tokens); }

double rank_utilization(const LoadSnapshot& load) {
  return std::min(1.0, std::max(token_usage(load), ratio(load.num_running_reqs, load.max_running_requests)));
}

class RankMetrics::Impl {
 public:
  Impl(obs::Metrics& metrics, Backend& backend, std::string model_name, size_t dp_size,
       std::optional<std::string> own_dp_rank)
      : metrics_(metrics),
        backend_(backend),
        model_name_(std::move(model_name)),
        labelled_(dp_size > 1 || own_dp_rank),
        own_dp_rank_(std::move(own_dp_rank)),
        last_(dp_size) {
    declare();
    refresh_ = metrics_.before_render([this] { refresh(); });
  }

 private:
  void declare() {
    std::vector<std::string_view> labels = {"model_name", "engine_type", "tp_rank", "pp_rank", "moe_ep_rank"};
    if (labelled_) labels.push_back("dp_rank");
    std::vector<obs::Family> families;
    for (const auto& row : kGauges) {
      families.push_back({.name = row.name, .help = row.help, .kind = Kind::kGauge, .labels = labels});
    }
    for (const auto& row : kCounters) {
      if (!families.empty() && families.back().name == row.name) continue;
      auto with_mode = labels;
      if (!row.mode.empty()) with_mode.push_back("mode");
      families.push_back({.name = row.name, .help = row.help, .labels = std::move(with_mode)});
    }
    families.push_back(
        {.name = "sluice:rank_ready", .help = "1: the rank serves.", .kind = Kind::kGauge, .labels = labels});
    families.push_back(
        {.name = "sluice:rank_restarts_total", .help = "Starts of the rank after the first.", .labels = labels});
    metrics_.declare(families);
  }

  obs::LabelValues labels(size_t rank) const {
    obs::LabelValues out = {model_name_, "unified", "0", "0", "0"};
    if (labelled_) out.push_back(own_dp_rank_ && last_.size() == 1 ? *own_dp_rank_ : std::to_string(rank));
    return out;
  }

  // Only one thread renders at a time.
  void refresh() {
    const auto ranks = backend_.ranks();
    for (size_t i = 0; i < std::min(ranks.size(), last_.size()); ++i) {
      const auto with = labels(i);
      // A rank that is down runs nothing, whatever it said last.
      const LoadSnapshot now = ranks[i].ready ? ranks[i].load : LoadSnapshot{};
      for (const auto& row : kGauges) metrics_.gauge(row.name, with).set(row.value(now));
      metrics_.gauge("sluice:rank_ready", with).set(ranks[i].ready ? 1 : 0);
      count(i, with, ranks[i]);
    }
  }

  // A rank that restarts counts from zero again; what it says then comes on top.
  void count(size_t i, const obs::LabelValues& with, const RankState& rank) {
    Last& last = last_[i];
    const auto grow = [](obs::Counter counter, uint64_t now, uint64_t& before) {
      counter.add(static_cast<double>(now >= before ? now - before : now));
      before = now;
    };
    for (size_t c = 0; c < std::size(kCounters); ++c) {
      auto labels = with;
      if (!kCounters[c].mode.empty()) labels.emplace_back(kCounters[c].mode);
      grow(metrics_.counter(kCounters[c].name, labels), kCounters[c].value(rank.load), last.counters[c]);
    }
    grow(metrics_.counter("sluice:rank_restarts_total", with), static_cast<uint64_t>(rank.restarts), last.restarts);
  }

  struct Last {
    uint64_t counters[std::size(kCounters)] = {};
    uint64_t restarts = 0;
  };

  obs::Metrics& metrics_;
  Backend& backend_;
  const std::string model_name_;
  const bool labelled_;
  const std::optional<std::string> own_dp_rank_;
  std::vector<Last> last_;  // [dp_size]
  std::shared_ptr<void> refresh_;
};

RankMetrics::RankMetrics(obs::Metrics& metrics, Backend& backend, std::string model_name, size_t dp_size,
                         std::optional<std::string> own_dp_rank)
    : impl_(std::make_unique<Impl>(metrics, backend, std::move(model_name), dp_size, std::move(own_dp_rank))) {}
RankMetrics::~RankMetrics() = default;

}  // namespace sluice::engine
