// Structured log: SLUICE_LOG(info, "gateway/health", "worker {} is ready", url). Lines are text or JSON (--log-json),
// with UTC time, level and the component; spdlog writes them. The _EVERY form prints at most once per period at each
// call site and says how many lines it held back.
#pragma once

#include <fmt/format.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace sluice::log {

enum class Level { debug, info, warn, error };

struct Options {
  std::string level = "info";  // debug, info, warn, error
  bool json = false;
  std::string dir;  // additionally a daily file in this folder; empty = none
};

// Once, at start; before it, lines go to stderr at info level. Any thread may log.
Result<void> init(const Options& options);
// Where the lines go instead of stderr, without their end; an empty function takes it back. The function does not log.
void redirect(std::function<void(std::string_view)> to);
bool enabled(Level level);
void write(Level level, std::string_view component, std::string_view message);

// Decides for one call site whether a line is due. Any thread.
class RateLimit {
 public:
  // True if `period_nanos` have passed since the last true answer; `held_back` is then the number of false ones since.
  bool due(int64_t now_nanos, int64_t period_nanos, uint64_t& held_back);

 private:
  std::atomic<int64_t> next_{INT64_MIN};
  std::atomic<uint64_t> held_back_{0};
};
int64_t monotonic_nanos();

}  // namespace sluice::log

#define SLUICE_LOG(level, component, ...)                                                       \
  do {                                                                                          \
    if (::sluice::log::enabled(::sluice::log::Level::level))                                    \
      ::sluice::log::write(::sluice::log::Level::level, component, ::fmt::format(__VA_ARGS__)); \
  } while (false)

#define SLUICE_LOG_EVERY(period_seconds, level, component, ...)                                                  \
  do {                                                                                                           \
    static ::sluice::log::RateLimit sluice_log_limit;                                                            \
    uint64_t sluice_held_back = 0;                                                                               \
    if (::sluice::log::enabled(::sluice::log::Level::level) &&                                                   \
        sluice_log_limit.due(::sluice::log::monotonic_nanos(), int64_t{period_seconds} * 1'000'000'000,          \
                             sluice_held_back)) {                                                                \
      auto sluice_line = ::fmt::format(__VA_ARGS__);                                                             \
      if (sluice_held_back > 0) sluice_line += ::fmt::format(" ({} similar lines held back)", sluice_held_back); \
      ::sluice::log::write(::sluice::log::Level::level, component, sluice_line);                                 \
    }                                                                                                            \
  } while (false)
