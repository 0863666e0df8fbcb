// What computing while rows are on their way to experts buys: two ranks on two hosts, over gloo with a delay added to
// each call, steps that prefill and steps that decode.
//
//   overlap_bench MODEL [--layers N] [--prompt N] [--batch N] [--steps N] [--delays MS MS ...]
//
// MODEL is a config.json; weights are random. Printed for each delay: the median of a step and of the ranks the time in
// which rows were on their way and how much of it was used, without overlap, with shared experts computed meanwhile,
// and with two halves of the batch.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <functional>
#include <thread>

#include "base/options.h"
#include "base/rng.h"
#include "models/batch_split.h"
#include "models/runner.h"
#include "parallel/latency.h"
#include "parallel/registry.h"

namespace {

using namespace sluice;

struct Options {
  int64_t layers, prompt, batch, steps;
  StringList delays;
};

const OptionTable<Options>& option_table() {
  constexpr OptionRange kCount{1, 1e6};
  static const OptionTable<Options> table({
      {.name = "layers", .field = &Options::layers, .value = int64_t{4}, .range = kCount, .help = "Layers."},
      {.name = "prompt", .field = &Options::prompt, .value = int64_t{256}, .range = kCount, .help = "Prompt tokens."},
      {.name = "batch",
       .field = &Options::batch,
       .value = int64_t{32},
       .range = kCount,
       .help = "Sequences of a rank."},
      {.name = "steps", .field = &Options::steps, .value = int64_t{15}, .range = kCount, .help = "Steps of each kind."},
      {.name = "delays",
       .field = &Options::delays,
       .value = StringList{"0", "1", "3"},
       .metavar = "MS",
       .help = "Delays of a call, one after another."},
  });
  return table;
}

void die(const std::string& message) {
  fmt::print(stderr, "{}\n", message);
  std::exit(1);
}

template <class T>
T or_die(Result<T> result) {
  if (!result.ok()) die(result.error().message);
  return std::move(result).value();
}

constexpr int kRanks = 2;
constexpr int32_t kWidth = 64;  // of what decodes

// Sequences of `tokens` new ones each, after `cached`. Each has a row of the slot table and a run of slots.
struct Work {
  Work(models::Runner& runner, int64_t sequences, int32_t tokens, int32_t cached) {
    Rng rng(1);
    const auto width = static_cast<int32_t>(runner.slot_table().size() / static_cast<size_t>(sequences));
    for (int32_t s = 0; s < sequences; ++s) {
      for (int32_t i = 0; i < cached + tokens; ++i) {
        const int32_t slot = 1 + s * width + i;
        runner.slot_table()[static_cast<size_t>(s * width + i)] = slot;
        if (i < cached) continue;
        ids.push_back(static_cast<int32_t>(rng.below(40'000)));
        positions.push_back(i);
        slots.push_back(slot);
      }
      starts.push_back(static_cast<int32_t>(ids.size()));
      lens.push_back(cached + tokens);
      rows.push_back(s);
      wanted.push_back(starts.back() - 1);
    }
  }
  std::vector<int32_t> ids, positions, slots, starts{0}, lens, rows, wanted;
};

struct Measured {
  std::vector<double> steps;  // ms
  double away = 0, covered = 0;
};

enum class Way { kNone, kShared, kHalves };
constexpr std::array<std::pair<Way, std::string_view>, 3> kWays = {
    {{Way::kNone, "nothing overlaps"}, {Way::kShared, "shared experts"}, {Way::kHalves, "two batches"}}};

// One rank's thread: `measure` gets what runs a step.
void rank_main(const std::string& model, const Options& options, Way way, int64_t sequences, int32_t tokens,
               int32_t cached, parallel::Communicator& world, Measured& measured) {
  const parallel::Layout layout{.tp_rank = world.rank(),
                                .tp_size = kRanks,
                                .dp_size = kRanks,
                                .ep_size = kRanks,
                                .a2a = parallel::MoeAllToAll::kDeepEp,
                                .dense_data_parallel = true,
                                .dp_lm_head = true};
  const auto groups = or_die(parallel::make_groups(world, layout));
  std::unique_ptr<parallel::Overlap> overlap;
  if (way != Way::kNone) overlap = or_die(parallel::Overlap::make(world, layout));
  const auto runner =
      or_die(models::load_runner({.model_path = model,
                                  .max_step_tokens = sequences * tokens,
                                  .max_step_seqs = sequences,
                                  .config_override = fmt::format(R"({{"num_hidden_layers": {}}})", options.layers),
                                  .dummy_weights = true,
                                  .groups = &groups,
                                  .overlap = overlap.get()},
                                 [&](double, std::string_view) { world.progress({.phase = parallel::Phase::kLoad}); }));
  const int32_t width = std::max(kWidth, cached + tokens);
  if (const auto kv = runner->allocate_kv(
          {.slots = 1 + sequences * width, .table_rows = static_cast<int32_t>(sequences), .table_width = width});
      !kv.ok()) {
    die(kv.error().message);
  }
  const Work work(*runner, sequences, tokens, cached);
  models::StepBatch batch{.token_ids = work.ids,
                          .positions = work.positions,
                          .kv_slots = work.slots,
                          .query_start = work.starts,
                          .seq_lens = work.lens,
                          .table_rows = work.rows,
                          .logit_rows = work.wanted,
                          .extend = tokens > 1};
  const std::vector<int64_t> group_tokens(kRanks, std::ssize(work.ids)), group_logits(kRanks, sequences);
  batch.group_tokens = group_tokens;
  batch.group_logits = group_logits;
  const std::vector<int64_t> first(kRanks, models::split_batch(batch, 0.48));
  if (way == Way::kHalves) batch.first_half = first;
  parallel::Turns::Times before;
  for (int64_t step = -2; step < options.steps; ++step) {  // the first two warm up
    if (step == 0 && overlap) before = overlap->turns().times();
    if (const auto met = world.barrier(); !met.ok()) die(met.error().message);
    const auto begin = std::chrono::steady_clock::now();
    or_die(runner->forward(batch));
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    if (step >= 0) measured.steps.push_back(took.count());
  }
  if (!overlap) return;
  measured.away = seconds(overlap->turns().times().away - before.away);
  measured.covered = seconds(overlap->turns().times().covered - before.covered);
}

Measured measure(const std::string& model, const Options& options, Way way, Duration delay, bool prefill) {
  const auto row = std::ranges::find(parallel::communicators(), "gloo", &parallel::CommunicatorRow::name);
  auto made = or_die(row->make_group(kRanks, {.silence_limit = std::chrono::seconds(60)}));
  std::array<Measured, kRanks> measured;
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kRanks; ++i) {
    made[i] = parallel::add_latency(std::move(made[i]), {.latency = delay});
    threads.emplace_back([&, i] {
      const int64_t sequences = prefill ? 1 : options.batch;
      const auto tokens = static_cast<int32_t>(prefill ? options.prompt : 1);
      rank_main(model, options, way, sequences, tokens, prefill ? 0 : kWidth - 1, *made[i], measured[i]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  Measured all = measured[0];
  all.away += measured[1].away;
  all.covered += measured[1].covered;
  return all;
}

void run(const std::string& model, const Options& options) {
  fmt::print("two ranks with a thread each, {} layers, prompts of {}, {} sequences that decode, {} steps\n",
             options.layers, options.prompt, options.batch, options.steps);
  for (const std::string& text : options.delays) {
    double ms = 0;
    const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), ms);
    if (problem != std::errc() || end != text.data() + text.size() || ms < 0) die("--delays: " + text + " is none");
    for (const bool prefill : {true, false}) {
      for (const auto& [way, name] : kWays) {
        Measured got = measure(model, options, way, from_seconds(ms / 1000), prefill);
        std::ranges::sort(got.steps);
        fmt::print("{:>4} ms  {:<8} {:<17} {:>7.1f} ms a step ({:.1f} to {:.1f})", text, prefill ? "prefill" : "decode",
                   name, got.steps[got.steps.size() / 2], got.steps.front(), got.steps.back());
        if (got.away > 0)
          fmt::print("  {:>6.3f} s on their way, {:.0f} % used", got.away, 100 * got.covered / got.away);
        fmt::print("\n");
        std::fflush(stdout);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) die("usage: overlap_bench MODEL [options]\n" + option_table().help());
  const auto options = option_table().parse({argv + 2, argv + argc});
  if (!options.ok()) die(options.error().message);
  run(argv[1], *options);
  return 0;
}
