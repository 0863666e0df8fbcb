// Measures a choice (gateway/selection) among 4 to 10,000 workers for each policy that does not look at all of them,
// with what a request does for it besides: the look-up of its prefix before, and the moves of its lease in the order by
// load. Also what weighing all of up to 64 workers for the record costs, which a loop does 1,000 times a second at
// most. docs/results/selection.md has the numbers.
//
// usage: selection_bench [--choices N] [--workers N]... [policy...]
//   200,000 choices, fleets of 4, 64, 512 and 10,000, all five policies, unless said otherwise
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "gateway/fleet.h"
#include "gateway/selection.h"

namespace sluice::gateway {
namespace {

constexpr size_t kGroups = 64;
constexpr size_t kSharedBytes = 2048;
constexpr size_t kOwnBytes = 256;

// Nanoseconds of one thing, seen many times.
struct Times {
  std::vector<double> all;

  double quantile(double share) {
    const auto at = all.begin() + static_cast<ptrdiff_t>(share * static_cast<double>(all.size() - 1));
    std::nth_element(all.begin(), at, all.end());
    return *at;
  }
  // Without the slowest hundredth, in which another program had the processor.
  double mean() {
    const double most = quantile(0.99);
    double sum = 0, count = 0;
    for (const double value : all) {
      if (value > most) continue;
      sum += value;
      ++count;
    }
    return sum / count;
  }
};

class Selection {
 public:
  Selection(std::string_view policy, size_t workers, size_t choices) : choices_(choices) {
    GatewayOptions options = gateway_option_table().defaults();
    options.policy = policy;
    policy_ = make_policy(options);
    for (size_t i = 0; i < workers; ++i) {
      const auto url = net::parse_url(fmt::format("http://10.{}.{}.{}:30000", i >> 16, i >> 8 & 255, i & 255));
      const WorkerPtr worker = fleet_.add(url.value(), "").first;
      worker->healthy = true;
    }
    for (size_t i = 0; i < kGroups; ++i) shared_.push_back(letters(kSharedBytes));
  }

  void run() {
    // As many requests are under way as there are two for each worker.
    const size_t under_way = 2 * fleet_.snapshot()->size();
    for (size_t i = 0; i < under_way; ++i) {
      next_text();
      choose(/*timed=*/false);
    }
    for (size_t i = 0; i < choices_; ++i) {
      // As an exchange does when the head of the answer is there.
      leases_.front().expect_end();
      next_text();
      const auto begun = now();
      leases_.pop_front();
      const double ended = since(begun);
      choose(/*timed=*/true);
      upkeep_.all.back() += ended;
    }
  }
  Times choice_, upkeep_, weighing_;

 private:
  using SteadyClock = std::chrono::steady_clock;
  static SteadyClock::time_point now() { return SteadyClock::now(); }
  static double since(SteadyClock::time_point begun) {
    return std::chrono::duration<double, std::nano>(now() - begun).count();
  }

  std::string letters(size_t count) {
    std::string text;
    for (size_t i = 0; i < count; ++i) text += static_cast<char>('a' + rng_.below(26));
    return text;
  }

  void next_text() { text_ = shared_[rng_.below(kGroups)] + letters(kOwnBytes); }

  void choose(bool timed) {
    const std::string& text = text_;
    const auto begun = now();
    if (version_ != fleet_.version()) {
      version_ = fleet_.version();
      roster_ = fleet_.roster({}, std::nullopt);
    }
    const auto tokens = static_cast<int64_t>(text.size() / 4);
    RequestFacts facts{.routing_text = text, .prompt_tokens = tokens, .now = clock_.now(), .prefix = {}};
    if (policy_->needs_prefix()) facts.prefix = index_.match(text);
    const auto choice = select_worker(*roster_, *policy_, facts, {}, nullptr, scratch_, rng_);
    const WorkerPtr& worker = roster_->worker(*choice->worker);
    const double chosen = since(begun);
    const auto weighs = now();
    std::vector<obs::RequestRecord::Score> scores;
    weigh_all(*roster_, *policy_, facts, {}, scores);
    const double weighed = since(weighs);
    if (choice->insert_prefix) index_.insert(text, worker->number);
    const auto leased = now();
    const Work work{.prompt_tokens = tokens, .new_tokens = 128, .matched_share = choice->match_rate};
    leases_.emplace_back(worker->load, work, clock_);
    const double took = since(leased);
    if (!timed) return;
    choice_.all.push_back(chosen);
    upkeep_.all.push_back(took);
    weighing_.all.push_back(weighed);
  }

  const size_t choices_;
  const Clock& clock_ = real_clock();
  Fleet fleet_{{}, clock_};
  routing::PrefixIndex index_{{}};
  std::unique_ptr<Policy> policy_;
  Rng rng_{1};
  std::vector<std::string> shared_;
  std::string text_;
  uint64_t version_ = 0;
  std::shared_ptr<const Roster> roster_;
  ChoiceScratch scratch_;
  std::deque<WorkerLease> leases_;
};

void measure(const std::string& policy, size_t choices, const std::vector<size_t>& sizes) {
  double of_first = 0;
  for (const size_t workers : sizes) {
    Selection selection(policy, workers, choices);
    selection.run();
    Times &choice = selection.choice_, &upkeep = selection.upkeep_;
    const double both = choice.mean() + upkeep.mean();
    if (workers == sizes.front()) of_first = both;
    fmt::print("| `{}` | {} | {:.2f} | {:.2f} | {:.2f} | {:.2f} | {:.2f} | {:.1f} | {} |\n", policy, workers,
               choice.mean() / 1000, choice.quantile(0.5) / 1000, choice.quantile(0.99) / 1000, upkeep.mean() / 1000,
               both / 1000, both / of_first,
               workers <= kMostWeighed ? fmt::format("{:.2f}", selection.weighing_.mean() / 1000) : "");
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace sluice::gateway

int main(int argc, char** argv) {
  size_t choices = 200'000;
  std::vector<size_t> sizes;
  std::vector<std::string> policies;
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--choices" && i + 1 < argc) {
      choices = std::strtoul(argv[++i], nullptr, 10);
    } else if (std::string_view(argv[i]) == "--workers" && i + 1 < argc) {
      sizes.push_back(std::max<size_t>(std::strtoul(argv[++i], nullptr, 10), 1));
    } else {
      policies.emplace_back(argv[i]);
    }
  }
  if (policies.empty()) policies = {"round_robin", "random", "power_of_two", "cache_aware", "min_cost"};
  if (sizes.empty()) sizes = {4, 64, 512, 10'000};
  fmt::print(
      "| policy | workers | choice µs | p50 | p99 | lease µs | both µs | both / of the first "
      "| scores µs |\n|---|---|---|---|---|---|---|---|---|\n");
  for (const std::string& policy : policies) {
    if (sluice::gateway::find_policy(policy) == nullptr) {
      fmt::print(stderr, "selection_bench: no policy {}\n", policy);
      return 2;
    }
    sluice::gateway::measure(policy, std::max<size_t>(choices, 1000), sizes);
  }
}
