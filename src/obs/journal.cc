#include "obs/journal.h"

#include <algorithm>
#include <span>

namespace sluice::obs {

std::optional<Duration> RequestRecord::phase_at(std::string_view name) const {
  const auto at = std::ranges::find(phases, name, &Phase::name);
  return at == phases.end() ? std::nullopt : std::optional(at->at);
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

std::vector<RequestRecord> Journal::latest(size_t count, const Filter& matches) const {
  // Which ones first, and only those are copied: requests that end meanwhile wait for the lock.
  struct Place {
    int64_t started;
    const Part* part;
    size_t at;
  };
  std::vector<Place> places;
  for (const auto& part : parts_) {
    std::lock_guard lock(part.mutex);
    for (size_t i = 0; i < part.ring.size(); ++i) {
      if (!matches || matches(part.ring[i])) places.push_back({part.ring[i].started_unix_nanos, &part, i});
    }
  }
  count = std::min(count, places.size());
  const auto newer = [](const Place& a, const Place& b) { return a.started > b.started; };
  std::partial_sort(places.begin(), places.begin() + static_cast<ptrdiff_t>(count), places.end(), newer);
  std::vector<RequestRecord> records;
  records.reserve(count);
  for (const Place& place : std::span(places).first(count)) {
    std::lock_guard lock(place.part->mutex);
    const RequestRecord& record = place.part->ring[place.at];
    // Another one may have its place by now.
    if (record.started_unix_nanos == place.started) records.push_back(record);
  }
  return records;
}

void Journal::each(const std::function<void(const RequestRecord&)>& visit) const {
  for (const auto& part : parts_) {
    std::lock_guard lock(part.mutex);
    for (const RequestRecord& record : part.ring) visit(record);
  }
}

}  // namespace sluice::obs
