// Tokens per second of the engine's forward pass: prefill and decode at several batch sizes, without scheduler or HTTP.
//
//   engine_bench MODEL [--threads N] [--repeats N] [--prompt N] [--steps N] [--dtype T] [--batches N N ...]
//                [--load-format dummy] [--json-model-override-args JSON] [--kernels]
//
// Each repeat prefills `batch` prompts in one step and then decodes `steps` tokens of each, greedily. Printed: the
// median of the repeats and their range by the clock on the wall, and the median by CPU time, which another program on
// the machine disturbs less (with one thread both mean the same). With --kernels then the share of each kernel, and
// what it reads and multiplies; and of all matrix products the share of what the machine does at best.
// bench/engine/llama_cpp_bench.py does the same with llama.cpp.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <ctime>
#include <numeric>
#include <optional>
#include <span>
#include <utility>

#include "base/options.h"
#include "base/rng.h"
#include "bench/kernels/machine.h"
#include "models/locate.h"
#include "models/runner.h"

namespace {

using sluice::models::Runner;

struct Options {
  int64_t threads, repeats, prompt, steps;
  std::string dtype, load_format;
  std::optional<std::string> overrides;
  sluice::StringList batches;
  bool kernels;
};

const sluice::OptionTable<Options>& option_table() {
  constexpr sluice::OptionRange kCount{1, 1e6};
  static const sluice::OptionTable<Options> table({
      {.name = "threads", .field = &Options::threads, .value = int64_t{1}, .range = kCount, .help = "Threads."},
      {.name = "repeats", .field = &Options::repeats, .value = int64_t{5}, .range = kCount, .help = "Repeats."},
      {.name = "prompt",
       .field = &Options::prompt,
       .value = int64_t{256},
       .range = kCount,
       .help = "Tokens of a prompt."},
      {.name = "steps", .field = &Options::steps, .value = int64_t{32}, .range = kCount, .help = "Tokens to decode."},
      {.name = "dtype",
       .field = &Options::dtype,
       .value = std::string("auto"),
       .metavar = "TYPE",
       .help = "As that of the server."},
      {.name = "load-format",
       .field = &Options::load_format,
       .value = std::string("auto"),
       .choices = {"auto", "dummy"},
       .help = "As that of the server."},
      {.name = "json-model-override-args",
       .field = &Options::overrides,
       .value = std::optional<std::string>(),
       .metavar = "JSON",
       .help = "As that of the server."},
      {.name = "kernels", .field = &Options::kernels, .value = false, .help = "What each kernel takes."},
      {.name = "batches",
       .field = &Options::batches,
       .value = sluice::StringList{"1", "4", "16"},
       .metavar = "N",
       .help = "Sizes of the batches, one after another."},
  });
  return table;
}

struct Seconds {
  double wall = 0;
  double cpu = 0;
};

class Stopwatch {
 public:
  Seconds elapsed() const { return {wall_now() - wall_, cpu_now() - cpu_}; }

 private:
  static double wall_now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
  static double cpu_now() {
    timespec time{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
  }

  double wall_ = wall_now();
  double cpu_ = cpu_now();
};

void die(const std::string& message) {
  fmt::print(stderr, "{}\n", message);
  std::exit(1);
}

// The place of the largest, by lanes that the compiler takes at once.
int32_t largest(std::span<const float> row) {
  constexpr size_t kLanes = 32;
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, row[0]);
  for (size_t i = 0; i + kLanes <= row.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = std::max(lanes[lane], row[i + lane]);
  }
  float top = *std::max_element(lanes, lanes + kLanes);
  for (size_t i = row.size() / kLanes * kLanes; i < row.size(); ++i) top = std::max(top, row[i]);
  return static_cast<int32_t>(std::find(row.begin(), row.end(), top) - row.begin());
}

// Sequences side by side, each in its own row of the slot table and its own run of slots.
class Batch {
 public:
  Batch(Runner& runner, int sequences, int width) : runner_(runner), sequences_(sequences), width_(width) {
    for (int row = 0; row < sequences; ++row) {
      for (int p = 0; p < width; ++p) runner.slot_table()[static_cast<size_t>(row * width + p)] = slot(row, p);
    }
  }

  // Appends `count` tokens to each sequence and returns the greedy next ones.
  std::vector<int32_t> step(const std::vector<int32_t>& tokens, int count) {
    std::vector<int32_t> positions, slots, starts{0}, lens, rows, wanted;
    for (int s = 0; s < sequences_; ++s) {
      for (int i = 0; i < count; ++i) {
        positions.push_back(length_ + i);
        slots.push_back(slot(s, length_ + i));
      }
      starts.push_back((s + 1) * count);
      lens.push_back(length_ + count);
      rows.push_back(s);
      wanted.push_back((s + 1) * count - 1);
    }
    length_ += count;
    const auto logits = runner_.forward({.token_ids = tokens,
                                         .positions = positions,
                                         .kv_slots = slots,
                                         .query_start = starts,
                                         .seq_lens = lens,
                                         .table_rows = rows,
                                         .logit_rows = wanted});
    if (!logits.ok()) die(logits.error().message);
    std::vector<int32_t> next;
    const auto vocab = static_cast<size_t>(runner_.info().vocab_size);
    for (size_t s = 0; s < static_cast<size_t>(sequences_); ++s) {
      const auto row = logits->subspan(s * vocab, vocab);
      next.push_back(largest(row));
    }
    return next;
  }

 private:
  int32_t slot(int row, int position) const { return 1 + row * width_ + position; }

  Runner& runner_;
  const int sequences_, width_;
  int32_t length_ = 0;
};

void report(const char* what, int batch, double tokens, std::vector<Seconds> times) {
  const auto median = [&](auto field) {
    std::sort(times.begin(), times.end(), [&](const Seconds& a, const Seconds& b) { return a.*field < b.*field; });
    return times[times.size() / 2].*field;
  };
  const double cpu = median(&Seconds::cpu);
  const double wall = median(&Seconds::wall);  // sorted by it now
  fmt::print("{:<8} batch {:>2}  {:>8.1f} tokens/s ({:.1f} to {:.1f})  {:>8.1f} tokens per CPU second\n", what, batch,
             tokens / wall, tokens / times.back().wall, tokens / times.front().wall, tokens / cpu);
  std::fflush(stdout);
}

// Of one part of a repeat, `steps` steps that took `seconds`.
void report_kernels(const char* what, const sluice::kernels::KernelTimes& times, const sluice::bench::Machine& machine,
                    double seconds, int steps) {
  if (times.empty()) return;
  sluice::kernels::KernelTime products;
  std::vector<std::pair<std::string, sluice::kernels::KernelTime>> rows(times.begin(), times.end());
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  double rest = seconds;
  fmt::print("{}, a step of {:.3f} ms{:>21}{:>10}{:>8}{:>9}{:>9}\n", what, seconds / steps * 1e3, "calls", "us each",
             "share", "GB/s", "GFLOP/s");
  for (const auto& [name, time] : rows) {
    rest -= time.seconds;
    if (name.find("linear ") != std::string::npos) {
      products.seconds += time.seconds;
      products.bytes += time.bytes;
      products.operations += time.operations;
    }
    fmt::print("  {:<38}{:>6}{:>10.1f}{:>7.1f}%{:>9.1f}{:>9.0f}\n", name, time.calls / steps,
               time.seconds / static_cast<double>(time.calls) * 1e6, 100 * time.seconds / seconds,
               time.bytes / time.seconds * 1e-9, time.operations / time.seconds * 1e-9);
  }
  fmt::print("  {:<38}{:>23.1f}%\n", "between kernels", 100 * rest / seconds);
  const auto share = [&](double done, double peak) { return peak > 0 ? 100 * done / products.seconds / peak : 0; };
  fmt::print("  products: {:.0f} % of reading, {:.0f} % of the peak of bf16, {:.0f} % of that of eight bits\n",
             share(products.bytes, machine.read), share(products.operations, machine.bf16),
             share(products.operations, machine.eight_bits));
}

std::vector<int> sizes_of(const sluice::StringList& words) {
  std::vector<int> sizes;
  for (const std::string& word : words) {
    int size = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), size);
    if (error != std::errc() || end != word.data() + word.size() || size < 1) die("--batches: " + word + " is no size");
    sizes.push_back(size);
  }
  if (sizes.empty()) die("--batches needs a size");
  return sizes;
}

void run(const std::string& model, const Options& options) {
  const int prompt_tokens = static_cast<int>(options.prompt), steps = static_cast<int>(options.steps);
  const int width = prompt_tokens + steps + 1;
  const std::vector<int> batches = sizes_of(options.batches);
  const int most = *std::max_element(batches.begin(), batches.end());
  const auto path = sluice::models::locate_model(model);
  if (!path.ok()) die(path.error().message);
  sluice::kernels::KernelTimes times;
  auto loaded = sluice::models::load_runner({.model_path = *path,
                                             .dtype = options.dtype,
                                             .threads = static_cast<int>(options.threads),
                                             .max_step_tokens = most * prompt_tokens,
                                             .max_step_seqs = most,
                                             .config_override = options.overrides.value_or(""),
                                             .dummy_weights = options.load_format == "dummy",
                                             .kernel_times = options.kernels ? &times : nullptr});
  if (!loaded.ok()) die(loaded.error().message);
  Runner& runner = **loaded;
  const auto allocated = runner.allocate_kv({.slots = 1 + most * width, .table_rows = most, .table_width = width});
  if (!allocated.ok()) die(allocated.error().message);
  fmt::print("{} threads, {} weights of {:.0f} MB, prompts of {}, {} steps, {} repeats\n", options.threads,
             runner.info().dtype, static_cast<double>(runner.info().weight_bytes) * 1e-6, options.prompt, options.steps,
             options.repeats);

  sluice::bench::Machine machine;
  if (options.kernels) {
    const int threads = static_cast<int>(options.threads);
    machine = sluice::bench::measure_machine(threads);
    fmt::print("{}\n", sluice::bench::to_string(machine, threads));
  }
  sluice::Rng rng(1);
  for (const int batch : batches) {
    std::vector<Seconds> prefill, decode;
    for (int repeat = -1; repeat < options.repeats; ++repeat) {  // the first one warms up
      std::vector<int32_t> prompt;
      const auto vocabulary = static_cast<uint64_t>(runner.info().vocab_size);
      for (int i = 0; i < batch * prompt_tokens; ++i) prompt.push_back(static_cast<int32_t>(rng.below(vocabulary)));
      Batch sequences(runner, batch, width);
      const Stopwatch prefilling;
      times.clear();
      auto next = sequences.step(prompt, prompt_tokens);
      const Seconds prefilled = prefilling.elapsed();
      const auto prefill_times = std::exchange(times, {});
      const Stopwatch decoding;
      for (int i = 0; i < steps; ++i) next = sequences.step(next, 1);
      if (repeat < 0) continue;
      prefill.push_back(prefilled);
      decode.push_back(decoding.elapsed());
      if (repeat + 1 < options.repeats) continue;
      report_kernels("prefill", prefill_times, machine, prefilled.wall, 1);
      report_kernels("decode", times, machine, decode.back().wall, steps);
    }
    report("prefill", batch, static_cast<double>(batch) * prompt_tokens, prefill);
    report("decode", batch, static_cast<double>(batch) * steps, decode);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) die("usage: engine_bench MODEL [options]\n" + option_table().help());
  const auto options = option_table().parse({argv + 2, argv + argc});
  if (!options.ok()) die(options.error().message);
  run(argv[1], *options);
  return 0;
}
