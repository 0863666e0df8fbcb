#include "base/log.h"

#include <fmt/chrono.h>
#include <spdlog/logger.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/daily_file_sink.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>

#include "base/stderr_writer.h"

namespace sluice::log {
namespace {

constexpr std::string_view kNames[] = {"debug", "info", "warn", "error"};
constexpr spdlog::level::level_enum kSpdlogLevels[] = {spdlog::level::debug, spdlog::level::info, spdlog::level::warn,
                                                       spdlog::level::err};

struct State {
  std::unique_ptr<spdlog::logger> logger;
  bool json = false;
  State* replaced = nullptr;  // by this one
};

std::atomic<Level> least_level{Level::info};

std::unique_ptr<spdlog::logger> make_logger(std::vector<spdlog::sink_ptr> sinks) {
  auto logger = std::make_unique<spdlog::logger>("sluice", sinks.begin(), sinks.end());
  // The line is complete when it gets here: spdlog only carries it to the sinks.
  logger->set_formatter(std::make_unique<spdlog::pattern_formatter>("%v", spdlog::pattern_time_type::utc));
  logger->set_level(spdlog::level::trace);
  logger->flush_on(spdlog::level::trace);
  return logger;
}

// stderr, or what redirect() has put in its place.
class Console final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  void redirect(std::function<void(std::string_view)> to) {
    std::lock_guard lock(mutex_);
    to_ = std::move(to);
  }

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    if (to_) return to_(std::string_view(message.payload.data(), message.payload.size()));
    std::string line(message.payload.data(), message.payload.size());
    line += '\n';
    write_stderr(line);  // whole, so that lines of processes do not mix
  }
  void flush_() override {}

  std::function<void(std::string_view)> to_;
};

const std::shared_ptr<Console>& console() {
  static const auto sink = std::make_shared<Console>();
  return sink;
}

// Replaced by init() and never freed: threads may log until the process ends.
std::atomic<State*>& state() {
  static std::atomic<State*> current{new State{make_logger({console()}), false}};
  return current;
}

// RFC 3339 in UTC with milliseconds.
std::string utc_now() {
  const auto now = std::chrono::system_clock::now();
  const auto millis = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(std::chrono::system_clock::to_time_t(now)), millis);
}

// A line stays one line, whatever a client has put into it.
std::string one_line(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') {
      out += "\\n";
    } else if (c != '\t' && (byte < 0x20 || byte == 0x7f)) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace

Result<void> init(const Options& options) {
  const auto* name = std::find(std::begin(kNames), std::end(kNames), options.level);
  if (name == std::end(kNames)) {
    return Error{ErrorCode::kBadOption,
                 fmt::format("log level '{}' must be one of: {}", options.level, fmt::join(kNames, ", "))};
  }
  std::vector<spdlog::sink_ptr> sinks{console()};
  if (!options.dir.empty()) {
    try {
      std::filesystem::create_directories(options.dir);
      sinks.push_back(std::make_shared<spdlog::sinks::daily_file_sink_mt>(options.dir + "/sluice.log", 0, 0));
    } catch (const std::exception& e) {
      return Error{ErrorCode::kBadOption, fmt::format("cannot log to folder {}: {}", options.dir, e.what())};
    }
  }
  auto* fresh = new State{make_logger(std::move(sinks)), options.json};
  fresh->replaced = state().exchange(fresh);
  least_level.store(static_cast<Level>(name - std::begin(kNames)), std::memory_order_relaxed);
  return {};
}

void redirect(std::function<void(std::string_view)> to) { console()->redirect(std::move(to)); }

bool enabled(Level level) { return level >= least_level.load(std::memory_order_relaxed); }

void write(Level level, std::string_view component, std::string_view message) {
  State& to = *state().load(std::memory_order_acquire);
  const auto index = static_cast<size_t>(level);
  std::string line;
  if (to.json) {
    const nlohmann::ordered_json fields = {
        {"time", utc_now()}, {"level", kNames[index]}, {"component", component}, {"message", message}};
    line = fields.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  } else {
    line = fmt::format("{} {:5} {}: {}", utc_now(), kNames[index], component, one_line(message));
  }
  to.logger->log(kSpdlogLevels[index], line);
}

bool RateLimit::due(int64_t now_nanos, int64_t period_nanos, uint64_t& held_back) {
  int64_t next = next_.load(std::memory_order_relaxed);
  if (now_nanos < next || !next_.compare_exchange_strong(next, now_nanos + period_nanos, std::memory_order_relaxed)) {
    held_back_.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  held_back = held_back_.exchange(0, std::memory_order_relaxed);
  return true;
}

int64_t monotonic_nanos() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace sluice::log
