#include "gateway/succession.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/log.h"
#include "gateway/control.h"

namespace sluice::gateway {
namespace {

using Json = nlohmann::json;

constexpr Duration kPatience = std::chrono::seconds(30);
constexpr Duration kStep = std::chrono::milliseconds(10);

// Those of `urls` whose worker, or one of its ranks, is healthy.
size_t count_healthy(const Context& context, const std::vector<std::string>& urls) {
  const auto workers = context.fleet.snapshot();
  return static_cast<size_t>(std::ranges::count_if(urls, [&](const std::string& url) {
    return std::ranges::any_of(
        *workers, [&](const WorkerPtr& worker) { return worker->healthy && worker->address.to_string() == url; });
  }));
}

}  // namespace

std::string fleet_document(const Context& context) {
  Json list = Json::array();
  std::map<std::string, size_t> place;  // by address
  const auto workers = context.fleet.snapshot();
  for (const WorkerPtr& worker : *workers) {
    if (worker->draining) continue;
    const std::string url = worker->address.to_string();
    if (const auto at = place.find(url); at != place.end()) {
      Json& entry = list[at->second];
      entry["healthy"] = entry["healthy"].get<bool>() || worker->healthy;
      continue;
    }
    place[url] = list.size();
    const Worker::Info info = worker->info();
    list.push_back({{"url", url},
                    {"id", worker->id},
                    {"api_key", worker->api_key()},
                    {"healthy", worker->healthy.load()},
                    {"proven", worker->proven.load()},
                    {"source", info.source},
                    {"priority", info.priority},
                    {"cost", info.cost},
                    {"labels", info.labels},
                    {"rules", info.rule_changes},
                    {"models", info.models_are_given ? info.model_ids : std::vector<std::string>()}});
  }
  return list.dump();
}

Result<void> take_over_fleet(Context& context, const std::string& document) {
  std::vector<std::string> were_healthy;
  try {
    for (const Json& entry : Json::parse(document)) {
      const auto url = entry.at("url").get<std::string>();
      const bool is_static = entry.at("source").get<std::string>() == "static";
      SLUICE_TRY(const WorkerPtr worker,
                 context.add_worker(url, entry.at("api_key").get<std::string>(), is_static ? "static" : "manual",
                                    /*is_bounded=*/false, entry.value("id", "")));
      worker->change_info([&](Worker::Info& info) {
        info.priority = entry.at("priority").get<int64_t>();
        info.cost = entry.at("cost").get<double>();
        info.labels = entry.at("labels").get<std::map<std::string, std::string>>();
        const auto models = entry.at("models").get<std::vector<std::string>>();
        if (models.empty()) return;
        info.model_id = models.front();
        info.model_ids = models;
        info.models_are_given = true;
      });
      // Older predecessors say nothing of rules, of ids, or of who has served.
      context.change_rules(worker, entry.value("rules", WorkerRuleChanges()));
      const bool was_healthy = entry.at("healthy").get<bool>();
      if (entry.value("proven", was_healthy)) context.control->served_before(worker);
      if (was_healthy) were_healthy.push_back(url);
    }
  } catch (const Json::exception& error) {
    return Error{ErrorCode::kProtocol, fmt::format("what the predecessor says of its workers: {}", error.what())};
  }
  // The workers' own clocks count here, not the one that judges ages.
  const TimePoint end = real_clock().now() + kPatience;
  for (;;) {
    const size_t healthy = count_healthy(context, were_healthy);
    if (healthy == were_healthy.size()) return {};
    if (real_clock().now() >= end) {
      const std::string state = fmt::format("{} of {} workers that were healthy passed a check within {:g} s", healthy,
                                            were_healthy.size(), seconds(kPatience));
      if (healthy == 0) return Error{ErrorCode::kUnavailable, state};
      SLUICE_LOG(warn, "gateway/succession", "{}", state);
      return {};
    }
    std::this_thread::sleep_for(kStep);
  }
}

}  // namespace sluice::gateway
