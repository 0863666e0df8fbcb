#include "obs/journal.h"

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

namespace sluice::obs {

std::string RequestRecord::to_json() const {
  nlohmann::ordered_json times = nlohmann::ordered_json::object();
  for (const auto& phase : phases) times[std::string(phase.name)] = seconds(phase.at);
  const nlohmann::ordered_json fields = {
      {"id", id},         {"started", static_cast<double>(started_unix_nanos / 1'000'000) / 1000.0},
      {"route", route},   {"model", model},
      {"worker", worker}, {"attempts", attempts},
      {"status", status}, {"outcome", outcome},
      {"detail", detail}, {"phases", std::move(times)},
  };
  return fields.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Journal::Journal(size_t capacity) : part_capacity_(std::max<size_t>(1, (capacity + kParts - 1) / kParts)) {
  for (auto& part : parts_) part.ring.reserve(part_capacity_);
}

const Journal::Part& Journal::part_of(std::string_view id) const {
  return parts_[std::hash<std::string_view>()(id) % kParts];
}

void Journal::add(RequestRecord record) {
  auto& part = const_cast<Part&>(part_of(record.id));
  std::lock_guard lock(part.mutex);
  if (part.ring.size() < part_capacity_) {
    part.ring.push_back(std::move(record));
  } else {
    std::swap(part.ring[part.next], record);  // the old one is freed after the lock
    part.next = (part.next + 1) % part_capacity_;
  }
}

std::optional<RequestRecord> Journal::find(std::string_view id) const {
  const Part& part = part_of(id);
  std::lock_guard lock(part.mutex);
  const size_t size = part.ring.size();
  for (size_t back = 1; back <= size; ++back) {
    const auto& record = part.ring[(part.next + size - back) % size];
    if (record.id == id) return record;
  }
  return std::nullopt;
}

std::vector<RequestRecord> Journal::latest(size_t count) const {
  std::vector<RequestRecord> all;
  for (const auto& part : parts_) {
    std::lock_guard lock(part.mutex);
    all.insert(all.end(), part.ring.begin(), part.ring.end());
  }
  const auto newer = [](const RequestRecord& a, const RequestRecord& b) {
    return a.started_unix_nanos > b.started_unix_nanos;
  };
  count = std::min(count, all.size());
  std::partial_sort(all.begin(), all.begin() + static_cast<ptrdiff_t>(count), all.end(), newer);
  all.resize(count);
  return all;
}

}  // namespace sluice::obs
