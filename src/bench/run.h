// One run of `sluice bench`, from its options to its report.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "bench/driver.h"
#include "bench/options.h"
#include "bench/report.h"
#include "tokenizer/tokenizer.h"

namespace sluice::bench {

struct RunInput {
  BenchOptions options;
  std::shared_ptr<const tokenizer::Tokenizer> tokenizer;  // may be null
  std::string authorization;                              // value of that header; empty = none
  // A line for people: what happens next. May be empty.
  std::function<void(std::string_view line)> say;
  // Called now and then while requests are under way. May be empty.
  std::function<void(const Progress&)> on_progress;
  // Likewise, and in the warm-up too: true ends the run. May be empty.
  std::function<bool()> interrupted;
};

struct RunResult {
  Report report;
  std::vector<Outcome> outcomes;
  bool interrupted = false;
  size_t cut_off = 0;  // requests that were under way then
};

// Errors: a bad option, a data set that cannot be read, a server that cannot be asked for its model, a warm-up of which
// nothing succeeded or that was interrupted. Failed requests of the run itself are in the result.
Result<RunResult> run_bench(const RunInput& input);

}  // namespace sluice::bench
