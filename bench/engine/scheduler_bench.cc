// What scheduling costs.
//
//   scheduler_bench                              the scheduler's own time per step, beside a model that takes none
//   scheduler_bench MODEL [--decoding N] [--prompt N] [--chunk N] [--gap X] [--dummy] [--context N]
//                                                gaps of those who decode while a long prompt is computed, prefill
//                                                first and in mixed steps; by what decoding alone takes, which is
//                                                measured before and after and taken as growing evenly between. Lost:
//                                                the share of the time of mixed steps beyond what the same tokens take
//                                                when prompt and decoding have their steps for themselves. Its p99 and
//                                                max: of steps of decoding alone, by their median
//   scheduler_bench --overlap [--step-us N]      what a device waits between steps, one after another and with the next
//                                                one planned ahead: a device that takes N microseconds for a step and
//                                                none of the processor's
//   scheduler_bench MODEL --overlap [--device D] [--threads N]   the same with a model
//
// With --overlap times are those of the wall. All others are CPU time of one thread, which other programs disturb
// little. Own time is plan, launch and commit of a step without the forward pass; its vocabulary of two leaves out
// sampling, which has a row of its own.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <memory>
#include <optional>
#include <thread>

#include "base/options.h"
#include "base/rng.h"
#include "engine/scheduler.h"
#include "models/locate.h"

namespace {

using namespace sluice;
using namespace sluice::engine;

struct Options {
  int64_t decoding, prompt, chunk, context, step_us, threads;
  double gap;
  bool dummy, only_mixed, overlap;
  std::string device;
};

const OptionTable<Options>& option_table() {
  constexpr OptionRange kCount{1, 1e6};
  static const OptionTable<Options> table({
      {.name = "decoding",
       .field = &Options::decoding,
       .value = int64_t{8},
       .range = kCount,
       .help = "Requests that decode."},
      {.name = "prompt",
       .field = &Options::prompt,
       .value = int64_t{4096},
       .range = kCount,
       .help = "Tokens of the long prompt."},
      {.name = "chunk",
       .field = &Options::chunk,
       .value = int64_t{512},
       .range = kCount,
       .help = "Prompt tokens of a step."},
      {.name = "context",
       .field = &Options::context,
       .value = int64_t{128},
       .range = kCount,
       .help = "Prompt tokens of each of those who decode."},
      {.name = "gap", .field = &Options::gap, .value = 3.0, .range = {1.1, 1000}, .help = "As --mixed-chunk-gap."},
      {.name = "dummy", .field = &Options::dummy, .help = "MODEL is a folder with a configuration: any weights."},
      {.name = "only-mixed", .field = &Options::only_mixed, .help = "Leave out prefill first."},
      {.name = "overlap",
       .field = &Options::overlap,
       .value = false,
       .help = "Compares steps one after another with the next one planned ahead."},
      {.name = "step-us",
       .field = &Options::step_us,
       .value = int64_t{2000},
       .range = kCount,
       .help = "Microseconds of a step of the device that is no processor."},
      {.name = "threads",
       .field = &Options::threads,
       .value = int64_t{2},
       .range = {1, 1024},
       .help = "Threads of a model, with --overlap."},
      {.name = "device",
       .field = &Options::device,
       .value = std::string("cpu"),
       .choices = {"cpu", "sim"},
       .help = "Of a model, with --overlap."},
  });
  return table;
}

void die(const std::string& message) {
  fmt::print(stderr, "{}\n", message);
  std::exit(1);
}

// What another program on the machine takes is left out.
double cpu_now() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

class CpuClock final : public Clock {
 public:
  TimePoint now() const override { return TimePoint(from_seconds(cpu_now())); }
  int64_t unix_nanos() const override { return 0; }
};

double quantile(std::vector<double> values, double q) {
  std::ranges::sort(values);
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
}

// Logits that are there already, or after a time in which nobody computes.
class NoModel final : public models::Runner {
 public:
  NoModel(int64_t vocab, int64_t context, Duration step = {})
      : logits_(static_cast<size_t>(vocab) * 1024, 0.f), step_(step) {
    info_.vocab_size = vocab;
    info_.context_length = context;
  }
  const models::ModelInfo& info() const override { return info_; }
  Result<void> allocate_kv(const models::KvPlan& plan) override {
    table_.assign(static_cast<size_t>(plan.table_rows) * static_cast<size_t>(plan.table_width), 0);
    return {};
  }
  std::span<int32_t> slot_table() override { return table_; }
  Result<std::span<const float>> forward(const models::StepBatch& batch) override {
    if (step_ > Duration{0}) std::this_thread::sleep_for(step_);
    return std::span<const float>(logits_).first(batch.logit_rows.size() * static_cast<size_t>(info_.vocab_size));
  }

 private:
  models::ModelInfo info_;
  std::vector<int32_t> table_;
  std::vector<float> logits_;
  const Duration step_;
};

std::vector<int32_t> draw_prompt(Rng& rng, int64_t n, int64_t vocab) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < n; ++i) tokens.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab))));
  return tokens;
}

GenerateRequest make_request(std::string rid, std::vector<int32_t> tokens, int64_t max_new) {
  GenerateRequest r{.rid = std::move(rid), .input_ids = std::move(tokens)};
  r.sampling.max_new_tokens = max_new;
  r.sampling.temperature = 0;
  r.sampling.ignore_eos = true;
  return r;
}

// ---- own time

struct Case {
  const char* what;
  int64_t waiting = 0;
  std::string_view policy = "fcfs";
  int64_t page_size = 1;
  bool events = false;
  bool mixed = false;
  int64_t vocab = 2;
};

constexpr int64_t kRunning = 64;
constexpr int64_t kPrompt = 1000;
constexpr int64_t kSteps = 2000;

void own_time(const Case& c) {
  constexpr int64_t kContext = 8192;
  const int64_t slots = 400'000 + c.page_size;
  NoModel model(c.vocab, kContext);
  if (!model.allocate_kv({.slots = slots, .table_rows = kRunning, .table_width = kContext}).ok()) die("no memory");
  Scheduler scheduler(
      {.kv_slots = slots,
       .page_size = c.page_size,
       .max_running_requests = kRunning,
       .chunked_prefill_size = 8192,
       .context_length = kContext,
       .policy = find_schedule_policy(c.policy),
       .radix = {.record_events = c.events},
       .mixed_chunk = c.mixed},
      model, [](int32_t) { return std::string_view(); }, real_clock());
  // Prompts share their first half.
  Rng rng(1);
  const auto head = draw_prompt(rng, kPrompt / 2, 2);
  const auto prompt = [&] {
    auto tokens = head;
    const auto tail = draw_prompt(rng, kPrompt / 2, 2);
    tokens.insert(tokens.end(), tail.begin(), tail.end());
    return tokens;
  };
  for (int64_t i = 0; i < kRunning + c.waiting; ++i) {
    scheduler.add(make_request(fmt::format("r{}", i), prompt(), kContext));
  }
  std::vector<double> prefill, decode;
  while (decode.size() < kSteps) {
    const double start = cpu_now();
    StepPlan plan = scheduler.plan();
    const auto kind = plan.kind;
    if (!scheduler.run(std::move(plan)).ok()) die("a step failed");
    (void)scheduler.take_outputs();
    (void)scheduler.take_kv_events();
    (kind == StepPlan::Kind::kDecode ? decode : prefill).push_back(cpu_now() - start);
  }
  fmt::print("{:<44} {:>6.0f} {:>6.0f} {:>6.0f}   {:>6.0f}\n", c.what, 1e6 * quantile(decode, 0.5),
             1e6 * quantile(decode, 0.99), 1e6 * quantile(decode, 1), 1e6 * quantile(prefill, 0.5));
}

// ---- gaps

// Returns the seconds of the prompt. `prompt_seconds`: those that it took in steps of its own, if that is known.
double gaps(const std::string& path, const Options& options, bool mixed, std::optional<double> prompt_seconds) {
  const auto located = models::locate_model(path);
  if (!located.ok()) die(located.error().message);
  auto loaded = models::load_runner({.model_path = *located,
                                     .max_step_tokens = options.chunk + options.decoding + 1,
                                     .max_step_seqs = options.decoding + 1,
                                     .context_length = std::max<int64_t>(options.prompt, options.context) + 65'536,
                                     .dummy_weights = options.dummy});
  if (!loaded.ok()) die(loaded.error().message);
  models::Runner& model = **loaded;
  // Those who decode must not run out of room before the prompt is computed.
  constexpr int64_t kOutput = 40'000;
  const int64_t width = std::max(options.prompt, options.context + kOutput) + 16;
  const int64_t slots = width + options.decoding * (options.context + kOutput);
  if (auto made = model.allocate_kv({.slots = slots,
                                     .table_rows = static_cast<int32_t>(options.decoding + 1),
                                     .table_width = static_cast<int32_t>(width)});
      !made.ok()) {
    die(made.error().message);
  }
  const CpuClock clock;
  Scheduler scheduler(
      {.kv_slots = slots,
       .max_running_requests = options.decoding + 1,
       .chunked_prefill_size = options.chunk,
       .context_length = width,
       .mixed_chunk = mixed,
       .mixed_chunk_gap = options.gap,
       .conservativeness = 0.1},
      model, [](int32_t) { return std::string_view(); }, clock);
  Rng rng(2);
  for (int64_t i = 0; i < options.decoding; ++i) {
    scheduler.add(
        make_request(fmt::format("r{}", i), draw_prompt(rng, options.context, model.info().vocab_size), kOutput));
  }
  const auto step = [&] {
    const double start = cpu_now();
    if (const auto done = scheduler.step(); !done.ok()) die(done.error().message);
    return cpu_now() - start;
  };
  // What the machine itself varies by, in steps that are all alike.
  std::vector<double> alone_by_median;
  const auto alone = [&] {
    std::vector<double> times;
    for (int i = 0; i < 300; ++i) times.push_back(step());
    const double median = quantile(times, 0.5);
    for (const double time : times) alone_by_median.push_back(time / median);
    return median;
  };
  while (scheduler.plan().kind != StepPlan::Kind::kDecode || scheduler.snapshot().num_waiting_reqs > 0) step();
  for (int i = 0; i < 20; ++i) step();
  const double before = alone();
  (void)scheduler.take_outputs();
  scheduler.add(make_request("long", draw_prompt(rng, options.prompt, model.info().vocab_size), 1));
  std::vector<double> gaps;
  double gap = 0, total = 0;
  for (bool ended = false; !ended;) {
    gap += step();
    bool decoded = false;
    for (const auto& out : scheduler.take_outputs()) {
      ended |= out.rid == "long";
      decoded |= out.rid == "r0";
    }
    if (!decoded && !ended) continue;
    gaps.push_back(gap);
    total += gap;
    gap = 0;
  }
  const double after = alone();
  std::vector<double> by_alone;
  double decoding_seconds = 0;
  for (size_t i = 0; i < gaps.size(); ++i) {
    const double usual = before + (after - before) * static_cast<double>(i) / static_cast<double>(gaps.size());
    by_alone.push_back(gaps[i] / usual);
    decoding_seconds += usual;
  }
  const auto late = std::ranges::count_if(by_alone, [&](double times) { return times > options.gap; });
  fmt::print(
      "{:<14} {:>7.2f} {:>7.2f} {:>8} {:>7.2f} {:>7.2f} {:>7.2f} {:>7} {:>8.1f} {:>8.0f} {:>8.0f} {:>7} {:>7.2f} "
      "{:>7.2f}\n",
      mixed ? "mixed" : "prefill first", 1e3 * before, 1e3 * after, gaps.size(), quantile(by_alone, 0.5),
      quantile(by_alone, 0.99), quantile(by_alone, 1), late, total, static_cast<double>(options.prompt) / total,
      static_cast<double>(options.prompt + std::ssize(gaps) * options.decoding) / total,
      prompt_seconds ? fmt::format("{:.0f} %", 100 * (1 - (*prompt_seconds + decoding_seconds) / total)) : "-",
      quantile(alone_by_median, 0.99), quantile(alone_by_median, 1));
  return total;
}

// ---- overlap

struct Decoded {
  double tokens_per_second = 0;
  std::vector<double> idle{};  // seconds between two decode steps
};

constexpr int64_t kOverlapContext = 1024;

Decoded decode(models::Runner& model, int64_t running, int64_t tokens, bool ahead) {
  ThreadDevice device;
  Scheduler scheduler(
      {.kv_slots = running * kOverlapContext + 2,
       .max_running_requests = running,
       .chunked_prefill_size = 512,
       .context_length = kOverlapContext},
      model, [](int32_t) { return std::string_view("ab"); }, real_clock(), ahead ? &device : nullptr);
  std::vector<StepReport> steps;
  scheduler.observe([&](const StepReport& step) {
    if (step.kind == StepPlan::Kind::kDecode && step.sequences == running) steps.push_back(step);
  });
  Rng rng(3);
  for (int64_t i = 0; i < running; ++i) {
    auto r = make_request(fmt::format("r{}", i), draw_prompt(rng, 16, model.info().vocab_size), tokens);
    r.sampling.stop = {"zz"};
    scheduler.add(std::move(r));
  }
  while (!scheduler.idle()) {
    if (const auto done = scheduler.step(); !done.ok()) die(done.error().message);
    (void)scheduler.take_outputs();
  }
  Decoded out;
  for (size_t i = 1; i < steps.size(); ++i) out.idle.push_back(seconds(steps[i].started - steps[i - 1].computed));
  out.tokens_per_second =
      static_cast<double>(running * std::ssize(steps)) / seconds(steps.back().computed - steps.front().started);
  return out;
}

// By turns, so that what else runs on the machine disturbs both.
void overlap(models::Runner& model, int64_t running, int64_t tokens) {
  constexpr int kRounds = 5;
  std::vector<double> rates[2], idle[2];
  for (int round = 0; round < 2 * kRounds; ++round) {
    const Decoded done = decode(model, running, tokens, round % 2 == 1);
    rates[round % 2].push_back(done.tokens_per_second);
    idle[round % 2].insert(idle[round % 2].end(), done.idle.begin(), done.idle.end());
  }
  for (const int ahead : {0, 1}) {
    fmt::print("{:>8} {:<14} {:>10.1f} {:>10.1f} {:>10.0f} {:>10.0f}\n", running,
               ahead ? "planned ahead" : "one by one", 1e6 * quantile(idle[ahead], 0.5),
               1e6 * quantile(idle[ahead], 0.9), quantile(rates[ahead], 0.5), quantile(rates[ahead], 1));
  }
}

void overlap(const std::string& path, const Options& options) {
  constexpr int64_t kMost = 64;
  std::unique_ptr<models::Runner> model;
  if (path.empty()) {
    model = std::make_unique<NoModel>(2, kOverlapContext, std::chrono::microseconds(options.step_us));
  } else {
    const auto located = models::locate_model(path);
    if (!located.ok()) die(located.error().message);
    auto loaded = models::load_runner({.model_path = *located,
                                       .device = options.device,
                                       .threads = static_cast<int>(options.threads),
                                       .max_step_tokens = 512,
                                       .max_step_seqs = kMost});
    if (!loaded.ok()) die(loaded.error().message);
    model = std::move(*loaded);
  }
  if (auto made = model->allocate_kv({.slots = kMost * kOverlapContext + 2,
                                      .table_rows = static_cast<int32_t>(kMost),
                                      .table_width = static_cast<int32_t>(kOverlapContext)});
      !made.ok()) {
    die(made.error().message);
  }
  fmt::print("{:>8} {:<14} {:>10} {:>10} {:>10} {:>10}\n", "running", "steps", "idle us", "90 %", "tokens/s", "best");
  for (const int64_t running : {int64_t{1}, int64_t{16}, kMost}) overlap(*model, running, path.empty() ? 200 : 48);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  std::string path;
  if (!arguments.empty() && !arguments[0].starts_with("--")) {
    path = arguments[0];
    arguments.erase(arguments.begin());
  }
  const auto options = option_table().parse(arguments, true);
  if (!options.ok()) die(options.error().message);
  if (options->overlap) {
    overlap(path, *options);
    return 0;
  }
  if (!path.empty()) {
    fmt::print("{} decoding, a prompt of {}, chunks of {}\n", options->decoding, options->prompt, options->chunk);
    fmt::print("{:<14} {:>7} {:>7} {:>8} {:>7} {:>7} {:>7} {:>7} {:>8} {:>8} {:>8} {:>7} {:>7} {:>7}\n", "", "alone",
               "then ms", "gaps", "median", "p99", "max", "beyond", "s", "prompt/s", "tokens/s", "lost", "its p99",
               "its max");
    std::fflush(stdout);
    std::optional<double> prompt_seconds;
    if (!options->only_mixed) prompt_seconds = gaps(path, *options, /*mixed=*/false, {});
    std::fflush(stdout);
    gaps(path, *options, /*mixed=*/true, prompt_seconds);
    return 0;
  }
  fmt::print("microseconds of CPU time per step, {} running, prompts of {}\n{:<44} {:>6} {:>6} {:>6}   {:>6}\n",
             kRunning, kPrompt, "", "decode", "p99", "max", "prefill");
  for (const Case& c : {Case{.what = "fcfs"}, Case{.what = "fcfs, 1000 wait", .waiting = 1000},
                        Case{.what = "lpm, 100 wait", .waiting = 100, .policy = "lpm"},
                        Case{.what = "dfs-weight, 1000 wait", .waiting = 1000, .policy = "dfs-weight"},
                        Case{.what = "mixed steps, 1000 wait", .waiting = 1000, .mixed = true},
                        Case{.what = "pages of 16", .page_size = 16},
                        Case{.what = "pages of 16, KV events", .page_size = 16, .events = true},
                        Case{.what = "pages of 1, KV events", .events = true},
                        Case{.what = "with greedy sampling of 49,152 tokens", .vocab = 49'152}}) {
    own_time(c);
  }
}
