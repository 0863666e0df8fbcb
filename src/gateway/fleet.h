// The workers. Readers take an immutable snapshot of the list; what changes per worker (health, load, breaker) is
// atomic in the worker itself.
#pragma once

#include <atomic>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "gateway/breaker.h"
#include "gateway/load.h"
#include "gateway/process_mark.h"
#include "gateway/request_limit.h"
#include "gateway/roster.h"
#include "gateway/worker_rules.h"
#include "net/http.h"
#include "obs/metrics.h"

namespace sluice::gateway {

// Metric series of one worker, resolved when it is added.
struct WorkerSeries {
  obs::Counter prompt_tokens, cached_tokens, predicted_tokens;
  obs::Counter breaker_success, breaker_failure;
  obs::Counter backend_errors, timeouts;
  obs::Counter aborts_client, aborts_worker, aborts_gateway;
};

// Which data-parallel rank of an engine a worker is, under --dp-aware.
struct DpRank {
  int64_t rank = -1;  // -1: all of the engine
  int64_t size = 1;   // ranks of the engine
};

struct Worker {
  // `of_the_fleet` counts up when the list of models of one of its workers changes.
  Worker(std::string worker_id, uint32_t worker_number, std::shared_ptr<WorkerLoad> its_load, net::Url worker_address,
         DpRank which, std::string key, const WorkerSeries& its_series, BreakerRules rules, const Clock& clock,
         std::shared_ptr<std::atomic<uint64_t>> of_the_fleet)
      : number(worker_number),
        load(std::move(its_load)),
        breaker(rules, clock, &load->breaker),
        id(std::move(worker_id)),
        url(url_of(worker_address, which)),
        address(std::move(worker_address)),
        dp(which),
        series(its_series),
        fleet_version_(std::move(of_the_fleet)),
        keys_{std::move(key)},
        key_(&keys_.back()) {}

  static std::string url_of(const net::Url& address, DpRank which) {
    return which.rank < 0 ? address.to_string() : fmt::format("{}@{}", address.to_string(), which.rank);
  }

  const uint32_t number;
  const std::shared_ptr<WorkerLoad> load;  // constant after construction
  // What choices ask of it stands with the load.
  std::atomic<bool>& healthy = load->healthy;
  std::atomic<bool>& draining = load->draining;
  std::atomic<int64_t>& busy_until = load->busy_until;
  std::atomic<bool>& suspect = load->suspect;  // written by gateway/liveness
  RequestLimit limit{load->most_requests};
  Breaker breaker;

  // Constant after construction; the counters of `series` move.
  const std::string id;    // UUID
  const std::string url;   // printed: the address, of a rank with @rank behind it
  const net::Url address;  // where its requests go, the engine's for all its ranks
  const DpRank dp;
  mutable WorkerSeries series;

  std::atomic<bool> proven{false};  // was healthy once
  std::atomic<bool> failed{false};  // was not ready within --worker-startup-timeout-secs
  std::atomic<uint32_t> generation{0};
  ProcessMark process;
  // Steady nanoseconds: when the health checks to come will have let it take work, if they pass; 0 = nobody checks.
  std::atomic<int64_t> checked_at{0};

  struct Info {
    std::string model_id = "unknown";      // the first that it serves
    std::vector<std::string> model_ids{};  // all of them
    bool models_are_given = false;         // by whoever added it: its own list does not count
    std::string source = "static";         // of its registration
    std::string models;                    // its /v1/models document; empty = not read
    int64_t priority = 50;
    double cost = 1.0;
    std::map<std::string, std::string> labels;
    WorkerRules rules;               // those of the options, and in their place ...
    WorkerRuleChanges rule_changes;  // ... what its registration says
  };
  Info info() const {
    std::lock_guard lock(mutex_);
    return info_;
  }
  // One field, without the copy.
  std::string info(std::string Info::*field) const {
    std::lock_guard lock(mutex_);
    return info_.*field;
  }
  // read(info), without the copy.
  template <class F>
  void read_info(F&& read) const {
    std::lock_guard lock(mutex_);
    read(info_);
  }
  template <class F>
  void change_info(F&& change) {
    std::lock_guard lock(mutex_);
    const auto models = info_.model_ids;
    change(info_);
    info_version_.fetch_add(1, std::memory_order_release);
    if (info_.model_ids != models) fleet_version_->fetch_add(1, std::memory_order_release);
  }
  // Changes with info(): a reader that keeps a part of it compares one number and takes no lock.
  uint32_t info_version() const { return info_version_.load(std::memory_order_acquire); }

  WorkerRules rules() const {
    std::lock_guard lock(mutex_);
    return info_.rules;
  }
  // Whether its registration says anything of that: asked for each request.
  bool has_own_rules() const { return has_own_rules_.load(std::memory_order_relaxed); }
  // Beside Context::change_rules() for one that nobody watches yet.
  void change_rules(const WorkerRuleChanges& changes) {
    change_info([&](Info& info) {
      for (const auto& [name, value] : changes) info.rule_changes[name] = value;
      apply(changes, info.rules);
    });
    breaker.set_rules(rules().breaker());
    if (!changes.empty()) has_own_rules_.store(true, std::memory_order_relaxed);
  }

  // What its requests carry; empty = nothing. Good as long as the worker is.
  const std::string& api_key() const { return *key_.load(std::memory_order_acquire); }
  void change_api_key(const std::string& key) {
    std::lock_guard lock(mutex_);
    if (key != keys_.back()) key_.store(&keys_.emplace_back(key), std::memory_order_release);
  }

  bool usable() const {
    return healthy.load(std::memory_order_relaxed) && !draining.load(std::memory_order_relaxed) && breaker.admits();
  }
  // The first choice are those of which this is true; where it is true of none, those that are usable().
  bool takes_work(TimePoint now) const { return load->takes_work(now) && breaker.admits(); }
  std::string_view status() const;

  // Why it is suspect, and since when.
  struct Suspicion {
    int64_t since_unix_nanos = 0;
    std::string why;
  };
  std::optional<Suspicion> suspicion() const {
    std::lock_guard lock(mutex_);
    return suspicion_;
  }
  void set_suspicion(std::optional<Suspicion> suspicion) {
    std::lock_guard lock(mutex_);
    suspicion_ = std::move(suspicion);
    suspect.store(suspicion_.has_value(), std::memory_order_relaxed);
  }

 private:
  const std::shared_ptr<std::atomic<uint64_t>> fleet_version_;
  std::atomic<uint32_t> info_version_{0};
  std::atomic<bool> has_own_rules_{false};
  mutable std::mutex mutex_;  // guards what follows
  Info info_;
  std::optional<Suspicion> suspicion_;
  std::deque<std::string> keys_;  // all it ever had: nobody says when the last reader of an old one is done
  std::atomic<const std::string*> key_;
};

// Any thread.
class Fleet {
 public:
  Fleet(BreakerRules rules, const Clock& clock) : rules_(rules), clock_(clock) {}

  // The worker of that address that is not draining, and whether it is new. `id`: of a new one, if it is a UUID that no
  // other has; else it gets one.
  std::pair<WorkerPtr, bool> add(net::Url address, const std::string& api_key, const WorkerSeries& series = {},
                                 const std::string& id = {});
  // One worker for each rank of the engine in the place of the one for all of it; the first one has its id. `series`
  // has one entry for each rank. Empty if the worker is there no longer.
  std::vector<WorkerPtr> expand(const Worker& engine, const std::vector<WorkerSeries>& series);
  void erase(const Worker& worker);
  // By id or URL, a draining one only if no other has that URL; null if there is none. The URL of an engine finds its
  // first rank.
  WorkerPtr find(const std::string& id_or_url) const;
  // All of the same engine as that worker, which is among them: those that leave where it does, else those that stay.
  WorkerList engine_of(const Worker& worker) const;

  std::shared_ptr<const WorkerList> snapshot() const;
  // Those that serve `model` (empty: all), of one data-parallel rank if that is given; null if nobody serves the model.
  std::shared_ptr<const Roster> roster(std::string_view model, std::optional<int64_t> rank) const;
  // Changes whenever snapshot() and roster() do: a reader that keeps a copy compares one number and takes no lock.
  uint64_t version() const { return version_->load(std::memory_order_acquire); }

 private:
  void publish(WorkerList list);
  void sort_by_model() const;

  const BreakerRules rules_;
  const Clock& clock_;
  const std::shared_ptr<std::atomic<uint64_t>> version_ = std::make_shared<std::atomic<uint64_t>>(1);
  mutable std::mutex mutex_;  // guards what follows
  std::shared_ptr<const WorkerList> list_ = std::make_shared<WorkerList>();
  uint32_t next_number_ = 0;
  LoadSlab loads_;
  const std::shared_ptr<const Roster> nobody_ = std::make_shared<const Roster>(WorkerList{}, TimePoint{});
  // Of the version of rosters_version_.
  struct OfModel {
    WorkerList workers;
    std::map<std::optional<int64_t>, std::shared_ptr<const Roster>> rosters;  // by rank; those that were asked for
  };
  mutable std::map<std::string, OfModel, std::less<>> by_model_;
  mutable uint64_t rosters_version_ = 0;
};

// A random UUID, version 4.
std::string make_uuid();

}  // namespace sluice::gateway
