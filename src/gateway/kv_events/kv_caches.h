// What the gateway knows of its workers' KV caches (--tokenizer-path), and how it comes to know it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/result.h"
#include "gateway/kv_events/prompt_reader.h"
#include "gateway/kv_events/subscriber.h"
#include "gateway/kv_events/view.h"
#include "gateway/options.h"
#include "obs/metrics.h"

namespace sluice::gateway {

struct Worker;

// What is thought of a worker's events.
struct KvVerdict {
  bool is_trusted = false;
  bool tools_differ = false;
  std::string why;  // it is not trusted, or prompts with tools do not count
};

class KvCaches {
 public:
  // Null without --tokenizer-path. `clock` outlives it.
  static Result<std::unique_ptr<KvCaches>> make(const GatewayOptions& options, const Clock& clock);

  KvView view;
  KvSubscriber subscriber;
  const std::unique_ptr<KvPromptReader> reader;

  // Any thread, all below.
  void judge(uint32_t worker, KvVerdict verdict);
  void forget(uint32_t worker);

  enum class Mode : uint8_t { kBelief, kPart, kEvents };
  Mode mode_of(uint32_t worker) const;
  // "mode" and "why", and what the stream has told.
  nlohmann::ordered_json describe(uint32_t worker) const;
  // Takes away what show() has shown of all workers, but counts; then it is shown anew.
  static void clear(obs::Metrics& metrics);
  // Gauges and counts of that worker.
  void show(obs::Metrics& metrics, const Worker& worker) const;

 private:
  KvCaches(size_t index_bytes, std::unique_ptr<KvPromptReader> prompt_reader, const Clock& clock)
      : view(index_bytes), subscriber(view, clock), reader(std::move(prompt_reader)) {}

  mutable std::mutex mutex_;  // guards the map
  std::map<uint32_t, KvVerdict> verdicts_;
};

std::string_view to_string(KvCaches::Mode mode);

}  // namespace sluice::gateway
