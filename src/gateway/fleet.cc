#include "gateway/fleet.h"

#include <algorithm>
#include <cctype>

#include "base/rng.h"

namespace sluice::gateway {

std::string make_uuid() {
  const uint64_t a = random_seed(), b = random_seed();
  return fmt::format("{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}", a >> 32, (a >> 16) & 0xffff, a & 0xfff,
                     0x8000 | ((b >> 48) & 0x3fff), b & 0xffffffffffff);
}

namespace {

bool is_uuid(std::string_view text) {
  if (text.size() != 36) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool is_dash = i == 8 || i == 13 || i == 18 || i == 23;
    if (is_dash ? text[i] != '-' : std::isxdigit(static_cast<unsigned char>(text[i])) == 0) return false;
  }
  return true;
}

}  // namespace

std::string_view Worker::status() const {
  if (draining.load(std::memory_order_relaxed)) return "draining";
  if (healthy.load(std::memory_order_relaxed)) return "ready";
  if (proven.load(std::memory_order_relaxed)) return "not_ready";
  return failed.load(std::memory_order_relaxed) ? "failed" : "pending";
}

void Fleet::publish(WorkerList list) {
  list_ = std::make_shared<const WorkerList>(std::move(list));
  version_->fetch_add(1, std::memory_order_release);
}

// What was known by model and is so no more goes. Under the lock.
void Fleet::sort_by_model() const {
  if (rosters_version_ == version()) return;
  rosters_version_ = version();
  // Loops may hold on to the old ones for as long as no request comes: leases need not tell those.
  for (const auto& [model, of] : by_model_) {
    for (const auto& [rank, roster] : of.rosters) {
      if (roster->order() != nullptr) roster->order()->detach();
    }
  }
  by_model_.clear();
  by_model_[""].workers = *list_;
  for (const WorkerPtr& worker : *list_) {
    worker->read_info([&](const Worker::Info& info) {
      for (const std::string& model : info.model_ids) {
        if (model.empty()) continue;  // stands for all
        WorkerList& workers = by_model_[model].workers;
        if (workers.empty() || workers.back() != worker) workers.push_back(worker);
      }
    });
  }
}

std::shared_ptr<const Roster> Fleet::roster(std::string_view model, std::optional<int64_t> rank) const {
  std::lock_guard lock(mutex_);
  sort_by_model();
  const auto at = by_model_.find(model);
  if (at == by_model_.end()) return nullptr;
  auto& rosters = at->second.rosters;
  if (const auto known = rosters.find(rank); known != rosters.end()) return known->second;
  WorkerList workers = at->second.workers;
  if (rank) std::erase_if(workers, [&](const auto& worker) { return std::max<int64_t>(worker->dp.rank, 0) != *rank; });
  if (rank && workers.empty()) return nobody_;  // a rank that clients make up is not kept
  return rosters[rank] = std::make_shared<const Roster>(std::move(workers), clock_.now());
}

std::pair<WorkerPtr, bool> Fleet::add(net::Url address, const std::string& api_key, const WorkerSeries& series,
                                      const std::string& id) {
  const std::string canonical = address.to_string();
  std::lock_guard lock(mutex_);
  for (const auto& worker : *list_) {
    // The URL of a rank has more behind the address.
    if (worker->url.starts_with(canonical) && worker->address.to_string() == canonical && !worker->draining) {
      return {worker, false};
    }
  }
  const bool is_free = std::ranges::none_of(*list_, [&](const auto& other) { return other->id == id; });
  auto worker = std::make_shared<Worker>(is_uuid(id) && is_free ? id : make_uuid(), next_number_++, loads_.next(),
                                         std::move(address), DpRank{}, api_key, series, rules_, clock_, version_);
  WorkerList list = *list_;
  list.push_back(worker);
  publish(std::move(list));
  return {std::move(worker), true};
}

std::vector<WorkerPtr> Fleet::expand(const Worker& engine, const std::vector<WorkerSeries>& series) {
  std::vector<WorkerPtr> ranks;
  std::lock_guard lock(mutex_);
  WorkerList list = *list_;
  if (std::erase_if(list, [&](const auto& other) { return other.get() == &engine; }) == 0) return ranks;
  const auto size = static_cast<int64_t>(series.size());
  for (int64_t rank = 0; rank < size; ++rank) {
    ranks.push_back(std::make_shared<Worker>(rank == 0 ? engine.id : make_uuid(), next_number_++, loads_.next(),
                                             engine.address, DpRank{rank, size}, engine.api_key(),
                                             series[static_cast<size_t>(rank)], rules_, clock_, version_));
    list.push_back(ranks.back());
  }
  publish(std::move(list));
  return ranks;
}

WorkerList Fleet::engine_of(const Worker& worker) const {
  WorkerList same = *snapshot();
  const bool is_leaving = worker.draining;
  std::erase_if(same, [&](const auto& other) {
    return other->address.to_string() != worker.address.to_string() || other->draining != is_leaving;
  });
  return same;
}

void Fleet::erase(const Worker& worker) {
  std::lock_guard lock(mutex_);
  WorkerList list = *list_;
  std::erase_if(list, [&](const auto& other) { return other.get() == &worker; });
  publish(std::move(list));
}

WorkerPtr Fleet::find(const std::string& id_or_url) const {
  const auto list = snapshot();
  WorkerPtr found;
  for (const auto& worker : *list) {
    if (worker->id == id_or_url) return worker;
    const bool is_rank = worker->dp.rank >= 0 && worker->url == id_or_url;
    if (is_rank && (found == nullptr || found->draining)) found = worker;
  }
  if (found != nullptr) return found;
  const auto address = net::parse_url(id_or_url);
  if (!address.ok()) return nullptr;
  const std::string url = address->to_string();
  for (const auto& worker : *list) {
    if (worker->address.to_string() == url && (found == nullptr || found->draining)) found = worker;
  }
  return found;
}

std::shared_ptr<const WorkerList> Fleet::snapshot() const {
  std::lock_guard lock(mutex_);
  return list_;
}

}  // namespace sluice::gateway
