#include "testing/block_runs.h"

#include <algorithm>
#include <ranges>
#include <utility>

#include "base/check.h"

namespace sluice::testing {

// Of a run whose first name is that of `rest`, how many are alike. A name stands for all before it.
size_t BlockRuns::common(const Run& run, Chain rest) {
  const size_t most = std::min(run.names.size(), rest.size());
  if (run.names[most - 1] == rest[most - 1]) return most;
  size_t alike = 1, differs = most - 1;  // the first `alike` are known to be, the one at `differs` is known not to be
  while (alike < differs) {
    const size_t middle = (alike + differs) / 2;
    if (run.names[middle] == rest[middle]) {
      alike = middle + 1;
    } else {
      differs = middle;
    }
  }
  return alike;
}

size_t BlockRuns::match(Chain chain) const {
  size_t at = 0;
  while (at < chain.size()) {
    const uint32_t run = find(chain[at]);
    if (run == kNone) break;
    const size_t alike = common(runs_[run], chain.subspan(at));
    at += alike;
    if (alike < runs_[run].names.size()) break;
  }
  return at;
}

void BlockRuns::lay(Chain chain) {
  path_.clear();
  for (size_t at = 0; at < chain.size();) {
    const Chain rest = chain.subspan(at);
    uint32_t run = find(rest.front());
    if (run == kNone) {
      run = make(rest);
    } else if (const size_t alike = common(runs_[run], rest); alike < runs_[run].names.size()) {
      split(run, alike);
    }
    path_.push_back(run);
    at += runs_[run].names.size();
  }
}

void BlockRuns::add(Chain chain) {
  lay(chain);
  for (const uint32_t run : path_) ++runs_[run].count;
}

void BlockRuns::remove(Chain chain) {
  lay(chain);
  for (const uint32_t run : path_) {
    SLUICE_CHECK(runs_[run].count > 0, "a chain of {} blocks was removed that had not been added", chain.size());
    if (--runs_[run].count == 0) drop(run);
  }
}

void BlockRuns::use(Chain chain) {
  lay(chain);
  for (const uint32_t run : path_ | std::views::reverse) {
    if (run == newest_) continue;
    unlink(run);
    link(run, newest_);
  }
}

void BlockRuns::shrink_to(size_t size) {
  while (size_ > size) {
    Run& run = runs_[oldest_];
    const size_t excess = size_ - size;
    if (excess >= run.names.size()) {
      drop(oldest_);
    } else {
      run.names.resize(run.names.size() - excess);
      size_ -= excess;
    }
  }
}

void BlockRuns::clear() { *this = BlockRuns(); }

uint32_t BlockRuns::make(Chain names) {
  uint32_t run = 0;
  if (free_.empty()) {
    run = static_cast<uint32_t>(runs_.size());
    runs_.emplace_back();
  } else {
    run = free_.back();
    free_.pop_back();
  }
  runs_[run].names.assign(names.begin(), names.end());
  runs_[run].count = 0;
  put(names.front(), run);
  link(run, newest_);
  size_ += names.size();
  return run;
}

// Into itself with the first `at` names and a run with the rest, which was used before it.
void BlockRuns::split(uint32_t run, size_t at) {
  const std::vector<uint64_t> rest(runs_[run].names.begin() + static_cast<std::ptrdiff_t>(at), runs_[run].names.end());
  runs_[run].names.resize(at);
  size_ -= rest.size();
  const uint32_t lower = make(rest);
  runs_[lower].count = runs_[run].count;
  unlink(lower);
  link(lower, runs_[run].older);
}

void BlockRuns::drop(uint32_t run) {
  std::vector<uint64_t>& names = runs_[run].names;
  take(names.front());
  unlink(run);
  size_ -= names.size();
  names.clear();
  free_.push_back(run);
}

// Just behind `older`, or as the oldest.
void BlockRuns::link(uint32_t run, uint32_t older) {
  const uint32_t newer = older == kNone ? oldest_ : runs_[older].newer;
  runs_[run].older = older;
  runs_[run].newer = newer;
  (older == kNone ? oldest_ : runs_[older].newer) = run;
  (newer == kNone ? newest_ : runs_[newer].older) = run;
}

void BlockRuns::unlink(uint32_t run) {
  const auto [older, newer] = std::pair(runs_[run].older, runs_[run].newer);
  (older == kNone ? oldest_ : runs_[older].newer) = newer;
  (newer == kNone ? newest_ : runs_[newer].older) = older;
}

uint32_t BlockRuns::find(uint64_t name) const {
  const size_t mask = slots_.size() - 1;
  for (size_t at = home(name);; at = (at + 1) & mask) {
    const Slot& slot = slots_[at];
    if (slot.run == kNone || slot.name == name) return slot.run;
  }
}

void BlockRuns::put(uint64_t name, uint32_t run) {
  if (2 * (used_slots_ + 1) > slots_.size()) {
    const auto before = std::exchange(slots_, std::vector<Slot>(2 * slots_.size()));
    --shift_;
    used_slots_ = 0;
    for (const Slot& slot : before) {
      if (slot.run != kNone) put(slot.name, slot.run);
    }
  }
  const size_t mask = slots_.size() - 1;
  size_t at = home(name);
  while (slots_[at].run != kNone) at = (at + 1) & mask;
  slots_[at] = {name, run};
  ++used_slots_;
}

// Those behind it that would not be found across the gap move up.
void BlockRuns::take(uint64_t name) {
  const size_t mask = slots_.size() - 1;
  size_t gap = home(name);
  while (slots_[gap].name != name || slots_[gap].run == kNone) gap = (gap + 1) & mask;
  for (size_t at = (gap + 1) & mask; slots_[at].run != kNone; at = (at + 1) & mask) {
    const size_t wanted = home(slots_[at].name);
    if (((at - wanted) & mask) < ((at - gap) & mask)) continue;  // it stands between the gap and here
    slots_[gap] = slots_[at];
    gap = at;
  }
  slots_[gap] = {};
  --used_slots_;
}

}  // namespace sluice::testing
