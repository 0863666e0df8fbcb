#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/stop_signals.h"
#include "bench/options.h"
#include "bench/progress.h"
#include "bench/run.h"
#include "cli/commands.h"
#if SLUICE_ENGINE
#include "engine/tokenizer_files.h"
#else
#include "tokenizer/files.h"
#endif

namespace sluice::cli {
namespace {

using bench::BenchOptions;
using TokenizerPtr = std::shared_ptr<const tokenizer::Tokenizer>;

#if SLUICE_ENGINE
namespace files = engine;  // which reads .gguf files too
#else
namespace files = tokenizer;
#endif

Result<TokenizerPtr> load_tokenizer(const BenchOptions& options) {
  if (!options.tokenizer) return TokenizerPtr();
  auto loaded = files::load_tokenizer(*options.tokenizer);
  if (!loaded.ok()) return Error{ErrorCode::kBadOption, fmt::format("--tokenizer: {}", loaded.error().message)};
  return loaded;
}

// The key of the server, from where bench_serving takes it.
std::string authorization() {
  if (const char* key = std::getenv("OPENAI_API_KEY"); key && *key) return fmt::format("Bearer {}", key);
  if (const char* key = std::getenv("API_KEY"); key && *key) return key;
  return {};
}

size_t terminal_width() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col - 1u : 79;
}

void print(std::FILE* to, std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), to);
  std::fflush(to);
}

Result<void> append_results(std::ofstream& file, const std::string& path, const bench::RunResult& result,
                            bool details) {
  auto json = bench::json_of(result.report);
  if (details) bench::add_details(json, result.outcomes);
  file << json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << '\n';
  if (!file.flush()) return Error{ErrorCode::kInternal, fmt::format("--output-file: cannot write to {}", path)};
  return {};
}

}  // namespace

OptionView bench_options() { return view_of(bench::bench_option_table()); }

int run_bench(const Arguments& arguments) {
  const auto options = bench::bench_option_table().parse(arguments);
  if (!options.ok()) return fail(options.error());
  StopSignals signals;  // before the first thread
  auto tokenizer = load_tokenizer(*options);
  if (!tokenizer.ok()) return fail(tokenizer.error());

  std::ofstream file;  // before the load: its results are not to be lost
  if (options->output_file) {
    file.open(*options->output_file, std::ios::app);
    if (!file)
      return fail({ErrorCode::kBadOption, fmt::format("--output-file: cannot write to {}", *options->output_file)});
  }

  const bool bar = !options->disable_tqdm && isatty(STDERR_FILENO) != 0;
  bench::RunInput input{.options = *options, .tokenizer = *tokenizer, .authorization = authorization()};
  input.say = [](std::string_view text) { print(stdout, fmt::format("{}\n", text)); };
  input.interrupted = [&] { return signals.wait(Duration::zero()).has_value(); };
  if (bar) {
    input.on_progress = [](const bench::Progress& progress) {
      print(stderr, fmt::format("\r\x1b[K{}", bench::progress_line(progress, terminal_width())));
    };
  }
  const auto result = bench::run_bench(input);
  if (bar) print(stderr, "\r\x1b[K");
  if (!result.ok()) return fail(result.error());
  if (result->interrupted) {
    print(stdout, fmt::format("Interrupted: {} requests were under way; the figures are of those that had ended.\n",
                              result->cut_off));
  }
  print(stdout, "\n" + bench::table_of(result->report));
  if (options->output_file) {
    const auto written = append_results(file, *options->output_file, *result, options->output_details);
    if (!written.ok()) return fail(written.error());
  }
  return result->report.summary.completed > 0 ? 0 : 1;
}

}  // namespace sluice::cli
