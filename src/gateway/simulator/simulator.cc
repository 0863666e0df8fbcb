#include "gateway/simulator/simulator.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <optional>
#include <unordered_map>
#include <utility>

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

// When something happens first, and at which of many: of equals at the first of them.
class Agenda {
 public:
  explicit Agenda(size_t size)
      : leaves_(std::bit_ceil(std::max<size_t>(size, 1))), nodes_(2 * leaves_, Duration::max()) {}

  void set(size_t i, Duration at) {
    size_t node = leaves_ + i;
    nodes_[node] = at;
    for (; node > 1; node /= 2) nodes_[node / 2] = std::min(nodes_[node], nodes_[node ^ 1]);
  }
  Duration first() const { return nodes_[1]; }
  size_t whose() const {
    size_t node = 1;
    while (node < leaves_) {
      node *= 2;
      if (nodes_[node] != nodes_[node / 2]) ++node;
    }
    return node - leaves_;
  }

 private:
  const size_t leaves_;
  std::vector<Duration> nodes_;  // a tree: the children of i are 2 i and 2 i + 1, and it has the earlier time of theirs
};

// The least and the most of many counts that begin at 0 and change by one.
class Extent {
 public:
  explicit Extent(size_t size) : with_{static_cast<int64_t>(size)} {}

  void up(size_t from) {
    if (with_.size() <= from + 1) with_.resize(from + 2);
    --with_[from];
    ++with_[from + 1];
    most_ = std::max(most_, from + 1);
    if (from == least_ && with_[from] == 0) ++least_;
  }
  void down(size_t from) {
    --with_[from];
    ++with_[from - 1];
    least_ = std::min(least_, from - 1);
    if (from == most_ && with_[from] == 0) --most_;
  }
  size_t apart() const { return most_ - least_; }

 private:
  std::vector<int64_t> with_;  // how many have that count
  size_t least_ = 0, most_ = 0;
};

class Simulation {
 public:
  Simulation(const SimulationRules& rules, const std::string& policy, const GatewayOptions& options, Workload& workload)
      : rules_(rules),
        workload_(workload),
        poll_interval_(std::chrono::seconds(options.load_monitor_interval)),
        round_(std::chrono::seconds(options.eviction_interval_secs)),
        index_(static_cast<size_t>(options.prefix_index_bytes), static_cast<size_t>(options.max_tree_size)),
        rng_(rules.seed),
        agenda_(static_cast<size_t>(rules.workers)),
        in_flight_(static_cast<size_t>(rules.workers)) {
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
    if (rules.last_joins > Duration(0)) {
      SLUICE_CHECK(usable_.size() <= Roster::kFew, "the order of many does not grow");
      joining_ = usable_.back();
      usable_.pop_back();
    }
    if (usable_.size() > Roster::kFew) order_ = std::make_unique<LoadOrder>(usable_);
    chosen_.resize(workers_.size());
    asked_.resize(workers_.size());
    of_others_.resize(workers_.size());
  }

  SimulationResult run() {
    const Duration end = rules_.warm_up + rules_.duration;
    auto coming = workload_.next();
    for (int64_t i = 0; i < rules_.concurrency && coming; ++i) {
      send(*coming, Duration(0));
      coming = workload_.next();
    }
    Duration next_poll = polls_ ? Duration(0) : Duration::max();
    Duration flush = rules_.flush ? rules_.flush->at : Duration::max();
    for (;;) {
      const Duration joins = joining_ ? rules_.last_joins : Duration::max();
      Duration next = std::min({next_poll, agenda_.first(), next_report_, flush, joins});
      if (rules_.concurrency == 0 && coming) next = std::min(next, coming->at);
      if (next > end || (!coming && num_open_ == 0)) break;
      clock_.set(next);
      int64_t finished = 0;
      while (agenda_.first() <= next) {
        const size_t i = agenda_.whose();
        workers_[i].advance(next, events_);
        agenda_.set(i, workers_[i].next_event());
        for (const WorkerJob& job : events_.first_tokens) first_token(job);
        auto open = static_cast<size_t>(workers_[i].open()) + events_.finished.size();
        for (const WorkerJob& job : events_.finished) {
          finish(job);
          in_flight_.down(open--);
        }
        finished += static_cast<int64_t>(events_.finished.size());
      }
      if (flush <= next) {
        workers_[rules_.flush->worker].flush();
        flush = Duration::max();
      }
      if (joins <= next) usable_.push_back(*std::exchange(joining_, std::nullopt));
      if (next == next_poll) {
        poll(next);
        next_poll += poll_interval_;
      }
      deliver_reports(next);
      if (rules_.concurrency > 0) {
        for (; finished > 0 && coming; --finished) {
          send(*coming, next);
          coming = workload_.next();
        }
      } else {
        while (coming && coming->at <= next) {
          send(*coming, next);
          coming = workload_.next();
        }
      }
    }
    return summary(std::min(end, Duration(clock_.now().time_since_epoch())));
  }

 private:
  struct Open {
    Duration sent{0};
    bool of_others = false;
    uint32_t worker = 0;
    std::optional<WorkerLease> lease;
    int64_t output_tokens = 0;
    double matched_share = 0, believed = 0;
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

  void age_index(Duration now) {
    if (now < next_round_) return;
    next_round_ = now + round_;
    const Duration oldest = now - kUnusedRounds * round_;
    if (oldest > Duration::zero()) index_.sweep(static_cast<uint32_t>(oldest / kTick));
  }

  void send(const SimulatedRequest& request, Duration now) {
    age_index(now);
    WorkerJob job = testing::job_of(request.text, rules_.worker, request.decode.value_or(rules_.decode),
                                    blocks_of_beginning(request));
    job.id = new_open();
    Open& open = open_[job.id];
    open.sent = now;
    open.output_tokens = request.output_tokens.value_or(kSimulatedTokens);
    uint32_t& worker = open.worker;
    if (request.of_others) {
      open.of_others = true;
      worker = *request.of_others;
      ++of_others_[worker];
    } else if (policy_ == nullptr) {
      Least<int64_t> least(rng_);
      for (const Candidate& its : usable_) least.offer(its.worker, workers_[its.worker].true_cost(job, now).count());
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
      open.believed = choice.match_rate * loads_[worker]->belief.share();
      open.lease.emplace(loads_[worker],
                         Work{.prompt_tokens = estimate,
                              .new_tokens = open.output_tokens,
                              .prompt_bytes = request.text.size(),
                              .matched_share = choice.match_rate,
                              .streams = rules_.streamed},
                         clock_);
    }
    if (measured() && !open.of_others) {
      ++chosen_[worker];
      apart_ += static_cast<double>(in_flight_.apart());
      if (rules_.work_apart) measure_work(now);
    }
    in_flight_.up(static_cast<size_t>(workers_[worker].open()));
    workers_[worker].submit(std::move(job), now);
    agenda_.set(worker, workers_[worker].next_event());
  }

  void measure_work(Duration now) {
    Duration least = Duration::max(), most(0);
    for (const CacheWorker& worker : workers_) {
      const Duration left = worker.prefill_left(now);
      least = std::min(least, left);
      most = std::max(most, left);
    }
    const double apart = seconds(most - least);
    work_apart_ += apart;
    result_.work_apart_most = std::max(result_.work_apart_most, apart);
  }

  // As far as they are whole, worked out once.
  std::vector<uint64_t> blocks_of_beginning(const SimulatedRequest& request) {
    if (request.beginning == 0) return {};
    auto [at, is_new] = beginnings_.try_emplace(request.beginning);
    if (is_new) {
      const auto text = request.text.substr(0, request.beginning_chars);
      at->second = testing::block_hashes(text, rules_.worker.block_chars);
    }
    std::vector<uint64_t> blocks;
    blocks.reserve(request.text.size() / static_cast<size_t>(rules_.worker.block_chars));
    blocks = at->second;
    return blocks;
  }

  // Its number, which is one's again that has ended.
  uint64_t new_open() {
    ++num_open_;
    if (!free_.empty()) {
      const uint64_t id = free_.back();
      free_.pop_back();
      return id;
    }
    open_.emplace_back();
    return open_.size() - 1;
  }

  void first_token(const WorkerJob& job) {
    Open& open = open_[job.id];
    open.ttft = seconds(clock_.now().time_since_epoch() - open.sent);
    if (rules_.streamed && open.lease) open.lease->first_token();
  }

  void finish(const WorkerJob& job) {
    Open& open = open_[job.id];
    const double prompt = static_cast<double>(job.prompt_tokens);
    if (open.lease) {
      open.lease->answered(PromptReport{.prompt_tokens = job.prompt_tokens,
                                        .cached_share = static_cast<double>(job.cached_tokens) / prompt,
                                        .output_tokens = open.output_tokens});
    }
    if (open.lease && rules_.on_answer) {
      rules_.on_answer({.worker = open.worker,
                        .sent = open.sent,
                        .believed = open.believed,
                        .cached = static_cast<double>(job.cached_tokens) / prompt});
    }
    if (open.of_others) --of_others_[open.worker];
    if (measured() && !open.of_others) {
      latencies_.push_back(seconds(clock_.now().time_since_epoch() - open.sent));
      ttfts_.push_back(open.ttft);
      cached_ += static_cast<double>(job.cached_tokens);
      predicted_ += open.matched_share * prompt;
      prompts_ += prompt;
    }
    open = Open();
    free_.push_back(job.id);
    --num_open_;
  }

  // As the gateway: no worker is asked twice at once, and what is sent meanwhile counts on.
  void poll(Duration now) {
    for (size_t i = 0; i < workers_.size(); ++i) {
      if (asked_[i]) continue;
      asked_[i] = true;
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
      next_report_ = std::min(next_report_, now + delay);
    }
  }

  void deliver_reports(Duration now) {
    if (next_report_ > now) return;
    next_report_ = Duration::max();
    for (const Report& report : reports_) {
      if (report.due > now) {
        next_report_ = std::min(next_report_, report.due);
        continue;
      }
      asked_[report.worker] = false;
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
        result_.miscounted += std::abs(loads_[i]->requests + of_others_[i] - workers_[i].open());
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
      result_.work_apart = work_apart_ / all;
    }
    return result_;
  }

  static constexpr Duration kTick = std::chrono::milliseconds(1);

  const SimulationRules rules_;
  Workload& workload_;
  const Duration poll_interval_;
  const Duration round_;  // of ageing of the index
  Duration next_round_{};
  bool polls_ = false;
  VirtualClock clock_;
  routing::PrefixTree index_;  // what stands under the gateway's index, without its thread
  routing::HashRing ring_;
  std::unique_ptr<Policy> policy_;  // null: the oracle
  Rng rng_;
  std::vector<CacheWorker> workers_;
  std::vector<std::shared_ptr<WorkerLoad>> loads_;
  std::vector<Candidate> usable_;
  std::optional<Candidate> joining_;  // SimulationRules::last_joins
  std::unique_ptr<LoadOrder> order_;  // as in the gateway, where they are many
  const OpenGate open_gate_;

  Agenda agenda_;               // of the workers
  CacheWorker::Events events_;  // of one of them
  std::vector<Open> open_;      // by WorkerJob::id
  std::vector<uint64_t> free_;  // of open_
  int64_t num_open_ = 0;
  Extent in_flight_;             // at the workers
  std::vector<Report> reports_;  // on their way
  Duration next_report_ = Duration::max();
  std::vector<int64_t> of_others_;                                  // under way at each worker
  std::vector<bool> asked_;                                         // worker by worker: its report is on its way
  std::unordered_map<uint64_t, std::vector<uint64_t>> beginnings_;  // the blocks of SimulatedRequest::beginning
  std::vector<double> latencies_, ttfts_;
  std::vector<int64_t> chosen_;
  double cached_ = 0, predicted_ = 0, prompts_ = 0;  // tokens
  double apart_ = 0, work_apart_ = 0;                // summed over choices
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
