#include "gateway/kv_events/kv_caches.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "gateway/fleet.h"

namespace sluice::gateway {
namespace {

constexpr const char* kMode = "smg_worker_kv_mode";
constexpr const char* kBlocks = "smg_kv_blocks";

}  // namespace

std::string_view to_string(KvCaches::Mode mode) {
  switch (mode) {
    case KvCaches::Mode::kBelief:
      return "belief";
    case KvCaches::Mode::kPart:
      return "events_partial";
    case KvCaches::Mode::kEvents:
      return "events";
  }
  return "belief";
}

Result<std::unique_ptr<KvCaches>> KvCaches::make(const GatewayOptions& options, const Clock& clock) {
  if (!options.tokenizer_path) return std::unique_ptr<KvCaches>();
  SLUICE_TRY(auto reader, KvPromptReader::load(*options.tokenizer_path, options.chat_template.value_or("")));
  const auto bytes = static_cast<size_t>(options.kv_index_bytes);
  return std::unique_ptr<KvCaches>(new KvCaches(bytes, std::move(reader), clock));
}

void KvCaches::judge(uint32_t worker, KvVerdict verdict) {
  view.set_trusted(worker, verdict.is_trusted, verdict.tools_differ);
  const std::lock_guard lock(mutex_);
  verdicts_[worker] = std::move(verdict);
}

void KvCaches::forget(uint32_t worker) {
  subscriber.unsubscribe(worker);
  view.set_trusted(worker, false, false);
  const std::lock_guard lock(mutex_);
  verdicts_.erase(worker);
}

KvCaches::Mode KvCaches::mode_of(uint32_t worker) const {
  switch (view.of(worker).knowledge) {
    case KvKnowledge::kNothing:
      return Mode::kBelief;
    case KvKnowledge::kPart:
      return Mode::kPart;
    case KvKnowledge::kAll:
      return Mode::kEvents;
  }
  return Mode::kBelief;
}

nlohmann::ordered_json KvCaches::describe(uint32_t worker) const {
  KvVerdict verdict{.why = "it is not ready yet"};
  {
    const std::lock_guard lock(mutex_);
    if (const auto known = verdicts_.find(worker); known != verdicts_.end()) verdict = known->second;
  }
  const auto status = subscriber.status(worker);
  std::string why = verdict.why;
  if (status && verdict.is_trusted && !status->why.empty()) why = status->why;
  nlohmann::ordered_json document{{"mode", to_string(mode_of(worker))}, {"why", why}};
  if (!status) return document;
  const KvStreamCounts& counts = status->counts;
  document["block_size"] = status->block_size;
  document["blocks"] = status->blocks;
  document["next_sequence"] = status->next_sequence;
  document["batches"] = counts.batches;
  document["duplicates"] = counts.duplicates;
  document["gaps"] = counts.gaps;
  document["resyncs"] = counts.resyncs;
  document["left_out"] = {{"unreadable", counts.unreadable},
                          {"ignored", counts.ignored},
                          {"unplaced", counts.unplaced},
                          {"conflicts", counts.conflicts},
                          {"refused", counts.refused}};
  return document;
}

void KvCaches::clear(obs::Metrics& metrics) {
  for (const char* family : {kMode, kBlocks}) metrics.clear(family);
}

void KvCaches::show(obs::Metrics& metrics, const Worker& worker) const {
  metrics.gauge(kMode, {worker.url, std::string(to_string(mode_of(worker.number)))}).set(1);
  const auto status = subscriber.status(worker.number);
  if (!status) return;
  // A new subscription counts from nothing: what was shown stays until it is passed.
  const auto show = [](obs::Counter counter, uint64_t count) {
    counter.add(std::max(0.0, static_cast<double>(count) - counter.value()));
  };
  const KvStreamCounts& counts = status->counts;
  for (const auto& [result, count] : {std::pair("applied", counts.batches), {"duplicate", counts.duplicates}}) {
    show(metrics.counter("smg_kv_batches_total", {worker.url, result}), count);
  }
  for (const auto& [reason, count] : {std::pair("unreadable", counts.unreadable),
                                      {"ignored", counts.ignored},
                                      {"unplaced", counts.unplaced},
                                      {"conflict", counts.conflicts},
                                      {"refused", counts.refused}}) {
    show(metrics.counter("smg_kv_left_out_total", {worker.url, reason}), count);
  }
  show(metrics.counter("smg_kv_gaps_total", {worker.url}), counts.gaps);
  show(metrics.counter("smg_kv_resyncs_total", {worker.url}), counts.resyncs);
  metrics.gauge(kBlocks, {worker.url}).set(static_cast<double>(status->blocks));
}

}  // namespace sluice::gateway
