#include "gateway/simulator/simulator.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <ranges>
#include <unordered_map>

#include "gateway/load.h"
#include "gateway/policy/least.h"
#include "gateway/policy/policy.h"
#include "gateway/roster.h"
#include "routing/prefix_tree.h"

namespace sluice::gateway {
namespace {

using testing::CacheWorker;
using testing::WorkerJob;

class VirtualClock final : public Clock {
 public:
  TimePoint now() const override { return TimePoint(now_); }
  int64_t unix_nanos() const override { return now_.count(); }
  void set(Duration now) { now_ = now; }

 private:
  Duration now_{0};
};

// Nobody is ever down here.
class OpenGate final : public Gate {
 public:
  Pass of(uint32_t) const override { return Pass::kYes; }
};

class Simulation {
 public:
  Simulation(const SimulationRules& rules, const std::string& policy, const GatewayOptions& options, Workload& workload)
      : rules_(rules),
        workload_(workload),
        poll_interval_(std::chrono::seconds(options.load_monitor_interval)),
        index_(static_cast<size_t>(options.prefix_index_bytes), static_cast<size_t>(options.max_tree_size)),
        rng_(rules.seed) {
    result_.policy = policy;
    if (policy != kOracle) {
      GatewayOptions named = options;
      named.policy = policy;
      policy_ = make_policy(named);
      // As the gateway: a policy that asks for no load gets none, and learns no cache's size.
      polls_ = (policy_->needs_engine_load() && !options.disable_load_monitoring) || options.engine_metrics;
    }
    std::vector<std::string> names;
    for (int64_t i = 0; i < rules.workers; ++i) {
      workers_.emplace_back(rules.worker);
      loads_.push_back(std::make_shared<WorkerLoad>());
      usable_.push_back({static_cast<uint32_t>(i), loads_.back().get()});
      names.push_back(fmt::format("http://worker{}", i));
    }
    std::vector<routing::HashRing::Member> members;
    for (size_t i = 0; i < names.size(); ++i) members.push_back({static_cast<uint32_t>(i), names[i]});
    ring_ = routing::HashRing(members);
    if (usable_.size() > Roster::kFew) order_ = std::make_unique<LoadOrder>(usable_);
    chosen_.resize(workers_.size());
  }

  SimulationResult run() {
    const Duration end = rules_.warm_up + rules_.duration;
    auto coming = workload_.next();
    for (int64_t i = 0; i < rules_.concurrency && coming; ++i) {
      send(std::move(*coming), Duration(0));
      coming = workload_.next();
    }
    Duration next_poll = polls_ ? Duration(0) : Duration::max();
    for (;;) {
      Duration next = next_poll;
      for (const CacheWorker& worker : workers_) next = std::min(next, worker.next_event());
      if (rules_.concurrency == 0 && coming) next = std::min(next, coming->at);
      for (const Report& report : reports_) next = std::min(next, report.due);
      if (next > end || (!coming && open_.empty())) break;
      clock_.set(next);
      int64_t finished = 0;
      for (size_t i = 0; i < workers_.size(); ++i) {
        CacheWorker::Events events = workers_[i].advance(next);
        for (const WorkerJob& job : events.first_tokens) first_token(job);
        for (const WorkerJob& job : events.finished) finish(job);
        finished += static_cast<int64_t>(events.finished.size());
      }
      if (next == next_poll) {
        poll(next);
        next_poll += poll_interval_;
      }
      deliver_reports(next);
      if (rules_.concurrency > 0) {
        for (; finished > 0 && coming; --finished) {
          send(std::move(*coming), next);
          coming = workload_.next();
        }
      } else {
        while (coming && coming->at <= next) {
          send(std::move(*coming), next);
          coming = workload_.next();
        }
      }
    }
    return summary(std::min(end, Duration(clock_.now().time_since_epoch())));
  }

 private:
  struct Open {
    Duration sent{0};
    std::optional<WorkerLease> lease;
    double matched_share = 0;
    double ttft = 0;
  };

  struct Report {
    Duration due{0};
    size_t worker = 0;
    bool failed = false;
    int64_t tokens = 0, waiting_tokens = 0;
    double kv_usage = 0;
    int64_t since = 0, prompt_since = 0;  // the report before, when it was asked for
  };

  bool measured() const { return clock_.now().time_since_epoch() > rules_.warm_up; }

  void send(SimulatedRequest request, Duration now) {
    WorkerJob job = testing::job_of(request.text, rules_.worker, request.decode.value_or(rules_.decode));
    job.id = ++last_id_;
    Open open{.sent = now};
    uint32_t worker = 0;
    if (policy_ == nullptr) {
      Least<int64_t> least(rng_);
      for (uint32_t i = 0; i < workers_.size(); ++i) least.offer(i, workers_[i].true_cost(job, now).count());
      worker = least.worker();
    } else {
      const int64_t estimate = static_cast<int64_t>(request.text.size() / 4) + 1;
      RequestFacts facts{.routing_text = request.text, .prompt_tokens = estimate, .now = clock_.now(), .prefix = {}};
      if (policy_->needs_prefix()) facts.prefix = index_.match(request.text);
      const bool many = order_ != nullptr && !policy_->needs_all();
      const FleetView fleet = many ? FleetView(usable_, *order_, open_gate_, &ring_) : FleetView(usable_, &ring_);
      const Choice choice = policy_->choose(fleet, facts, rng_);
      worker = *choice.worker;
      if (choice.insert_prefix) {
        routing::CacheBelief& belief = loads_[worker]->belief;
        belief.sent(static_cast<size_t>((1 - choice.match_rate) * static_cast<double>(request.text.size())));
        index_.insert(request.text, {.worker = worker}, static_cast<uint32_t>(now / kTick), belief.limit_bytes());
      }
      open.matched_share = choice.match_rate;
      open.lease.emplace(loads_[worker],
                         Work{.prompt_tokens = estimate,
                              .new_tokens = kSimulatedTokens,
                              .prompt_bytes = request.text.size(),
                              .matched_share = choice.match_rate,
                              .streams = rules_.streamed},
                         clock_);
    }
    if (measured()) {
      ++chosen_[worker];
      const auto [least, most] =
          std::ranges::minmax(workers_ | std::views::transform([](const CacheWorker& each) { return each.open(); }));
      apart_ += static_cast<double>(most - least);
    }
    open_.emplace(job.id, std::move(open));
    workers_[worker].submit(std::move(job), now);
  }

  void first_token(const WorkerJob& job) {
    Open& open = open_.at(job.id);
    open.ttft = seconds(clock_.now().time_since_epoch() - open.sent);
    if (rules_.streamed && open.lease) open.lease->first_token();
  }

  void finish(const WorkerJob& job) {
    const auto at = open_.find(job.id);
    Open& open = at->second;
    const double prompt = static_cast<double>(job.prompt_tokens);
    if (open.lease) {
      open.lease->answered(PromptReport{.prompt_tokens = job.prompt_tokens,
                                        .cached_share = static_cast<double>(job.cached_tokens) / prompt,
                                        .output_tokens = kSimulatedTokens});
    }
    if (measured()) {
      latencies_.push_back(seconds(clock_.now().time_since_epoch() - open.sent));
      ttfts_.push_back(open.ttft);
      cached_ += static_cast<double>(job.cached_tokens);
      predicted_ += open.matched_share * prompt;
      prompts_ += prompt;
    }
    open_.erase(at);
  }

  // As the gateway: no worker is asked twice at once, and what is sent meanwhile counts on.
  void poll(Duration now) {
    for (size_t i = 0; i < workers_.size(); ++i) {
      if (std::ranges::find(reports_, i, &Report::worker) != reports_.end()) continue;
      const Duration delay = rules_.report_delay == Duration(0)
                                 ? Duration(0)
                                 : from_seconds(seconds(rules_.report_delay) * (0.5 + rng_.uniform()));
      loads_[i]->polls.fetch_add(1, std::memory_order_relaxed);
      reports_.push_back({.due = now + delay,
                          .worker = i,
                          .failed = now > rules_.reports_until,
                          .tokens = workers_[i].used_tokens(),
                          .waiting_tokens = workers_[i].waiting_tokens(),
                          .kv_usage = workers_[i].kv_usage(),
                          .since = loads_[i]->tokens_since_poll,
                          .prompt_since = loads_[i]->prompt_since_poll});
    }
  }

  void deliver_reports(Duration now) {
    for (const Report& report : reports_) {
      if (report.due > now) continue;
      WorkerLoad& load = *loads_[report.worker];
      if (!report.failed) {
        load.polled_waiting_tokens = report.waiting_tokens;
        load.polled_kv_usage = report.kv_usage;
        load.belief.capacity(static_cast<size_t>(rules_.worker.kv_blocks * rules_.worker.block_tokens));
      }
      load.polled_tokens = report.failed ? -1 : report.tokens;
      load.tokens_since_poll -= report.since;
      load.prompt_since_poll -= report.prompt_since;
    }
    std::erase_if(reports_, [&](const Report& report) { return report.due <= now; });
  }

  SimulationResult summary(Duration end) {
    if (policy_ != nullptr) {
      for (size_t i = 0; i < workers_.size(); ++i)
        result_.miscounted += std::abs(loads_[i]->requests - workers_[i].open());
    }
    result_.requests = static_cast<int64_t>(latencies_.size());
    const double measured = seconds(end - rules_.warm_up);
    if (measured > 0) result_.requests_per_s = static_cast<double>(result_.requests) / measured;
    if (prompts_ > 0) {
      result_.hit_rate = cached_ / prompts_;
      result_.predicted_hit_rate = predicted_ / prompts_;
    }
    result_.latency_p50 = quantile(latencies_, 0.5);
    result_.latency_p99 = quantile(latencies_, 0.99);
    result_.ttft_p50 = quantile(ttfts_, 0.5);
    result_.ttft_p99 = quantile(ttfts_, 0.99);
    const double all = static_cast<double>(std::accumulate(chosen_.begin(), chosen_.end(), int64_t{0}));
    const auto most = static_cast<double>(*std::ranges::max_element(chosen_));
    if (all > 0) {
      result_.imbalance = most * static_cast<double>(chosen_.size()) / all;
      result_.most_apart = apart_ / all;
    }
    return result_;
  }

  static constexpr Duration kTick = std::chrono::microseconds(100);

  const SimulationRules rules_;
  Workload& workload_;
  const Duration poll_interval_;
  bool polls_ = false;
  VirtualClock clock_;
  routing::PrefixTree index_;  // what stands under the gateway's index, without its thread
  routing::HashRing ring_;
  std::unique_ptr<Policy> policy_;  // null: the oracle
  Rng rng_;
  std::vector<CacheWorker> workers_;
  std::vector<std::shared_ptr<WorkerLoad>> loads_;
  std::vector<Candidate> usable_;
  std::unique_ptr<LoadOrder> order_;  // as in the gateway, where they are many
  const OpenGate open_gate_;

  uint64_t last_id_ = 0;
  std::unordered_map<uint64_t, Open> open_;
  std::vector<Report> reports_;  // on their way
  std::vector<double> latencies_, ttfts_;
  std::vector<int64_t> chosen_;
  double cached_ = 0, predicted_ = 0, prompts_ = 0;  // tokens
  double apart_ = 0;
  SimulationResult result_;
};

}  // namespace

double quantile(std::vector<double>& values, double share) {
  if (values.empty()) return 0;
  const auto at = static_cast<size_t>(share * static_cast<double>(values.size() - 1));
  std::ranges::nth_element(values, values.begin() + static_cast<std::ptrdiff_t>(at));
  return values[at];
}

SimulationResult simulate(const SimulationRules& rules, const std::string& policy, const GatewayOptions& options,
                          Workload& workload) {
  return Simulation(rules, policy, options, workload).run();
}

}  // namespace sluice::gateway
